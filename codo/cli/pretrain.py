"""`codo pretrain`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import click

from codo.cli.options import config_options, fields_of, read_config
from codo.errors import CodoError


@click.command("pretrain", short_help="Pretrain backbone, FPN and box head without labels.")
@config_options
@click.option("--init", metavar="WEIGHTS", help="Begin with these weights: a run folder or a file [at random].")
@click.option("--out", type=click.Path(path_type=Path), metavar="DIR", help="Run folder to make [runs/pretrain-N].")
@click.option("--resume", type=click.Path(path_type=Path), metavar="RUN", help="Go on with a run that was stopped.")
@click.option("--dry-run", is_flag=True, help="Print config, parts, time and memory; train nothing.")
def pretrain_command(out: Path | None, resume: Path | None, dry_run: bool, **options: Any) -> None:
    """Pretrain backbone, FPN and box head without labels.

    With no arguments: the built-in sample data and the preset `codo-small`. Precedence: preset, --config, flags, --set.
    """
    if resume is not None:
        if out is not None or options["file"] or options["sets"] or options["preset"] or dry_run:
            raise CodoError(
                "--resume takes its config from the run; --epochs, --device and --precision may go with it, and, where "
                "files moved, --foregrounds, --backgrounds and --init"
            )
        changes = fields_of(options)
        if options["jitter"]:
            raise CodoError("--resume: a resumed run keeps its config; leave --jitter out")
        from codo.jobs.pretrain import resume as resume_run
        from codo.runs.hardware import keep_freed_memory

        keep_freed_memory()
        report(resume_run(resume, changes))
        return
    config = read_config(options)
    from codo.jobs.pretrain import dry_run as try_out
    from codo.jobs.pretrain import pretrain
    from codo.runs.hardware import keep_freed_memory

    if dry_run:
        from codo.config import dump_yaml

        click.echo(dump_yaml(config), nl=False)
        report_dry_run(try_out(config))
    else:
        keep_freed_memory()
        report(pretrain(config, out))


def report(result: Any) -> None:
    """Print what a run came to and what to do next."""
    from codo.runs.console import console, duration

    s = result.summary
    console.print(
        f"{result.path}: {s['epochs']} epochs, {s['samples']} samples in {duration(s['seconds'])} "
        f"({s['images_per_s']:.1f} images/s, {s['data_wait']:.0%} waiting for data), loss {s['loss']:.3f}",
        markup=False,
    )
    if s["unreadable_images"]:
        names = ", ".join(s["unreadable_images"][:5])
        count = len(s["unreadable_images"])
        console.print(f"{count} unreadable images were left out or passed over: {names}", markup=False)
    console.print(f"next: codo transfer --weights {shlex.quote(str(result.path))} --data DIR", markup=False)


def report_dry_run(facts: dict[str, Any]) -> None:
    """Print the facts of a dry run."""
    from codo.runs.console import console

    data = facts["data"]
    parts = ", ".join(f"{name} {count / 1e6:.2f}M" for name, count in facts["parameters"].items())
    lines = {
        "fingerprint": facts["fingerprint"],
        "foregrounds": f"{data['foregrounds']}, {data['foreground_images']} images",
        "backgrounds": f"{data['backgrounds']}, {data['background_images']} images"
        if data["background_images"]
        else "none of another data set",
        "losses": ", ".join(f"{weight:g} x {name}" for name, weight in facts["losses"].items()),
        "parameters": parts,
        "queues": facts["queues"],
        "hardware": facts["hardware"],
        "steps": f"{facts['steps']} in {facts['epochs']} epochs, {facts['samples']} samples",
        "time": f"about {facts['estimated_time']} ({facts['seconds_per_step']:.2f} s a step, two steps timed)",
        "memory": f"{facts['peak_memory'] / 2**30:.2f} GiB at the peak of these steps",
    }
    for name, value in lines.items():
        console.print(f"# {name}: {value}", markup=False)
