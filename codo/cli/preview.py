"""`codo preview`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from codo.cli.options import config_options, read_config


@click.command("preview", short_help="Draw what pretraining will see.")
@config_options
@click.option("--samples", type=click.IntRange(1, 100), default=8, show_default=True, help="Rows of the sheet.")
@click.option(
    "--out", type=click.Path(path_type=Path), default="preview.png", show_default=True, help="PNG file to write."
)
def preview_command(samples: int, out: Path, **options: Any) -> None:
    """Draw what pretraining will see: a contact sheet, one row a sample.

    Foreground, then each query view and the key, each beside its background. Green: the exact box; orange: the jittered
    box that the query pools. A view that is no composite (paste.p) has an empty background.
    """
    config = read_config(options)
    from codo.jobs.pretrain.preview import preview, shown_epoch

    drawn = preview(config, samples, out)
    click.echo(f"wrote {out}: {drawn} samples of epoch {shown_epoch(config)}, seed {config.seed}")
