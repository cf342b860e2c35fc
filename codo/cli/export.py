"""`codo export`: a run's weights as another library reads them."""

from __future__ import annotations

from pathlib import Path

import click

_FORMATS = ("torchvision", "timm", "detectron2", "mmdetection")


@click.command("export")
@click.argument("run", metavar="RUN", type=click.Path(path_type=Path))
@click.option("--format", type=click.Choice(_FORMATS), required=True, help="The library.")
@click.option(
    "-o",
    "--out",
    metavar="FILE",
    type=click.Path(path_type=Path),
    required=True,
    help="File to write (.pth; .pkl for detectron2); for timm a folder.",
)
@click.option("--force", is_flag=True, help="Overwrite what is there.")
@click.option(
    "--best",
    is_flag=True,
    help="Take best.safetensors, of the highest AP, where there is one, not the end of training.",
)
def export_command(run: Path, format: str, out: Path, force: bool, best: bool) -> None:
    """Write the weights of RUN, a pretraining or transfer run, as another library reads them.

    Printed are the tensors that were written, and the lines that load them there.
    """
    from rich.table import Table

    from codo.export import export_run
    from codo.runs.console import console

    done = export_run(run, format, out, force=force, best=best)
    table = Table("tensors", "written", "e.g.", title=f"{format}: {len(done.left_out)} left out", title_justify="left")
    for group, names in done.groups.items():
        table.add_row(group, str(len(names)), next(iter(names.values()), ""))
    console.print(table)
    if done.left_out:
        console.print(f"left out, as {format} has no place for them: {_few(done.left_out)}", markup=False)
    if done.fresh:
        console.print(f"fresh, as they lie behind what was trained: {_few(done.fresh)}", markup=False)
    for note in done.notes:
        console.print(f"note: {note}", markup=False)
    console.print(f"written to {done.path}; it is loaded so:\n", markup=False)
    console.print(done.usage, markup=False)


def _few(names: list[str]) -> str:
    parts = sorted({name.split(".")[0] if name.count(".") < 2 else ".".join(name.split(".")[:2]) for name in names})
    return f"{len(names)} tensors of {', '.join(parts[:4])}{', ...' if len(parts) > 4 else ''}"
