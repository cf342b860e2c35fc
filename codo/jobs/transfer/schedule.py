"""How long a detector trains, at which learning rate, and what of it: the plan of a run, in steps."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from codo.config.schedules import REFERENCE_BATCH
from codo.config.transfer import TransferConfig, TransferOptimSection
from codo.jobs.transfer.dataset import steps_per_epoch
from codo.jobs.transfer.norms import parameter_counts

WARMUP_START = 1e-3
"""Share of lr at which the warm-up begins (detectron2)."""


def learning_rate(optim: TransferOptimSection, step: int, total: int) -> float:
    """Compute lr of a step (from 0): linear in the batch size, warmed up, a tenth after each milestone."""
    rate = peak_rate(optim) * 0.1 ** sum(step >= milestone for milestone in milestones(optim, total))
    if step < optim.warmup_iterations:
        rate *= WARMUP_START + (1 - WARMUP_START) * step / optim.warmup_iterations
    return rate


def peak_rate(optim: TransferOptimSection) -> float:
    """Scale `optim.lr` to the batch size, linearly."""
    return optim.lr * optim.batch_size / REFERENCE_BATCH


def milestones(optim: TransferOptimSection, total: int) -> list[int]:
    """Count the steps after which lr falls to a tenth."""
    return [round(share * total) for share in optim.milestones]


def total_steps(optim: TransferOptimSection, per_epoch: int) -> int:
    """Count the steps of the schedule."""
    return optim.iterations if optim.iterations is not None else (optim.epochs or 0) * per_epoch


def evaluation_interval(optim: TransferOptimSection, per_epoch: int) -> int:
    """Count the steps between two evaluations."""
    return max(1, round(optim.eval_every * per_epoch))


def count_evaluations(optim: TransferOptimSection, per_epoch: int) -> int:
    """Count the evaluations of the schedule; the last is at its end."""
    return math.ceil(total_steps(optim, per_epoch) / evaluation_interval(optim, per_epoch))


def same_so_far(a: TransferOptimSection, b: TransferOptimSection, per_epoch: int, done: int) -> bool:
    """Tell whether two schedules give the first `done` steps the same lr."""
    totals = total_steps(a, per_epoch), total_steps(b, per_epoch)
    return all(learning_rate(a, step, totals[0]) == learning_rate(b, step, totals[1]) for step in range(done))


def parts_of(count: int, accumulate: int) -> list[slice]:
    """Split a batch of `count` into parts whose gradients are added up, the last one possibly smaller.

    Example:
        >>> parts_of(5, 2)
        [slice(0, 3, None), slice(3, 6, None)]
    """
    size = math.ceil(count / accumulate)
    return [slice(first, first + size) for first in range(0, count, size)]


def describe_training(config: TransferConfig, detector: nn.Module, images: int) -> dict[str, Any]:
    """Say everything that is trained, and how: for the start of a run and its summary.

    Args:
        config: of the run.
        detector: as `build_detector` gives it.
        images: how many are trained on.
    """
    optim, per_epoch = config.optim, steps_per_epoch(images, config.optim.batch_size)
    total = total_steps(optim, per_epoch)
    groups = parameter_counts(detector)
    return {
        "norm": config.norm,
        "frozen": [*config.freeze, *([f"stages 1-{config.freeze_stages}"] if config.freeze_stages else [])],
        "frozen_norm": config.frozen_norm if config.freeze or config.freeze_stages else None,
        "groups": groups,
        "trained_parameters": sum(group["trained"] for group in groups.values()),
        "frozen_parameters": sum(group["frozen"] for group in groups.values()),
        "steps": total,
        "steps_per_epoch": per_epoch,
        "batch_size": optim.batch_size,
        "accumulate": optim.accumulate,
        "lr": optim.lr,
        "peak_lr": peak_rate(optim),
        "warmup_steps": optim.warmup_iterations,
        "milestones": milestones(optim, total),
        "evaluation_every": evaluation_interval(optim, per_epoch),
    }
