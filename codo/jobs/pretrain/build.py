"""From a config to the parts of a run."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from codo.augment import (
    AnchorJitter,
    BoxJitter,
    ColourJitter,
    CropView,
    NoJitter,
    PasteView,
    RatioJitter,
    ViewSampler,
)
from codo.config.pretrain import PretrainConfig
from codo.data.cache import ImagePool
from codo.data.coco import background_paths, data_fingerprint
from codo.data.images import list_images
from codo.data.sample import sample_data
from codo.errors import CodoError
from codo.jobs.pretrain.samples import Background, SampleDataset
from codo.losses import ImageLoss, InstanceLoss, KeyQueue, LevelLoss
from codo.model import AlignedEncoder, MomentumEncoder, StageEncoder, build_encoder
from codo.runs.console import counter, warn
from codo.runs.seed import generator, integer_seed, torch_generator

Loss = ImageLoss | InstanceLoss | LevelLoss

FOREGROUND_DETAIL = 2.25
"""Foregrounds are kept at a short side of at most this many canvases: a crop of a fifth of the image has 1 / sqrt(5) of
its side, and fills at most one canvas."""


@dataclass(frozen=True)
class Sources:
    """Where the images come from.

    Attributes:
        foregrounds: paths.
        backgrounds: paths of the downstream data set's images; empty where the run does not use them.
        names: what to call both, for records.
    """

    foregrounds: list[Path]
    backgrounds: list[Path]
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
    foregrounds, backgrounds = config.data.foregrounds, config.data.backgrounds
    if foregrounds is not None and not Path(foregrounds).is_dir():
        list_images(Path(foregrounds))  # says what is wrong with it, before anything else is looked at
    if foregrounds is None and backgrounds is not None:
        raise CodoError("data.foregrounds: name a folder of images, as backgrounds are named (--foregrounds DIR)")
    if foregrounds is None:
        sample = sample_data(progress=counter("rendering sample data"))
        foregrounds, backgrounds = str(sample / "foregrounds"), str(sample / "detection")
        names = {"foregrounds": "built-in sample data", "backgrounds": "built-in sample data"}
    else:
        names = {"foregrounds": Path(foregrounds).name, "backgrounds": Path(backgrounds or "").name}
    if config.uses_backgrounds and backgrounds is None:
        raise CodoError(
            "data.backgrounds: the images of the data set you will detect on are needed (--backgrounds DIR); "
            "without one, paste on the foregrounds (--set paste.source=self) or turn it off (--no-background)"
        )
    images = list_images(Path(foregrounds))
    if config.data.limit is not None and config.data.limit < len(images):
        drawn = generator("foregrounds", config.seed).permutation(len(images))[: config.data.limit]
        images = [images[i] for i in sorted(drawn)]
    if backgrounds is not None and not config.uses_backgrounds and config.data.backgrounds is not None:
        warn("data.backgrounds is named, and this config pastes nothing on them")
    sources = Sources(
        images,
        background_paths(Path(backgrounds)) if config.uses_backgrounds and backgrounds else [],
        names,
    )
    return sources


def check_enough(foregrounds: int, config: PretrainConfig) -> None:
    """Refuse a data set that does not fill one batch."""
    if foregrounds < config.optim.batch_size:
        raise CodoError(
            f"data.foregrounds: {foregrounds} images do not fill one batch of {config.optim.batch_size}; "
            "add images or lower --batch-size"
        )


def build_dataset(config: PretrainConfig, sources: Sources) -> SampleDataset:
    """Open the images (decoding them once into the cache) and compose the views."""

    def pool(name: str, paths: list[Path], square: int | None = None, short_side: int | None = None) -> ImagePool:
        found = ImagePool.build(
            paths, square=square, short_side=short_side, cache=config.run.cache, progress=counter(f"decoding {name}")
        )
        if found.note:
            warn(f"{name}: {found.note}")
        for file, reason in found.broken[:5]:
            warn(f"{name}: left out {file.name}: {reason}")
        unreadable.update(f"{name}: {file.name}" for file, _ in found.broken)
        return found

    unreadable: set[str] = set()

    foregrounds = pool("foregrounds", sources.foregrounds, short_side=int(FOREGROUND_DETAIL * config.canvas))
    view: PasteView | CropView
    if config.background:
        mix, own, downstream = config.paste.source, None, None
        if mix != "self":
            downstream = pool("backgrounds", sources.backgrounds, square=config.canvas)
        if mix != "downstream":
            own = pool("foregrounds as backgrounds", sources.foregrounds, square=config.canvas)
        background = Background(downstream, own, config.paste.mix_probability)
        paste = config.paste
        view = PasteView(config.canvas, background, paste.crop_area, paste.crop_aspect, paste.patch_side)
    else:
        view = CropView(config.canvas, config.crop.area, config.crop.aspect)
    colour = ColourJitter(**config.colour.model_dump())
    sampler = ViewSampler(view, config.views, build_jitter(config), colour)
    return SampleDataset(foregrounds, sampler, config.seed, unreadable)


def build_jitter(config: PretrainConfig) -> BoxJitter:
    """Build the query's box jitter. A canvas that is the box itself is not jittered."""
    if not config.background:
        return NoJitter()
    jitters: dict[str, Callable[[], BoxJitter]] = {
        "ratio": lambda: RatioJitter(config.jitter.ratio, config.jitter.p, config.jitter.min_iou),
        "anchor": AnchorJitter,
        "none": NoJitter,
    }
    return jitters[config.jitter.mode]()


