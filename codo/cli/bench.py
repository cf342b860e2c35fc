"""`codo bench`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from codo.cli.options import config_options, read_config
from codo.errors import CodoError

if TYPE_CHECKING:
    from codo.config import PretrainConfig, TransferConfig

FULL_CANVAS = 192
"""Pixels from which a pretraining counts as one at full scale, whose detector sees large images."""


@click.command("bench", short_help="Measure what limits a config here: loader, step or evaluation.")
@config_options
@click.option(
    "--data", metavar="DIR", help="COCO-format set to evaluate on.  [default: --backgrounds, if it has labels]"
)
@click.option(
    "--transfer-preset",
    metavar="NAME",
    help="Of the detector.  [default: 1x for a canvas of 192 px or more, else small]",
)
@click.option("--transfer-config", metavar="FILE", type=click.Path(path_type=Path), help="Its settings as YAML.")
@click.option("--transfer-set", "transfer_sets", metavar="A.B=C", multiple=True, help="Any of its fields; repeatable.")
@click.option("--evaluation/--no-evaluation", default=True, help="Measure an evaluation too, or not.")
@click.option("--json", "json_file", metavar="FILE", type=click.Path(path_type=Path), help="Write all figures here.")
def bench_command(
    data: str | None,
    transfer_preset: str | None,
    transfer_config: Path | None,
    transfer_sets: tuple[str, ...],
    evaluation: bool,
    json_file: Path | None,
    **options: Any,
) -> None:
    """Measure what limits a config on this machine: loader, step or evaluation; under two minutes for a small one.

    Takes the settings of `codo pretrain`. Trains on its images and writes nothing but the cache (and --json).
    """
    if json_file is not None and json_file.is_dir():
        raise CodoError(f"--json {json_file} is a folder; name a file")
    if not evaluation and (data or transfer_preset or transfer_config or transfer_sets):
        raise click.UsageError("--no-evaluation leaves the detector out; its settings do not go with it")
    config = read_config(options)
    transfer = None
    if evaluation:
        transfer = detector_config(config, data, transfer_preset, transfer_config, transfer_sets)

    from codo.jobs.bench.run import bench
    from codo.runs.console import console, stderr
    from codo.runs.files import write_json

    found = bench(config, transfer, say=lambda text: stderr.print(f"measuring {text}", markup=False))
    for name, text in lines(found).items():
        console.print(f"{name:<12}{text}", markup=False)
    console.print(found["sentence"], markup=False)
    if found["data_wait"] and found["limits"] != "loader":
        console.print(found["data_wait"], markup=False)
    if json_file is not None:
        write_json(json_file, {"config": config.model_dump(mode="json"), **found})


def detector_config(
    config: PretrainConfig, data: str | None, preset: str | None, file: Path | None, sets: tuple[str, ...]
) -> TransferConfig:
    """Compose the settings of the detector that the pretrained weights would go to."""
    from codo.config.sections import ArchitectureSection
    from codo.jobs.transfer import load_transfer_config

    own = {name: getattr(config.model, name) for name in ArchitectureSection.model_fields}
    if preset is None and file is None:
        preset = "1x" if config.canvas >= FULL_CANVAS else "small"
    root = data or (config.data.backgrounds if _labelled(config.data.backgrounds) else None)
    run = {f"run.{name}": getattr(config.run, name) for name in ("device", "precision", "workers", "threads")}
    flags = {f"architecture.{name}": value for name, value in own.items()} | run
    return load_transfer_config(preset=preset, file=file, flags={"data.root": root, **flags}, sets=sets)


def _labelled(folder: str | None) -> bool:
    """Tell whether a folder is a COCO-format set that a detector can be evaluated on."""
    from codo.data.coco import find_splits

    if folder is None:
        return False
    try:
        find_splits(Path(folder))
    except CodoError:
        return False
    return True


def lines(found: dict[str, Any]) -> dict[str, str]:
    """Say all figures, a line each."""
    about, peak, loader, step, both = (found[name] for name in ("machine", "peaks", "loader", "step", "together"))
    images = "from the cache" if loader["cached"] else "decoded at each access"
    said = {
        "machine": f"{about['processor']}, {about['cores']} cores, load {about['load']}; {found['hardware']}",
        "peaks": f"{peak['fp32_gflops']:.0f} GFLOP/s in fp32, {peak['bf16_gflops']:.0f} in bf16; "
        f"copies {peak['copy_gb_s']:.1f} GB/s",
        "loader": f"{loader['images_per_s']:.1f} images/s ({loader['views_per_s']:.0f} views/s), {images}, "
        f"{loader['workers']} workers",
        "step": f"{step['images_per_s']:.1f} images/s, {step['seconds']:.3g} s a step; {step['gflops']:.0f} GFLOP/s, "
        f"{step['peak_share']:.0%} of the {step['peak']} peak; EMA {step['ema_share']:.1%}, queue "
        f"{step['queue_share']:.1%}, loss {step['loss_share']:.1%} of it",
        "together": f"{both['images_per_s']:.1f} images/s, {both['data_wait']:.0%} of the time waiting for data",
    }
    evaluation = found["evaluation"]
    if evaluation is not None:
        said["evaluation"] = (
            f"{evaluation['images_per_s']:.1f} images/s and {evaluation['metrics_s']:.2g} s of metrics: "
            f"{evaluation['seconds']:.1f} s for {evaluation['images']} images of {evaluation['data']} "
            f"({evaluation['detector']}, {evaluation['sides'][0]}-{evaluation['sides'][1]} px)"
        )
    return said
