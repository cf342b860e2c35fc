"""Whether a frozen trunk's features are kept, what that takes, and computing them."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from codo.backbones import STRIDES
from codo.config.transfer import TransferConfig
from codo.data.images import ImageError
from codo.jobs.transfer.base import Detector
from codo.jobs.transfer.dataset import DetectionDataset, read_image
from codo.jobs.transfer.features import Features, Kept
from codo.jobs.transfer.trunk import FrozenTrunk, is_frozen_trunk, padded
from codo.runs.caching import cache_root
from codo.runs.console import counter
from codo.runs.hardware import Hardware
from codo.runs.loading import loading
from codo.runs.world import World

GIB = 2**30
FREE_SHARE = 0.9
"""Share of the free disk that features may take."""


@dataclass(frozen=True)
class CachePlan:
    """What is kept of a frozen trunk.

    Attributes:
        gib: what all features take, predicted from the sizes that the annotations give.
        reason: why nothing is kept; None where all is.
    """

    gib: float
    reason: str | None

    def __str__(self) -> str:
        if self.reason is None:
            return f"features: of the frozen trunk, computed once and kept, {self.gib:.2f} GiB on disk"
        return f"features: of the frozen trunk, not kept ({self.reason}), computed each time"


def plan_cache(
    config: TransferConfig,
    detector: Detector,
    sets: tuple[DetectionDataset, DetectionDataset],
    hardware: Hardware,
    world: World,
) -> CachePlan | None:
    """Decide, before anything is computed; None where the trunk is not frozen or its norms follow the batches."""
    if not is_frozen_trunk(config, detector):
        return None
    channels = config.architecture.fpn_channels
    strides = STRIDES[-_levels(detector) :]
    size = 4 if hardware.precision == "fp32" else 2
    total = 0
    for dataset in sets:
        cells = 0
        for image in dataset.coco_images:
            scale = min(
                dataset.short_side / min(image.width, image.height), dataset.long_side / max(image.width, image.height)
            )
            height, width = padded(round(scale * image.height)), padded(round(scale * image.width))
            cells += sum((height // stride) * (width // stride) for stride in strides)
        total += cells * channels * size * len(_mirrored(dataset))
    gib, allowed = total / GIB, config.run.feature_cache
    reason = None
    if len(set(config.detection.min_size)) > 1:
        reason = "detection.min_size has several short sides, drawn anew each time"
    elif world.size > 1:
        reason = "several processes"
    elif gib > allowed:
        reason = f"{gib:.1f} GiB, run.feature_cache allows {allowed:g}" if allowed else "run.feature_cache is 0"
    elif total > FREE_SHARE * _free():
        reason = f"{gib:.1f} GiB, {_free() / GIB:.1f} are free in {cache_root()}"
    return CachePlan(gib, reason)


def freeze_trunk(
    detector: Detector, sets: tuple[DetectionDataset, DetectionDataset], hardware: Hardware, plan: CachePlan
) -> dict[str, Any]:
    """Let a frozen trunk see each image alone, and keep its features where that is planned.

    Args:
        detector: filled, on the hardware's device.
        sets: the training and the validation images; those whose features are kept are not read again.
        hardware: device, precision and workers.
        plan: from `plan_cache`.

    Returns:
        For the summary: `cached`, `reason`, `gib` and `seconds` that it took.
    """
    trunk = FrozenTrunk(detector)
    detector.trunk = trunk
    start = time.monotonic()
    if plan.reason is None:
        for dataset, name in zip(sets, ("training", "validation"), strict=True):
            trunk.kept[dataset.train], dataset.kept = _compute(detector, trunk, dataset, hardware, name)
    taken = sum(features.bytes for features in trunk.kept.values()) / GIB
    return {
        "cached": plan.reason is None,
        "reason": plan.reason,
        "gib": round(taken, 6),
        "seconds": round(time.monotonic() - start, 2),
    }


def _compute(
    detector: Detector, trunk: FrozenTrunk, dataset: DetectionDataset, hardware: Hardware, name: str
) -> tuple[Features, list[Kept]]:
    """Compute the features of every image of a data set, and note what else is known of it."""
    features, known = Features(cache_root() / "features"), []
    loader = DataLoader(Images(dataset), batch_size=None, **hardware.loader_options())
    was_training = detector.training
    detector.eval()  # its transform draws nothing then
    with counter(f"features of the {name} images") as show, loading(loader) as images:
        for row, (image, reason) in enumerate(images):
            known.append(Kept((image.shape[1], image.shape[2]), reason))
            for mirrored in _mirrored(dataset) if reason is None else ():
                with torch.no_grad(), hardware.autocast():
                    seen = image.flip(2) if mirrored else image
                    batch, _ = detector.transform([seen.to(hardware.device).float() / 255])
                    features.add((row, mirrored), trunk.levels(batch.tensors))
            show(row + 1, len(dataset))
    detector.train(was_training)
    features.close()
    return features, known


class Images(Dataset[tuple[torch.Tensor, str | None]]):
    """The pictures alone: `(3, H, W) uint8` and None, or an empty one and why."""

    def __init__(self, dataset: DetectionDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, str | None]:
        dataset = self.dataset
        try:
            pixels = read_image(dataset.coco_images[index], dataset.short_side, dataset.long_side)
        except ImageError as error:
            return torch.zeros(3, 0, 0, dtype=torch.uint8), str(error)
        return torch.from_numpy(pixels.transpose(2, 0, 1).copy()), None


def _mirrored(dataset: DetectionDataset) -> tuple[bool, ...]:
    """List the variants of an image that a data set gives."""
    if not dataset.train or dataset.flip_p == 0:
        return (False,)
    return (False, True) if dataset.flip_p < 1 else (True,)


def _levels(detector: Detector) -> int:
    """Count the levels of the detector's pyramid that are pretrained: P2-P5, or P3-P5."""
    return sum(not isinstance(block, nn.Identity) for block in detector.backbone.fpn.layer_blocks)


def _free() -> int:
    folder = cache_root()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
