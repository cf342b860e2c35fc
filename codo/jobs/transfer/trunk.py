"""A frozen trunk (backbone and FPN): it sees each image alone, so that its features can be kept."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codo.backbones import STRIDES, Backbone
from codo.config.transfer import TransferConfig
from codo.jobs.transfer.dataset import DetectionDataset, LabelledImage
from codo.jobs.transfer.features import Features

PADDING = STRIDES[-1]
"""Sides in pixels that torchvision pads a batch to a multiple of."""


class FrozenTrunk:
    """Takes the place of the `forward` of a detector's backbone.

    In a batch, the padding beside a smaller image is seen by the convolutions, so that features depend on the
    neighbours. A trunk that does not learn needs no batch: here each image passes alone, as in evaluation, and the
    maps are padded with zeros afterwards. Features are then a function of the image, and those that were kept are
    the same. What `fpn.extra_blocks` adds (P6 and P7, which learn) is computed from the batch.

    Args:
        detector: with a `Backbone` as backbone.

    Attributes:
        kept: training split or not -> the features of its images; empty where they are computed each time.
        upcoming: kept features of the images that come next; None computes them.
    """

    def __init__(self, detector: Any) -> None:
        self.backbone: Backbone = detector.backbone
        self.kept: dict[bool, Features] = {}
        self.upcoming: list[list[Tensor]] | None = None
        self._sizes: list[tuple[int, int]] = []
        detector.transform.register_forward_hook(self._note_sizes)
        self.backbone.forward = self._forward

    def levels(self, image: Tensor) -> list[Tensor]:
        """Compute the pyramid of one image `(1, 3, H, W)`, normalised, without what is trained on top."""
        fpn: Any = self.backbone.fpn
        self.backbone.body.eval()
        fpn.eval()
        extra, fpn.extra_blocks = fpn.extra_blocks, None
        try:
            with torch.no_grad():
                return list(self.backbone.pyramid(self.backbone.stages(image)).values())
        finally:
            fpn.extra_blocks = extra

    def _note_sizes(self, module: nn.Module, given: Any, result: Any) -> None:
        self._sizes = result[0].image_sizes

    def _forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        if self.upcoming is not None:
            alone = [[level.to(images.device, non_blocking=True) for level in levels] for levels in self.upcoming]
        else:
            alone = [
                self.levels(image[None, :, : padded(height), : padded(width)])
                for image, (height, width) in zip(images, self._sizes, strict=True)
            ]
        levels = [_batch([own[i] for own in alone]) for i in range(len(alone[0]))]
        names = [str(i + len(STRIDES) - len(levels)) for i in range(len(levels))]
        fpn: Any = self.backbone.fpn
        if fpn.extra_blocks is not None:
            levels, names = fpn.extra_blocks(levels, levels, names)
        return OrderedDict(zip(names, levels, strict=True))


def padded(side: int) -> int:
    """Pad a side as torchvision does."""
    return -(-side // PADDING) * PADDING


def is_frozen_trunk(config: TransferConfig, detector: nn.Module) -> bool:
    """Tell whether the features of an image stay the same throughout a run."""
    frozen = {"backbone", "fpn"} <= set(config.freeze) and config.frozen_norm == "population"
    return frozen and isinstance(getattr(detector, "backbone", None), Backbone)


def announce(detector: nn.Module, dataset: DetectionDataset, samples: Sequence[LabelledImage]) -> None:
    """Tell a detector which images come next, so that a frozen trunk takes their kept features."""
    trunk: FrozenTrunk | None = getattr(detector, "trunk", None)
    if trunk is not None:
        kept = trunk.kept.get(dataset.train)
        trunk.upcoming = None if kept is None else [kept[s.position, s.flipped] for s in samples]


def _batch(maps: Sequence[Tensor]) -> Tensor:
    """Join maps `(1, C, h, w)` of several sizes, padded with zeros on the right and below."""
    height, width = (max(m.shape[axis] for m in maps) for axis in (2, 3))
    return torch.cat([F.pad(m, (0, width - m.shape[3], 0, height - m.shape[2])) for m in maps])
