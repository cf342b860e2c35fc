"""Probing a run: which images it is probed on, and the probes in the course of pretraining."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import torch

from codo.config.pretrain import PretrainConfig
from codo.data.coco import background_paths
from codo.data.shards import Shards
from codo.errors import CodoError
from codo.jobs.pretrain.build import data_folders, trained_foregrounds
from codo.jobs.probe.bench import Bench
from codo.jobs.probe.features import COMMON, Encoder
from codo.jobs.probe.images import ProbeImages, choose_images
from codo.jobs.probe.measure import embed_bench, measure


def probe_images(
    config: PretrainConfig,
    *,
    foregrounds: Path | None = None,
    backgrounds: Path | None = None,
    instances: int | None = None,
    backgrounds_per_instance: int | None = None,
    seed: int = 0,
) -> ProbeImages:
    """Choose the images that a run of this config is probed on.

    Args:
        config: of the pretraining.
        foregrounds: a folder in place of the config's.
        backgrounds: a COCO-format data set or folder in place of the config's.
        instances: see `choose_images`, and so the rest.
        backgrounds_per_instance: likewise.
        seed: of the probe.

    Raises:
        CodoError: as `choose_images`.
    """
    own = config.data.foregrounds
    gone = foregrounds is not None and own is not None and not Path(own).is_dir()
    trained: Collection[Path] | None = None
    pasted: Collection[Path] | None = None
    if gone:
        there = config.data.backgrounds
        backgrounds = backgrounds or (Path(there) if there is not None and Path(there).is_dir() else None)
    else:
        folder, scenes, _ = data_folders(config)
        trained = trained_foregrounds(config, _folder(folder, "foregrounds"))
        pasted = _pasted(config, scenes)
        foregrounds = foregrounds or _folder(folder, "foregrounds")
        backgrounds = backgrounds or (_folder(scenes, "backgrounds") if scenes is not None else None)
    assert foregrounds is not None
    return choose_images(
        foregrounds,
        backgrounds,
        trained=trained,
        pasted=pasted,
        instances=instances,
        backgrounds_per_instance=backgrounds_per_instance,
        seed=seed,
    )


def _pasted(config: PretrainConfig, scenes: Path | Shards | None) -> Collection[Path] | None:
    """List the backgrounds that a run of this config pastes on; None where they are not here or are shards."""
    if not config.uses_backgrounds or scenes is None:
        return ()
    return background_paths(scenes) if isinstance(scenes, Path) and scenes.is_dir() else None


def _folder(place: Path | Shards, name: str) -> Path:
    if isinstance(place, Shards):
        raise CodoError(f"probes look at folders, and the run's {name} are shards; name a folder with --{name} DIR")
    return place


def check_probes(config: PretrainConfig) -> None:
    """Refuse a run whose `run.probe_every` cannot be met, before its images are decoded."""
    if config.run.probe_every:
        try:
            probe_images(config)
        except CodoError as error:
            raise CodoError(f"run.probe_every: {error}; leave it at 0") from error


class EpochProbe:
    """Probes the query encoder every few epochs, on fewer images than `codo probe` takes.

    Args:
        config: of the pretraining.
    """

    INSTANCES, BACKGROUNDS = 32, 6

    def __init__(self, config: PretrainConfig) -> None:
        images = probe_images(config)
        few = replace(
            images,
            instances=min(images.instances, self.INSTANCES),
            backgrounds_per_instance=min(images.backgrounds_per_instance, self.BACKGROUNDS),
        )
        self.bench = Bench.build(few, config.canvas)

    def measure(self, encoder: Encoder, device: torch.device) -> dict[str, float]:
        """Measure the representation that every method has: `probe/NAME` -> value."""
        probes = measure(embed_bench(encoder, self.bench, device, [COMMON]), self.bench)
        return {f"probe/{name}": value for name, value in probes.values.items()}
