"""`codo probe`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from codo.errors import CodoError

_FOLDER = click.Path(path_type=Path)


@click.command("probe", short_help="Measure a pretrained encoder without labels or a detector.")
@click.argument("run", metavar="RUN|none")
@click.option("--foregrounds", type=_FOLDER, metavar="DIR", help="Object-centric images.  [default: the run's]")
@click.option("--backgrounds", type=_FOLDER, metavar="DIR", help="COCO-format set or folder.  [default: the run's]")
@click.option(
    "--foregrounds-manifest", "manifest", type=_FOLDER, metavar="CSV", help="Columns file and label, for kNN."
)
@click.option("--instances", type=click.IntRange(min=2), metavar="N", help="Foregrounds.  [default: 64 or all]")
@click.option("--backgrounds-per-instance", type=click.IntRange(min=2), metavar="M", help="[default: 8 or all]")
@click.option(
    "--knn-images", type=click.IntRange(min=2), default=1000, show_default=True, help="Labelled images at most."
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Draws images and boxes.")
@click.option("--canvas", type=int, metavar="PIXELS", help="Side of a composite.  [default: the run's]")
@click.option("--device", default="auto", metavar="NAME", help="auto, cpu, cuda, cuda:1, mps.")
@click.option("--preset", metavar="NAME", help="With none: whose untrained encoder.")
@click.option("--config", "file", type=_FOLDER, metavar="FILE", help="With none: likewise, from YAML.")
@click.option("--set", "sets", metavar="FIELD=VALUE", multiple=True, help="With none: set any config field.")
@click.option("--out", type=_FOLDER, metavar="FILE.json", help="Write the figures here.")
@click.option("--sheet", type=_FOLDER, metavar="FILE.png", help="Draw queries and their nearest neighbours.")
def probe_command(
    run: str,
    preset: str | None,
    file: Path | None,
    sets: tuple[str, ...],
    out: Path | None,
    **options: Any,
) -> None:
    """Measure what the embeddings of a finished pretraining RUN are worth, without labels or a detector.

    `none` measures the untrained encoder of a preset or config instead: the reference for all others.
    """
    if out is not None and out.suffix.lower() != ".json":
        raise CodoError(f"--out {out}: the figures are JSON, name it {out.with_suffix('.json')}")
    config = None
    if run == "none":
        from codo.config import load_pretrain_config

        folders = {f"data.{name}": str(options[name]) for name in ("foregrounds", "backgrounds") if options[name]}
        config = load_pretrain_config(preset=preset, file=file, flags=folders, sets=sets)
    elif preset or file or sets:
        raise CodoError("--preset, --config and --set go with none: a run has its own config")
    from codo.jobs.probe.run import probe
    from codo.runs.files import check_place, write_json

    def told(found: dict[str, Any]) -> None:
        try:
            if out is not None:
                write_json(out, found)
        finally:
            _print_probe(found)

    if out is not None:
        check_place(out)
    probe(None if run == "none" else Path(run), config=config, on_found=told, **options)


def _print_probe(found: dict[str, Any]) -> None:
    from codo.jobs.probe.table import common_table, other_table
    from codo.runs.console import console

    settings = found["settings"]
    held_out = "held out" if found["held_out"] else "NOT held out: the run may have seen some"
    console.print(
        f"{settings['weights']}: {settings['instances']} instances ({settings['foregrounds']}) on "
        f"{settings['backgrounds_per_instance']} backgrounds ({settings['backgrounds']}), {held_out}; "
        f"images {settings['images']}, canvas {settings['canvas']}",
        markup=False,
    )
    console.print(common_table(found))
    console.print(other_table(found))
    for name, meaning in settings["representations"].items():
        console.print(f"{name}: {meaning}", markup=False)
