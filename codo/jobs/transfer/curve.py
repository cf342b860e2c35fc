"""What the course of AP over the schedule says, beyond its end: pretraining shows early, and is washed out later."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

REACHED_APS = (1, 2, 5, *range(10, 100, 10))
"""APs, in per cent, of which the summary says when they are reached."""

Point = Mapping[str, Any]
"""An evaluation: `step`, `epoch`, `AP` in per cent (None: nothing to find)."""


def curve_area(curve: Sequence[Point]) -> float | None:
    """Average AP over the schedule: the area under the curve, over its length in steps.

    The curve starts at (step 0, AP 0), before training, goes through every evaluation in straight lines (trapezoid
    rule), and ends at the last evaluation, which is that of the schedule's end. So the area has AP's unit, per cent,
    and is at most the best AP; two runs compare where they evaluate at the same steps.

    Returns:
        None where an evaluation has no AP, or there is none.

    Example:
        >>> curve_area([{"step": 10, "AP": 20.0}, {"step": 20, "AP": 30.0}])
        17.5
    """
    if not curve or any(point["AP"] is None for point in curve):
        return None
    points = [(0, 0.0), *((point["step"], point["AP"]) for point in curve)]
    area = sum((right[0] - left[0]) * (left[1] + right[1]) / 2 for left, right in pairwise(points))
    return area / points[-1][0]


def best_point(curve: Sequence[Point]) -> dict[str, Any] | None:
    """Find the evaluation of the highest AP; of equal ones the last, so that it is the final one where that ties.

    Example:
        >>> best_point([{"step": 3, "epoch": 1.0, "AP": 8.0}, {"step": 6, "epoch": 2.0, "AP": 7.0}])
        {'step': 3, 'epoch': 1.0, 'AP': 8.0}
    """
    found = max((point for point in curve if point["AP"] is not None), key=lambda p: (p["AP"], p["step"]), default=None)
    return None if found is None else {key: found[key] for key in ("step", "epoch", "AP")}


def steps_to_ap(curve: Sequence[Point]) -> dict[str, int]:
    """Tell, of the APs that are reached, at which step: of the first evaluation that has it, nothing interpolated.

    Example:
        >>> steps_to_ap([{"step": 10, "AP": 4.0}, {"step": 20, "AP": 11.0}])
        {'1': 10, '2': 10, '5': 20, '10': 20}
    """
    reached = {
        str(ap): next((p["step"] for p in curve if p["AP"] is not None and p["AP"] >= ap), None) for ap in REACHED_APS
    }
    return {ap: step for ap, step in reached.items() if step is not None}
