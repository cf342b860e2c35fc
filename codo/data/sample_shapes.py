"""Silhouettes of the sample data: closed outlines, each drawn anew from a generator, so that no two are alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]
"""An outline `(N, 2)`, xy; after `silhouette` its centre is the origin and its farthest point at distance 1."""

OUTLINE_POINTS = 160


def silhouette(name: str, rng: np.random.Generator) -> Points:
    """Draw one outline of the family `name`: proportions, corner rounding, bend, stretch and turn vary.

    Args:
        name: a key of `SHAPES`.
        rng: where all chance comes from.

    Returns:
        `(160, 2)` points, evenly spaced along the outline, within the unit circle.
    """
    points = _rounded(_evenly_spaced(SHAPES[name](rng)), rng.uniform(0.6, 2.6))
    points = points + rng.uniform(0.0, 0.06) * np.sin(rng.uniform(1.5, 3.5) * points[:, ::-1] + rng.uniform(0, 6.28, 2))
    stretch = np.exp(rng.uniform(-0.2, 0.2))
    points = points @ np.array([[stretch, rng.uniform(-0.15, 0.15)], [0.0, 1 / stretch]])
    turn = rng.uniform(0, 2 * np.pi)
    points = points @ np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    points -= (points.max(axis=0) + points.min(axis=0)) / 2
    return points / np.hypot(*points.T).max()


def _evenly_spaced(corners: Points) -> Points:
    closed = np.vstack([corners, corners[:1]])
    along = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(closed, axis=0).T))])
    wanted = np.linspace(0, along[-1], OUTLINE_POINTS, endpoint=False)
    return np.column_stack([np.interp(wanted, along, closed[:, axis]) for axis in (0, 1)])


def _rounded(points: Points, sigma: float) -> Points:
    """Smooth around the outline; `sigma` in points."""
    offsets = np.arange(-8, 9)
    weights = np.exp(-0.5 * (offsets / sigma) ** 2)
    ring = np.take(points, np.arange(-8, len(points) + 8), axis=0, mode="wrap")
    return np.column_stack([np.convolve(ring[:, axis], weights / weights.sum(), "valid") for axis in (0, 1)])


def _polar(radius: Any, angle: Any) -> Points:
    return np.column_stack([radius * np.cos(angle), radius * np.sin(angle)])


def _around(count: int) -> NDArray[np.float64]:
    return np.linspace(0, 2 * np.pi, count, endpoint=False)


def _star(rng: np.random.Generator) -> Points:
    return _polar(np.tile([1.0, rng.uniform(0.40, 0.54)], 5), _around(10))


def _cross(rng: np.random.Generator) -> Points:
    arm, low = rng.uniform(0.24, 0.36), rng.uniform(0.8, 1.2)
    right = np.array([(arm, -1), (arm, -arm), (1, -arm), (1, arm), (arm, arm), (arm, low)])
    return np.vstack([right, right[::-1] * (-1, 1)])


def _drop(rng: np.random.Generator) -> Points:
    angle = _around(96)
    width = rng.uniform(0.75, 1.0)
    return np.column_stack([np.cos(angle), width * np.sin(angle) * np.sin(angle / 2) ** rng.uniform(1.3, 2.0)])


def _crescent(rng: np.random.Generator) -> Points:
    half, depth = rng.uniform(1.9, 2.2), rng.uniform(0.66, 0.84)
    outer = _polar(1.0, np.linspace(-half, half, 60))
    tip = outer[-1]
    inner_x = np.linspace(0, np.pi, 60)[1:-1]
    # The inner edge runs between the two tips as a half ellipse that bulges into the disc.
    inner = np.column_stack([tip[0] + (1 - depth - tip[0]) * np.sin(inner_x), tip[1] * np.cos(inner_x)])
    return np.vstack([outer, inner])


def _polygon(rng: np.random.Generator) -> Points:
    count = int(rng.integers(3, 7))
    return _polar(rng.uniform(0.8, 1.0, count), _around(count))


def _bar(rng: np.random.Generator) -> Points:
    height = rng.uniform(0.25, 0.5)
    return np.array([(-1, -height), (1, -height), (1, height), (-1, height)])


def _ellipse(rng: np.random.Generator) -> Points:
    angle = _around(64)
    return np.column_stack([np.cos(angle), rng.uniform(0.5, 0.95) * np.sin(angle)])


def _blob(rng: np.random.Generator) -> Points:
    angle = _around(96)
    radius = np.ones(96)
    for wave in range(2, 5):
        radius += rng.uniform(0, 0.55 / wave) * np.cos(wave * angle + rng.uniform(0, 2 * np.pi))
    return _polar(radius, angle)


def _heart(rng: np.random.Generator) -> Points:
    angle = _around(96)
    lobes = 13 * np.cos(angle) - rng.uniform(4, 6) * np.cos(2 * angle) - 2 * np.cos(3 * angle)
    return np.column_stack([16 * np.sin(angle) ** 3, -lobes])


def _arrow(rng: np.random.Generator) -> Points:
    shaft, neck = rng.uniform(0.18, 0.34), rng.uniform(-0.2, 0.3)
    return np.array([(-1, -shaft), (neck, -shaft), (neck, -0.75), (1, 0), (neck, 0.75), (neck, shaft), (-1, shaft)])


def _gear(rng: np.random.Generator) -> Points:
    teeth, depth = int(rng.integers(8, 12)), rng.uniform(0.7, 0.85)
    return _polar(np.tile([1.0, 1.0, depth, depth], teeth), _around(4 * teeth))


def _angle_iron(rng: np.random.Generator) -> Points:
    thick, reach = rng.uniform(0.5, 0.8), rng.uniform(0.5, 1.0)
    return np.array(
        [(-1, -1), (-1 + thick, -1), (-1 + thick, reach - thick), (1, reach - thick), (1, reach), (-1, reach)]
    )


def _bottle(rng: np.random.Generator) -> Points:
    body, neck, shoulder = rng.uniform(0.35, 0.55), rng.uniform(0.1, 0.2), rng.uniform(-0.4, 0.1)
    right = np.array([(neck, -1), (neck, shoulder - 0.2), (body, shoulder + 0.1), (body, 1)])
    return np.vstack([right, right[::-1] * (-1, 1)])


def _leaf(rng: np.random.Generator) -> Points:
    along = np.linspace(0, np.pi, 40)
    edge = np.column_stack([np.cos(along), rng.uniform(0.35, 0.6) * np.sin(along) ** rng.uniform(1.2, 1.8)])
    return np.vstack([edge, edge[-2:0:-1] * (1, -1)])


SHAPES: dict[str, Callable[[np.random.Generator], Points]] = {
    "star": _star,
    "cross": _cross,
    "drop": _drop,
    "crescent": _crescent,
    "polygon": _polygon,
    "bar": _bar,
    "ellipse": _ellipse,
    "blob": _blob,
    "heart": _heart,
    "arrow": _arrow,
    "gear": _gear,
    "angle_iron": _angle_iron,
    "bottle": _bottle,
    "leaf": _leaf,
}
"""Every silhouette; the first four make classes of the detection set, the others its clutter and foregrounds."""

CLASS_SHAPES = ("star", "cross", "drop", "crescent")
OTHER_SHAPES = tuple(name for name in SHAPES if name not in CLASS_SHAPES)
