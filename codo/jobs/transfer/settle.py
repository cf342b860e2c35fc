"""Statistics for batch norms that are frozen before anything has learnt them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from codo.jobs.transfer.base import Detector
from codo.jobs.transfer.caching import Images
from codo.jobs.transfer.dataset import DetectionDataset
from codo.jobs.transfer.evaluate import to_input
from codo.jobs.transfer.norms import batch_norms
from codo.model.statistics import modes_kept, renewed
from codo.runs.hardware import Hardware
from codo.weights.coverage import fresh_modules

SETTLE_IMAGES = 128
"""Training images that statistics are taken from, at most (ours)."""

SETTLE_BATCH = 8
"""Images a batch of them (ours)."""


def fresh_norms(detector: Detector, groups: dict[str, dict[str, Any]]) -> list[_BatchNorm]:
    """Find the batch norms that keep statistics that nothing has learnt: a mean of 0 and a variance of 1.

    Args:
        detector: as `build_detector` gives it.
        groups: what was loaded, as coverage.json says.
    """
    fresh = fresh_modules(detector, groups)
    return [
        norm
        for name, norm in batch_norms(detector).items()
        if name in fresh and any(name == held or name.startswith(f"{held}.") for held in detector.held)
        if isinstance(norm, _BatchNorm) and norm.track_running_stats
    ]


def settle_norms(
    detector: Detector, groups: dict[str, dict[str, Any]], dataset: DetectionDataset, hardware: Hardware
) -> int:
    """Give frozen batch norms that nothing has learnt the statistics that their random weights have on images.

    With a mean of 0 and a variance of 1 they normalise nothing: features all but vanish with depth, and the baseline
    would be weaker than random weights are.

    Args:
        detector: on the hardware's device; the running statistics of these norms are replaced, nothing else.
        groups: what was loaded, as coverage.json says.
        dataset: the training images, of which the first `SETTLE_IMAGES` that can be read are looked at.
        hardware: device and precision.

    Returns:
        How many norms there were.
    """
    norms = fresh_norms(detector, groups)
    if not norms:
        return 0

    def follow(module: nn.Module, given: Any) -> None:
        for norm in norms:
            norm.train()

    with modes_kept(detector), renewed(norms), torch.no_grad(), hardware.autocast():
        detector.eval()
        hook = detector.register_forward_pre_hook(follow)  # after the one that holds them
        try:
            readable = islice(_readable(dataset), SETTLE_IMAGES)
            while batch := list(islice(readable, SETTLE_BATCH)):
                detector([to_input(image, hardware.device) for image in batch])
        finally:
            hook.remove()
    return len(norms)


def _readable(dataset: DetectionDataset) -> Iterator[torch.Tensor]:
    pictures = Images(dataset)
    for index in range(len(pictures)):
        image, reason = pictures[index]
        if reason is None:
            yield image