class Method(nn.Module):
    """Everything that a step changes besides the optimizer: both encoders and the queues.

    Attributes:
        query_encoder: takes the gradient, and is what transfers.
        key_encoder: its moving average.
        losses: name -> loss.
        weights: name -> weight.
        queues: name -> queues of that loss.
    """

    def __init__(self, config: PretrainConfig) -> None:
        super().__init__()
        self.weights = config.loss_weights
        self.bn_groups = config.model.bn_groups
        self.jitter_levels = config.jitter.levels
        with torch.random.fork_rng(devices=[]):  # layers are initialised from torch's global generator
            torch.manual_seed(integer_seed("weights", config.seed))
            self.query_encoder: AlignedEncoder | StageEncoder = encoder_of(config)
        self.key_encoder = MomentumEncoder(self.query_encoder, config.model.key_momentum, self.bn_groups)
        makers: dict[str, Callable[[], Loss]] = {
            "image": lambda: ImageLoss(config.loss.temperature, config.loss.negatives),
            "instance": lambda: InstanceLoss(config.loss.temperature, config.loss.negatives),
            "level": lambda: LevelLoss(config.level_weights, config.loss.temperature, config.loss.negatives),
        }
        self.losses: dict[str, Loss] = {name: makers[name]() for name in self.weights}
        self.queues = nn.ModuleDict()
        if config.loss.negatives != "batch":
            start = torch_generator("queue", config.seed)
            for name, loss in self.losses.items():
                queues = [KeyQueue(config.loss.queue_size, config.model.embedding, start) for _ in range(loss.queues)]
                self.queues[name] = nn.ModuleList(queues)

    def queues_of(self, name: str) -> list[KeyQueue]:
        """List the queues of a loss; none where negatives come from the batch."""
        return [queue for queue in self.queues[name].children() if isinstance(queue, KeyQueue)] if self.queues else []


def encoder_of(config: PretrainConfig) -> AlignedEncoder | StageEncoder:
    """Build the encoder of a config."""
    model = config.model
    return build_encoder(
        model.backbone,
        alignment=config.alignment,
        embeds=config.loss_weights.keys(),
        levels=config.loss.levels,
        fpn_channels=model.fpn_channels,
        box_head_convs=model.box_head_convs,
        box_head_channels=model.box_head_channels,
        box_head_fc=model.box_head_fc,
        projector_hidden=model.projector_hidden,
        embedding=model.embedding,
        roi_sampling_ratio=model.roi_sampling_ratio,
        roi_aligned=model.roi_aligned,
        canonical_size=config.roi_canonical_size,
    )


def build_optimizer(config: PretrainConfig, method: Method) -> torch.optim.Optimizer:
    """Build SGD with Nesterov momentum over the query encoder."""
    return torch.optim.SGD(
        method.query_encoder.parameters(),
        lr=scaled_lr(config),
        momentum=config.optim.momentum,
        weight_decay=config.optim.weight_decay,
        nesterov=config.optim.momentum > 0,
        fused=True,
    )


def scaled_lr(config: PretrainConfig) -> float:
    """Compute the learning rate of this batch size."""
    return config.optim.lr * config.optim.batch_size / 256
