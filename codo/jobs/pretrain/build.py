"""From a config to the images and the samples of a run."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codo.augment import (
    AnchorJitter,
    BoxJitter,
    ColourJitter,
    CropView,
    MixedView,
    NoJitter,
    PasteView,
    RatioJitter,
    ViewSampler,
)
from codo.config.pretrain import PretrainConfig
from codo.config.sections import Part
from codo.data.cache import ImagePool
from codo.data.coco import background_paths, find_split, split_paths
from codo.data.files import ImageFiles, ImageSet, ImageSource, ShardImages, data_fingerprint
from codo.data.images import list_images
from codo.data.sample import sample_data
from codo.data.shards import Shards, is_shards, list_shards, place_of
from codo.errors import CodoError
from codo.jobs.pretrain.samples import Background, Readable, SampleDataset
from codo.parts import Parts, make
from codo.runs.console import counter, say, warn
from codo.runs.seed import generator

FOREGROUND_DETAIL = 2.25
"""Foregrounds are kept at a short side of at most this many canvases: a crop of a fifth of the image has 1 / sqrt(5) of
its side, and fills at most one canvas. More where crops may be smaller."""

BACKGROUND_ASPECT = (3 / 4, 4 / 3)
"""Bounds of the width / height of a background's crop (MoCo v2's)."""


@dataclass(frozen=True)
class Sources:
    """Where the images come from.

    Attributes:
        foregrounds: the images.
        backgrounds: those of the downstream data set's images; empty where the run does not use them.
        names: what to call both, for records.
    """

    foregrounds: ImageSet[ImageSource]
    backgrounds: ImageSet[ImageSource]
    names: dict[str, str]

    @property
    def fingerprint(self) -> str:
        """Name the data: 16 hex digits."""
        parts = [data_fingerprint(paths) if paths else "" for paths in (self.foregrounds, self.backgrounds)]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]

    def record(self) -> dict[str, str | int]:
        """Describe the data for the run folder."""
        return {
            **self.names,
            "foreground_images": len(self.foregrounds),
            "background_images": len(self.backgrounds),
            "fingerprint": self.fingerprint,
        }


def find_sources(config: PretrainConfig) -> Sources:
    """List the images of a config; the built-in sample data where it names none.

    Args:
        config: of the pretraining.

    Raises:
        CodoError: a folder is missing or empty, or backgrounds are needed and not named.
    """
    foregrounds, backgrounds, names = data_folders(config)
    if config.uses_backgrounds and backgrounds is None:
        raise CodoError(
            "data.backgrounds: the images of the data set you will detect on are needed (--backgrounds DIR); "
            "without one, paste on the foregrounds (--set paste.source=self) or turn it off (--no-background)"
        )
    if config.run.probe_every and (isinstance(foregrounds, Shards) or isinstance(backgrounds, Shards)):
        raise CodoError("run.probe_every: probes look at folders of images, these are shards; leave it at 0")
    images: ImageSet[ImageSource]
    scenes: ImageSet[ImageSource] = ImageFiles.of([])
    if isinstance(foregrounds, Shards):
        images = _in_shards(foregrounds, "foregrounds")
        images = images.take(_drawn(config, len(images))) if config.data.limit is not None else images
    else:
        images = trained_foregrounds(config, foregrounds)
    if config.uses_backgrounds and backgrounds is not None:
        if isinstance(backgrounds, Shards):
            scenes = _in_shards(backgrounds, "backgrounds")
        else:
            scenes = background_paths(backgrounds)
            if find_split(backgrounds, "train") is None:
                left = len(split_paths(backgrounds, "val"))
                count = f"all but the {left} validation images, {len(scenes)}" if left else f"all {len(scenes)} images"
                say(f"data.backgrounds: no instances_train.json in {backgrounds}: a plain folder, {count}")
    if backgrounds is not None and not config.uses_backgrounds and config.data.backgrounds is not None:
        warn("data.backgrounds is named, and this config pastes nothing on them")
    return Sources(images, scenes, names)


def data_folders(config: PretrainConfig) -> tuple[Path | Shards, Path | Shards | None, dict[str, str]]:
    """Find the foregrounds and backgrounds, and what to call them; the sample data where none is named.

    Raises:
        CodoError: backgrounds are named and no foregrounds, or the folder of foregrounds cannot be used.
    """
    foregrounds, backgrounds = config.data.foregrounds, config.data.backgrounds
    if foregrounds is not None and not is_shards(foregrounds) and not Path(foregrounds).is_dir():
        list_images(Path(foregrounds))  # says what is wrong with it, before anything else is looked at
    if foregrounds is None and backgrounds is not None:
        raise CodoError("data.foregrounds: name a folder of images, as backgrounds are named (--foregrounds DIR)")
    if foregrounds is None:
        with counter("rendering sample data") as show:
            sample = sample_data(progress=show)
        names = {"foregrounds": "built-in sample data", "backgrounds": "built-in sample data"}
        return sample / "foregrounds", sample / "detection", names
    place = place_of(foregrounds)
    scenes = place_of(backgrounds) if backgrounds is not None else None
    return place, scenes, {"foregrounds": place.name, "backgrounds": scenes.name if scenes is not None else ""}


def trained_foregrounds(config: PretrainConfig, folder: Path) -> ImageFiles:
    """List the images of a folder that a run of this config trains on: all, or those that `data.limit` draws."""
    images = list_images(folder)
    return images.take(_drawn(config, len(images))) if config.data.limit is not None else images


def _in_shards(place: Shards, name: str) -> ShardImages:
    with counter(f"shards of the {name}") as show:
        return list_shards(place.place, show)


def _drawn(config: PretrainConfig, count: int) -> list[int]:
    """Draw `data.limit` of `count` images."""
    return sorted(generator("foregrounds", config.seed).permutation(count)[: config.data.limit])


def check_enough(foregrounds: int, config: PretrainConfig) -> None:
    """Refuse a data set that does not fill one batch."""
    if foregrounds < config.optim.batch_size:
        raise CodoError(
            f"data.foregrounds: {foregrounds} images do not fill one batch of {config.optim.batch_size}; "
            "add images or lower --batch-size"
        )


def build_dataset(config: PretrainConfig, sources: Sources, parts: Parts | None = None) -> SampleDataset:
    """Open the images (decoding them once into the cache) and compose the views."""
    parts = parts or Parts()

    def pool(
        name: str, images: ImageSet[ImageSource], *, square: int | None = None, short_side: int | None = None
    ) -> ImagePool:
        with counter(f"decoding {name}") as show:
            found = ImagePool.build(
                images,
                square=square,
                short_side=short_side,
                scaled_decode=config.data.scaled_decode,
                cache=config.run.cache,
                progress=show,
                say=lambda text: say(f"cache of the {name}: {text}"),
            )
        if found.note:
            warn(f"{name}: {found.note}")
        for file, (_, reason) in list(zip(found.broken_names, found.broken, strict=True))[:5]:
            warn(f"{name}: left out {file}: {reason}")
        if len(found.broken) > 5:
            warn(f"{name}: left out {len(found.broken) - 5} more that cannot be read")
        unreadable.update(f"{name}: {file}" for file in found.broken_names)
        return found

    unreadable: set[str] = set()
    counts: dict[str, int] = {}
    skipped: list[str] = []

    areas = [config.paste.crop_area] if config.background else [config.crop.area]
    if config.mixes_views:
        areas.append(config.crop.area)
    smallest = min(low for low, _ in areas)
    detail = config.canvas * max(FOREGROUND_DETAIL, 1 / math.sqrt(smallest))
    foregrounds = pool("foregrounds", sources.foregrounds, short_side=int(detail))
    cropped = CropView(config.canvas, config.crop.area, config.crop.aspect)
    view: PasteView | CropView | MixedView = cropped
    if config.background:
        paste, own, downstream, crop = config.paste, None, None, None
        square: int | None = config.canvas
        short_side = None
        if paste.background_crop is not None:
            crop = CropView(config.canvas, (paste.background_crop, 1.0), BACKGROUND_ASPECT)
            # The smallest square crop has one canvas's side, where the image has the pixels for it.
            square, short_side = None, math.ceil(config.canvas / math.sqrt(paste.background_crop))
        if paste.source != "self":
            downstream = pool("backgrounds", sources.backgrounds, square=square, short_side=short_side)
            counts["backgrounds"] = len(downstream)
        if paste.source != "downstream":
            if short_side is not None and short_side <= detail:
                own = foregrounds
            else:
                own = pool("foregrounds as backgrounds", sources.foregrounds, square=square, short_side=short_side)
            counts["foregrounds as backgrounds"] = len(own)
        background = Background(
            Readable(downstream, "backgrounds", skipped) if downstream is not None else None,
            Readable(own, "foregrounds", skipped) if own is not None else None,
            paste.mix_probability,
            crop,
            paste.backgrounds_per_epoch,
            config.seed,
        )
        view = PasteView(
            config.canvas,
            background,
            paste.crop_area,
            paste.crop_aspect,
            paste.patch_side,
            paste.soft_edge,
            paste.background_candidates,
        )
        if config.mixes_views:
            view = MixedView(view, cropped, paste.p, paste.warmup_epochs)
    colour = ColourJitter(**config.colour.model_dump(exclude={"exact"}))
    augmenters = [*(_callable(part) for part in config.augment), *parts.augmenters]
    jitter = parts.jitter or build_jitter(config)
    # A box that is the canvas itself is not jittered, but by a user's own.
    users = parts.jitter is not None or config.jitter.custom is not None
    images = Readable(foregrounds, "foregrounds", skipped)
    sampler = ViewSampler(view, config.views, jitter, colour, augmenters, images, jitter_crops=users)
    return SampleDataset(images, sampler, config.seed, unreadable, counts)


def _callable(part: Part) -> Any:
    """Make a user's own part that is called for each view."""
    if not callable(found := make(part)):
        raise CodoError(f"{part.path}: must give what can be called on a view, this gives a {type(found).__name__}")
    return found


def build_jitter(config: PretrainConfig) -> BoxJitter:
    """Build the query's box jitter."""
    if config.jitter.custom is not None:
        return _callable(config.jitter.custom)
    jitters: dict[str, Callable[[], BoxJitter]] = {
        "ratio": lambda: RatioJitter(config.jitter.ratio, config.jitter.p, config.jitter.min_iou),
        "anchor": AnchorJitter,
        "none": NoJitter,
    }
    return jitters[config.jitter.mode]()
