"""The ablation job: from a grid's YAML to results and their report."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from codo.errors import CodoError, Interrupted
from codo.jobs.ablate.collect import collect, draw_samples
from codo.jobs.ablate.executors import Executor, LocalExecutor
from codo.jobs.ablate.jobs import Store
from codo.jobs.ablate.lines import LinedYaml
from codo.jobs.ablate.plan import Plan, make_plan
from codo.jobs.ablate.resolve import load_grid
from codo.jobs.ablate.results import Results, Tuning
from codo.jobs.ablate.scheduler import Scheduler
from codo.jobs.ablate.tuning import trials_of, tuned
from codo.runs.console import stderr, warn
from codo.runs.files import write_text
from codo.runs.lock import Lock

DEFAULT_OUT = Path("runs/ablate")
EXECUTORS = ("local", "slurm", "ray")


@dataclass(frozen=True)
class AblateResult:
    """A grid that was run.

    Attributes:
        path: folder of its results.json and report.
        results: what they hold.
        failures: job -> what went wrong, in a line.

    Example:
        >>> done = AblateResult(Path("runs/ablate/ladder"), results, {})  # doctest: +SKIP
        >>> done.results.cell("full", "small", 0).metrics["AP"]  # doctest: +SKIP
        31.4
    """

    path: Path
    results: Results
    failures: dict[str, str]


def ablate(
    grid: Path | str,
    out: Path | str | None = None,
    *,
    jobs: int | None = None,
    executor: str = "local",
    fail_fast: bool = False,
    retry_failed: bool = False,
    seeds: Sequence[int] | None = None,
    accept_code_change: bool = False,
    keep_checkpoints: bool = False,
    options: Sequence[str] = (),
) -> AblateResult:
    """Run what a grid asks for and is not done yet, and report; called again, it goes on.

    Where the grid tunes a field, the trials are run and reported first, in `tuning/` beside the results.

    Args:
        grid: YAML, see docs/ablate.md.
        out: folder of the jobs, which grids share, and of each grid's results; None is `runs/ablate`.
        jobs: how many run at a time; None is as many as cores or GPUs bear.
        executor: `local`, `slurm` or `ray`.
        fail_fast: end at the first failure.
        retry_failed: try again what failed before.
        seeds: in place of the grid's own.
        accept_code_change: take finished jobs of another version of the code.
        keep_checkpoints: leave those of finished jobs, some 100 MB each; else they are removed, and weights stay.
        options: `name=value` for the executor, e.g. `slurm_partition=gpu`.

    Raises:
        CodoError: a mistake in the grid, with its line; data that is missing; a folder in use, or with another grid's
            results; code that was edited while the grid ran.
        Interrupted: after Ctrl-C or SIGTERM, with the jobs' state saved.

    Example:
        >>> done = codo.ablate("experiments/small/ladder.yaml", jobs=2)  # doctest: +SKIP
        >>> done.results.cell("baseline", "fine-tuned", 0).metrics["AP"]  # doctest: +SKIP
        31.4
    """
    path, out = Path(grid), Path(out) if out is not None else DEFAULT_OUT
    if executor not in EXECUTORS:
        raise CodoError(f"--executor {executor}: one of {', '.join(EXECUTORS)}")
    loaded = load_grid(path, tuple(seeds) if seeds is not None else None)
    trials = trials_of(loaded) if loaded.file.tune is not None else None
    folder = out / path.stem
    with Lock(out):
        refuse_another(path, folder)
        store = Store(out / "jobs")
        plan = make_plan(loaded, store, accept_code_change)  # as written: before its trials it is checked as a whole
        first = make_plan(trials, store, accept_code_change) if trials is not None else plan
        runner = make_executor(executor, jobs, plan, options)  # whose jobs have as many threads as the trials, or more
        write_text(folder / "grid.yaml", path.read_text(encoding="utf-8"))
        command = go_on(path, out, jobs, executor, seeds, accept_code_change, keep_checkpoints, options)
        if retry_failed:
            forget_failures(first)
        scheduler = Scheduler(first, runner, fail_fast, keep_checkpoints, command)
        if trials is None:
            return run_plan(scheduler, folder)
        plan.notices.append("the trials, which come before the rows, are not done: tuning/ has what there is")
        try:
            tried = run_plan(scheduler, folder / "tuning", samples=False)
        except Interrupted:
            write_untuned(plan, folder, command)
            raise
        if scheduler.broke_off:
            write_untuned(plan, folder, command)
            return AblateResult(folder, Results.read(folder / "results.json"), tried.failures)
        first.check_code()
        chosen, tuning, notices = tuned(loaded, tried.results)
        plan = make_plan(chosen, store, accept_code_change)
        plan.notices += notices
        if retry_failed:
            forget_failures(plan)
        runner = make_executor(executor, jobs, plan, options)
        done = run_plan(Scheduler(plan, runner, fail_fast, keep_checkpoints, command), folder, tuning)
        return replace(done, failures=tried.failures | done.failures)


def run_plan(scheduler: Scheduler, folder: Path, tuning: Tuning | None = None, samples: bool = True) -> AblateResult:
    """Run a scheduler's jobs, and write results and report.

    Args:
        scheduler: of a plan.
        folder: of the results.
        tuning: how the plan's rows were tuned.
        samples: draw what each row is trained on.

    Raises:
        Interrupted, CodoError: what is there has been written.
    """
    plan = scheduler.plan
    for notice in plan.notices:
        warn(notice)
    for name, job in plan.jobs.items():
        if not plan.store.folder(name).done:
            plan.store.folder(name).write(job)
    tell_failures(scheduler)

    def collected() -> Results:
        found = collect(plan, folder, scheduler.failures, scheduler.go_on)
        return found.model_copy(update={"tuning": tuning})

    def write_meanwhile() -> None:  # for `codo report`; what goes wrong with it ends no grid
        try:
            collected().write(folder / "results.json")
        except CodoError as error:
            warn(f"{error}; the grid goes on, {folder / 'results.json'} is not of what is done by now")

    try:
        scheduler.run(write_meanwhile)
    except (Interrupted, CodoError):  # what is there can be looked at
        write_results(folder, collected())
        raise
    results = collected()
    results.write(folder / "results.json")  # before a user's parts draw
    if samples:
        results = results.model_copy(update={"samples": draw_samples(plan, folder)})
    write_results(folder, results)
    return AblateResult(folder, results, scheduler.failures)


def forget_failures(plan: Plan) -> None:
    """Let jobs that failed be tried again."""
    for name in plan.jobs:
        if not plan.store.folder(name).done:
            plan.store.folder(name).forget_failure()


def write_untuned(plan: Plan, folder: Path, command: str) -> None:
    """Write the results of rows whose trials are not done; those that an earlier session wrote stay."""
    if (folder / "results.json").is_file():
        warn(f"{folder} keeps the results that it had: the trials are not done")
    else:
        write_results(folder, collect(plan, folder, plan.failures(), command))


def write_results(folder: Path, results: Results) -> None:
    """Write results.json and the report."""
    from codo.jobs.ablate.report import write_report

    results.write(folder / "results.json")
    write_report(folder, results)


def refuse_another(grid: Path, folder: Path) -> None:
    """Refuse to write a grid's results over those of another whose file has the same name.

    Raises:
        CodoError: the folder has a grid of another title.
    """
    if not (folder / "grid.yaml").is_file():
        return
    here, there = (LinedYaml(file, expand=False).tree.get("title") for file in (grid, folder / "grid.yaml"))
    if here != there:
        raise CodoError(
            f"{folder} has the results of another grid, titled {there!r}, not {here!r}; rename {grid.name}, choose "
            "another --out, or delete that folder (the jobs stay)"
        )


def plan_grid(
    grid: Path | str,
    out: Path | str | None = None,
    seeds: Sequence[int] | None = None,
    accept_code_change: bool = False,
) -> list[Plan]:
    """Plan a grid without running anything, as `--dry-run` shows it; arguments as those of `ablate`.

    Returns:
        The plan of the trials, where something is tuned, and that of the rows: tuned if all trials are done.
    """
    loaded = load_grid(Path(grid), tuple(seeds) if seeds is not None else None)
    out = Path(out) if out is not None else DEFAULT_OUT
    store = Store(out / "jobs")
    if loaded.file.tune is None:
        return [make_plan(loaded, store, accept_code_change)]
    trials = make_plan(trials_of(loaded), store, accept_code_change)
    if trials.open():
        plan = make_plan(loaded, store, accept_code_change)
        plan.notices.append(f"{loaded.file.tune.field} of each row will be what its trials choose, not as shown")
    else:
        chosen, _, notices = tuned(loaded, collect(trials, out, {}, ""))
        plan = make_plan(chosen, store, accept_code_change)
        plan.notices += notices
    return [trials, plan]


def make_executor(name: str, jobs: int | None, plan: Plan, options: Sequence[str]) -> Executor:
    """Make an executor.

    Raises:
        CodoError: its package is not installed, its options are none, or this machine cannot bear a job.
    """
    given = dict(_option(text) for text in options)
    if name == "slurm":
        from codo.jobs.ablate.executors.slurm import SlurmExecutor

        return SlurmExecutor(plan.store.path.parent / "slurm", jobs, given)
    if name == "ray":
        from codo.jobs.ablate.executors.ray import RayExecutor

        return RayExecutor(jobs, given)
    if given:
        raise CodoError(f"--executor-option {options[0]}: the local executor has none")
    local = LocalExecutor(jobs, threads_of(plan), plan.grid.file.processes)
    local.check()
    return local


def threads_of(plan: Plan) -> int:
    """Tell how many threads a process of a job computes with, and loader processes that the grid asks for, at most."""
    runs = [run for row in plan.grid.rows for run in (row.pretrain.run, *(t.run for t in row.transfers.values()))]
    return max(int(run.threads) + (0 if run.workers == "auto" else run.workers) for run in runs)


def tell_failures(scheduler: Scheduler) -> None:
    """Say which jobs failed in an earlier session, and how to try them again."""
    if scheduler.failures:
        stderr.print(
            f"{len(scheduler.failures)} jobs failed before and are left alone; --retry-failed tries them again",
            markup=False,
        )


def go_on(
    grid: Path,
    out: Path,
    jobs: int | None,
    executor: str,
    seeds: Sequence[int] | None,
    accept_code_change: bool,
    keep_checkpoints: bool,
    options: Sequence[str],
) -> str:
    """Compose the command that goes on."""
    words = ["codo", "ablate", str(grid), "--out", str(out)]
    words += ["--jobs", str(jobs)] if jobs else []
    words += ["--executor", executor] if executor != "local" else []
    words += ["--seeds", ",".join(map(str, seeds))] if seeds else []
    words += ["--accept-code-change"] if accept_code_change else []
    words += ["--keep-checkpoints"] if keep_checkpoints else []
    words += [word for option in options for word in ("--executor-option", option)]
    return shlex.join(words)


def _option(text: str) -> tuple[str, Any]:
    import yaml

    name, equals, value = text.partition("=")
    if not equals:
        raise CodoError(f"--executor-option {text}: write name=value, e.g. slurm_partition=gpu")
    try:
        return name, yaml.safe_load(value)
    except (yaml.YAMLError, ValueError):
        raise CodoError(f"--executor-option {text}: the value is not YAML") from None
