"""Compute a difference that no report has from the tables beside the results, seed by seed.

    python experiments/small/difference.py experiments/results/repeated/results.csv --of CoDo --less random --metric AP

Several rows on a side: their mean. Several files: seeds that all have are averaged over the files, others are added.
"""

from __future__ import annotations

import csv
import statistics
from pathlib import Path

import click

from codo.errors import CodoError
from codo.jobs.ablate.statistics import of_differences

AT = " @ "
"""Between a row and its protocol."""

OR = " | "
"""Between the names that a row has in different files."""


def read(file: Path, side: str, metric: str, setting: str | None) -> dict[int, float]:
    """Read seed -> value of a row.

    Args:
        file: a CSV of `codo report`.
        side: `ROW`, `ROW | NAME ELSEWHERE`, `ROW @ PROTOCOL`.
        metric: the name of a column.
        setting: of the column of this name, where the table has one.

    Raises:
        CodoError: there is no such column or row, or more than one value for a seed.
    """
    rows, _, protocol = side.partition(AT)
    found: dict[int, float] = {}
    with file.open(newline="") as lines:
        for line in csv.DictReader(lines):
            if metric not in line:
                raise CodoError(f"{file}: no column {metric}; there are {', '.join(line)}")
            if line["row"] not in rows.split(OR) or line.get("setting", setting) != setting or not line[metric]:
                continue
            if protocol in ("", line["protocol"]):
                seed = int(line["seed"])
                if seed in found:
                    raise CodoError(f"{file}: more than one value of {rows} for seed {seed}; add '{AT}PROTOCOL'")
                found[seed] = float(line[metric])
    if not found:
        of = f" with --setting {setting}" if setting is not None else ""
        raise CodoError(f"{file}: no values of {side}{of}; where the table has a column `setting`, --setting is needed")
    return found


def difference(
    files: list[Path], plus: list[str], minus: list[str], metric: str, setting: str | None
) -> dict[int, float]:
    """Compute the mean of the rows `plus` less the mean of the rows `minus`, by seed; of seeds that all rows have."""
    by_seed: dict[int, list[float]] = {}
    for file in files:
        sides = [[read(file, row, metric, setting) for row in side] for side in (plus, minus)]
        for seed in sorted(set.intersection(*(set(row) for side in sides for row in side))):
            means = [statistics.fmean(row[seed] for row in side) for side in sides]
            by_seed.setdefault(seed, []).append(means[0] - means[1])
    return {seed: statistics.fmean(values) for seed, values in by_seed.items()}


@click.command(help=__doc__)
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--of", "plus", multiple=True, required=True, metavar="ROW[ @ PROTOCOL]")
@click.option("--less", "minus", multiple=True, required=True, metavar="ROW[ @ PROTOCOL]")
@click.option("--metric", default="curve_area", show_default=True)
@click.option("--setting", help="Of tables that have this column.")
@click.option("--seeds", help="These alone, e.g. 1,2,3.")
@click.option("--digits", default=2, show_default=True, type=click.IntRange(0, 9))
def main(
    files: tuple[Path, ...],
    plus: tuple[str, ...],
    minus: tuple[str, ...],
    metric: str,
    setting: str | None,
    seeds: str | None,
    digits: int,
) -> None:
    """Print the mean difference, its 95% interval and p of the paired t-test, neither corrected, and the seeds."""
    try:
        found = difference([*files], [*plus], [*minus], metric, setting)
    except CodoError as error:
        raise click.UsageError(str(error)) from None
    if seeds is not None:
        found = {seed: value for seed, value in found.items() if str(seed) in seeds.split(",")}
    if not found:
        raise click.UsageError("the rows have no seed in common")
    told = of_differences("", "", found, {})
    interval = "" if told.low is None or told.high is None else f" [{told.low:.{digits}f}, {told.high:.{digits}f}]"
    p = "" if told.p is None else ", p < 0.001" if told.p < 0.001 else f", p = {told.p:.3f}"
    values = ", ".join(f"{value:+.{digits}f}" for _, value in sorted(found.items()))
    click.echo(f"{told.mean:+.{digits}f}{interval}{p}, n = {told.n}: {values}")


if __name__ == "__main__":
    main()
