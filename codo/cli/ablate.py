"""`codo ablate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from codo.cli.options import read_seeds

if TYPE_CHECKING:
    from codo.jobs.ablate.plan import Plan


@click.command(
    "ablate", short_help="Run a grid of rows, seeds and transfers, and report which component is worth what."
)
@click.argument("grid", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), metavar="DIR", help="Jobs and results.  [default: runs/ablate]")
@click.option("--dry-run", is_flag=True, help="Show the table to be, the jobs and their time; run nothing.")
@click.option("--no-timing", is_flag=True, help="With --dry-run: time no steps.")
@click.option("--jobs", type=click.IntRange(min=1), metavar="N", help="At a time.  [default: as cores or GPUs bear]")
@click.option("--seeds", metavar="LIST", help="In place of the grid's own, e.g. 0,1,2.")
@click.option("--fail-fast", is_flag=True, help="End at the first failure; else the other jobs go on.")
@click.option("--retry-failed", is_flag=True, help="Try again what failed before.")
@click.option("--accept-code-change", is_flag=True, help="Keep finished jobs of another version of codo's code.")
@click.option(
    "--keep-checkpoints", is_flag=True, help="Of finished jobs too, some 100 MB each; else weights alone stay."
)
@click.option(
    "--executor",
    type=click.Choice(["local", "slurm", "ray"]),
    default="local",
    help="Where jobs run.",
    show_default=True,
)
@click.option(
    "--executor-option", "options", multiple=True, metavar="NAME=VALUE", help="For slurm and ray; may be repeated."
)
@click.pass_context
def ablate_command(
    context: click.Context,
    grid: Path,
    out: Path | None,
    dry_run: bool,
    no_timing: bool,
    seeds: str | None,
    **given: Any,
) -> None:
    """Run the grid in the YAML file GRID and report which component is worth what; docs/ablate.md explains the file.

    Finished jobs are not run again, and those that were stopped go on: after a kill, give the same command.
    """
    chosen = read_seeds(seeds) if seeds is not None else None
    if no_timing and not dry_run:
        raise click.UsageError("--no-timing goes with --dry-run")
    if dry_run:
        from codo.jobs.ablate.run import plan_grid

        plans = plan_grid(grid, out, chosen, given["accept_code_change"])
        for plan in plans:
            show_plan(plan)
        if not no_timing:
            show_time(plans, given["jobs"])
        return
    from codo.jobs.ablate.report import terminal_table
    from codo.jobs.ablate.run import ablate
    from codo.runs.console import console

    done = ablate(grid, out, seeds=chosen, **given)
    console.print(terminal_table(done.results))
    for job, message in done.failures.items():
        console.print(f"failed: {job}: {message}", markup=False)
    console.print(f"written to {done.path}", markup=False)
    if done.failures:
        context.exit(1)


def show_plan(plan: Plan) -> None:
    """Print a dry run: the table to be, in what the rows differ, and the jobs."""
    import json

    from rich.markup import escape
    from rich.table import Table

    from codo.runs.console import console, warn

    file = plan.grid.file
    table = Table("row", "changes", "epochs", "composites", title=escape(file.title), title_justify="left")
    for protocol in file.transfer:
        table.add_column(escape(protocol))
    for row in plan.grid.rows:
        changes = (
            "not pretrained"
            if row.changes is None
            else ", ".join(f"{key}={json.dumps(value)}" for key, value in (row.changes | row.tuned).items())
        )
        times = f" x {file.repeats}" if file.repeats > 1 else ""
        cells = [f"{len(file.seeds)} seed{'s' if len(file.seeds) > 1 else ''}{times}"] * len(file.transfer)
        epochs = "-" if row.changes is None else str(row.pretrain.optim.epochs)
        name = f"{row.name} (reference)" if row.name == plan.grid.reference else row.name
        table.add_row(escape(name), escape(changes or "the base"), epochs, f"{row.composites} x n", *cells)
    console.print(table)
    console.print(f"composites: epochs x (query views + 1) x n foregrounds; the budget is equal {file.budget}")
    for kind, (asked, distinct, left) in plan.counts().items():
        if asked:
            console.print(f"{kind}: {distinct} jobs for {asked} uses, {left} to run")
    for notice in plan.notices:
        warn(notice)


def show_time(plans: list[Plan], jobs: int | None) -> None:
    """Print how long the jobs that are not done would take on this machine."""
    from codo.jobs.ablate.estimate import estimate
    from codo.jobs.ablate.executors import LocalExecutor
    from codo.jobs.ablate.run import threads_of
    from codo.runs.console import console, duration

    jobs = jobs or LocalExecutor(None, threads_of(plans[-1]), plans[-1].grid.file.processes).jobs
    found = estimate(plans)
    console.print(
        f"time: about {duration(found.total)} one after the other ({duration(found.pretrain)} pretraining, "
        f"{duration(found.transfer)} transfer), {duration(found.total / jobs)} with --jobs {jobs}; steps of "
        f"{found.timed} configs were timed, in one process each; the start of jobs and the probes are not counted"
    )
