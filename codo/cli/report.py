"""`codo report`."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("report", short_help="Write a grid's report anew from its results.json.")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--reference", metavar="ROW", help="Compare to this row.  [default: the grid's reference]")
@click.option("--metric", metavar="NAME", help="Decide by AP, AP75, AR100, curve_area, ...  [default: the grid's]")
def report_command(folder: Path, reference: str | None, metric: str | None) -> None:
    """Write the report of the grid in FOLDER anew, from its results.json; nothing is run.

    While `codo ablate` runs, it is of the jobs that are done.

    report.html (one file, works offline), results.csv, curves.csv, differences.csv, table.md, table.tex (booktabs), and
    the figures as PNG and SVG. What the verdicts mean: docs/report.md.
    """
    from codo.jobs.ablate.report import FILES, terminal_table, write_report
    from codo.jobs.ablate.results import Results
    from codo.runs.console import console

    results = Results.read(folder / "results.json").asked(reference, metric)
    write_report(folder, results)
    console.print(terminal_table(results))
    console.print(f"wrote {folder}: {', '.join(FILES)}, figures/", markup=False)
