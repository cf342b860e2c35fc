"""Schedules by name, and how they scale with the batch."""

from __future__ import annotations

from typing import Any, NamedTuple

REFERENCE_BATCH = 16
"""Batch size that `optim.lr` and the schedules are for (detectron2)."""
REFERENCE_LR = 0.02
"""lr of the schedules at batch 16 (detectron2)."""


class DetectorSchedule(NamedTuple):
    """A schedule at batch 16.

    Attributes:
        iterations: its steps.
        milestones: where lr falls to a tenth, in shares of the schedule.
    """

    iterations: int
    milestones: tuple[float, ...]


SCHEDULES = {
    "1x": DetectorSchedule(90_000, (2 / 3, 8 / 9)),  # detectron2: lr falls after 60k and 80k of 90k
    "2x": DetectorSchedule(180_000, (2 / 3, 8 / 9)),  # twice as long: after 120k and 160k of 180k
    # Ours: short, after 9k and 11k, as MoCo's 24k on VOC after 18k and 22k (from memory).
    "12k": DetectorSchedule(12_000, (3 / 4, 11 / 12)),
}
"""Schedules by name."""
SCHEDULE_WARMUP = 1000
"""Steps of warm-up at batch 16 (detectron2)."""


def schedule_fields(name: str, batch_size: int) -> dict[str, Any]:
    """Scale a schedule to a batch size by the linear rule: as many images, so more steps of a smaller batch.

    `optim.lr` stays that of batch 16: it is scaled where it is used. (Goyal et al., arXiv 1706.02677; detectron2's
    `auto_scale_workers` scales the same quantities.)

    Args:
        name: of `SCHEDULES`.
        batch_size: images a step.

    Returns:
        Dotted fields: length, lr, milestones, warm-up.

    Example:
        >>> schedule_fields("1x", 8)["optim.iterations"]
        180000
    """
    schedule = SCHEDULES[name]
    return {
        "optim.epochs": None,
        "optim.iterations": round(schedule.iterations * REFERENCE_BATCH / batch_size),
        "optim.lr": REFERENCE_LR,
        "optim.milestones": list(schedule.milestones),
        "optim.warmup_iterations": round(SCHEDULE_WARMUP * REFERENCE_BATCH / batch_size),
    }
