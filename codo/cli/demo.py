"""`codo demo`."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("demo", short_help="Everything once, on the built-in sample data.")
@click.option("--out", type=click.Path(path_type=Path), default="demo", show_default=True, help="Folder to write to.")
def demo_command(out: Path) -> None:
    """Sample data, preview, a short pretraining, and transfer with and without it; some minutes on two cores.

    Called again, it keeps what is finished and goes on from there.
    """
    from rich.table import Table

    from codo.jobs.demo import demo
    from codo.runs.console import console

    rows = demo(out, lambda line: console.print(line, markup=False))
    table = Table("weights", *(f"AP, epoch {point['epoch']:g}" for point in rows[0]["curve"]))
    for row in rows:
        table.add_row(row["weights"], *(f"{point['AP']:.2f}" for point in row["curve"]))
    console.print(table)
    console.print(
        f"One seed, rendered images, minutes of training: it shows that the tool works, not what the method is worth.\n"
        f"Everything is in {out}: preview.png, the runs, table.md.",
        markup=False,
    )
