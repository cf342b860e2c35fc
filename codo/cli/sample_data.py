"""`codo sample-data`: render the built-in sample data."""

from __future__ import annotations

from pathlib import Path

import click


@click.command(name="sample-data")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--train", default=200, show_default=True, help="Training pictures.")
@click.option("--val", default=60, show_default=True, help="Validation pictures.")
@click.option("--foregrounds", default=600, show_default=True, help="Unlabelled object-centric pictures.")
@click.option("--size", metavar="PX", default=320, show_default=True, help="Long side of a detection picture.")
@click.option("--seed", default=0, show_default=True, help="Another seed, other pictures.")
def sample_data_command(folder: Path, train: int, val: int, foregrounds: int, size: int, seed: int) -> None:
    """Render synthetic sample data into DIR, a new or an empty folder.

    DIR/detection is a COCO-format set, DIR/foregrounds holds unlabelled pictures. It is for trying the tool, not
    for conclusions about methods.
    """
    from codo.data.sample import count_sample_data, generate_sample_data
    from codo.runs.console import counter

    with counter("rendering") as show:
        generate_sample_data(folder, train=train, val=val, foregrounds=foregrounds, size=size, seed=seed, progress=show)
    counts = count_sample_data(folder)
    for split, boxes in counts.boxes.items():
        click.echo(f"{split}: {counts.images[split]} images, {sum(boxes.values())} boxes")
        for name, number in boxes.items():
            click.echo(f"  {number:5}  {name}")
    click.echo(f"foregrounds: {counts.images['foregrounds']} images, no labels")
    click.echo(f"Written to {folder}. Synthetic pictures, for trying the tool only: draw no conclusions from them.")
