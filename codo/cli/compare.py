"""`codo compare`: transfer runs side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from codo.cli.told import number

FACTS = (
    *("data", "split", "fraction", "seed", "weights", "fingerprint", "load"),
    *("protocol", "detector", "hardware", "steps"),
)


@click.command("compare", short_help="Put transfer runs side by side; refuse different protocols.")
@click.argument("runs", metavar="RUN RUN ...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--force", is_flag=True, help="Compare runs of different protocols too.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def compare_command(runs: tuple[Path, ...], force: bool, as_json: bool) -> None:
    """Put finished transfer runs side by side: data, weights, protocol, the COCO numbers, errors, AP per class, curve,
    time.

    Each RUN is a run folder, or one that `codo transfer --seeds` made, which stands for all of its runs; means over
    seeds, and differences from the first RUN's, paired by seed, are then shown too. Runs that
    differ in anything but seed, weights, --load and machine are refused, with the fields that differ.
    """
    import json

    from codo.jobs.transfer.compare import compare
    from codo.runs.console import console, warn

    found = compare(runs, force)
    if as_json:
        click.echo(json.dumps(found.as_dict(), indent=2, ensure_ascii=False))
        return
    if found.differing:
        warn(f"different protocols: the runs differ in {', '.join(found.differing)}")
    console.print(_table(found.runs, found.differing))
    if found.over_seeds:
        console.print(_seeds_table(found.over_seeds))


def _seeds_table(metrics: dict[str, list[dict[str, Any]]]) -> Any:
    from rich.markup import escape
    from rich.table import Column, Table

    groups = [entry["group"] for entry in next(iter(metrics.values()))]
    title = "over seeds: mean ± standard deviation (n)"
    if len(groups) > 1:
        title += (
            f"; differences from {groups[0]}, seed by seed: mean, its 95% interval, p of the paired t-test. Seeds of "
            "the transfer: another pretraining may differ by more"
        )
    table = Table(
        "", *(Column(escape(group), overflow="fold") for group in groups), title=escape(title), title_justify="left"
    )

    def cell(entry: dict[str, Any]) -> str:
        if entry["mean"] is None:
            return "-"
        text = f"{entry['mean']:.1f}" + ("" if entry["std"] is None else f" ± {entry['std']:.1f} ({entry['n']})")
        if entry.get("low") is None or entry["p"] is None:
            return text
        pairs = f" ({entry['pairs']} pairs)" if entry["pairs"] < entry["n"] else ""
        found = f"{entry['difference']:+.1f} [{entry['low']:+.1f}, {entry['high']:+.1f}], p {entry['p']:.2g}"
        return f"{text}\n{found}{pairs}"

    for name, entries in metrics.items():
        table.add_row(name.replace("_", " "), *map(cell, entries))
    return table


def _table(runs: list[dict[str, Any]], differing: dict[str, list[Any]]) -> Any:
    from rich.markup import escape
    from rich.table import Column, Table

    from codo.runs.console import duration

    table = Table("", *(Column(escape(run["run"]), overflow="fold") for run in runs))

    def add(name: str, values: list[str]) -> None:
        table.add_row(escape(name), *map(escape, values))

    for key in FACTS:
        add(key, ["-" if run[key] is None else str(run[key]) for run in runs])
    for key, values in differing.items():
        add(f"differs: {key}", [str(value) for value in values])
    groups = {
        "metrics": "{}",
        "mask_metrics": "mask {}",
        "errors": "AP50 lost: {}",
        "mask_errors": "mask AP50 lost: {}",
    }
    for group, label in groups.items():
        for name in dict.fromkeys(name for run in runs for name in run.get(group, {})):
            add(label.format(name), [number(run.get(group, {}).get(name)) for run in runs])
    for name in dict.fromkeys(name for run in runs for name in run["per_class"]):
        add(f"AP of {name}", [number(run["per_class"].get(name)) for run in runs])
    add("curve area", [number(run["curve_area"]) for run in runs])
    add("best AP", ["-" if not run["best"] else f"{run['best']['AP']:.1f} at {run['best']['step']}" for run in runs])
    reached = [run["steps_to_ap"] or {} for run in runs]
    for level in sorted({level for steps in reached for level in steps}, key=int):
        add(f"steps to AP {level}", [str(steps.get(level, "-")) for steps in reached])
    add("training took", [duration(run["train_seconds"]) for run in runs])
    return table
