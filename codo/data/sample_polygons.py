"""From the pixels of an object that can be seen to COCO polygons."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]

TOLERANCE = 0.4
"""How far, in pixels, a polygon may run from the border of the visible pixels."""

SMALLEST_PIECE = 16.0
"""Separate visible pieces below this area, in square pixels, are left out: nobody would mark them."""


def visible_polygons(visible: NDArray[np.bool_]) -> list[Points]:
    """Trace the outer borders of a mask, largest piece first. Holes are filled, as COCO polygons must.

    Args:
        visible: `(H, W)` mask.

    Returns:
        Polygons `(N, 2)`, xy in pixels, pixel (i, j) covering [j, j + 1] x [i, i + 1]; empty where nothing is
        large enough.
    """
    rows, columns = np.flatnonzero(visible.any(axis=1)), np.flatnonzero(visible.any(axis=0))
    if not len(rows):
        return []
    corner = np.array([columns[0], rows[0]])  # an object fills a small part of its picture: look there only
    part = visible[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    pieces = [_simplified(border) + corner for border in _borders(part)]
    pieces = [piece for piece in pieces if polygon_area(piece) >= SMALLEST_PIECE]  # a hole's area is negative
    return sorted(pieces, key=polygon_area, reverse=True)


def polygon_area(points: Points) -> float:
    """Return the signed area, in square pixels; positive for what `visible_polygons` traces."""
    x, y = points.T
    return float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2


def _borders(mask: NDArray[np.bool_]) -> list[Points]:
    """Follow the pixel edges between inside and outside; a hole's border runs the other way round."""
    padded = np.pad(mask, 1)
    inner = padded[1:-1, 1:-1]
    # Each edge is directed so that the inside lies on its right (y points down): an outer border's area is positive.
    sides = (
        (~padded[:-2, 1:-1], (0, 0), (1, 0)),
        (~padded[1:-1, 2:], (1, 0), (1, 1)),
        (~padded[2:, 1:-1], (1, 1), (0, 1)),
        (~padded[1:-1, :-2], (0, 1), (0, 0)),
    )
    follows: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for outside, (x0, y0), (x1, y1) in sides:
        rows, columns = np.nonzero(inner & outside)
        for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
            follows.setdefault((column + x0, row + y0), []).append((column + x1, row + y1))
    borders = []
    while follows:
        start = next(iter(follows))
        border, here, heading = [], start, (0, 0)
        while here in follows:
            border.append(here)
            there = _turn_right(here, heading, follows[here])
            follows[here].remove(there)
            if not follows[here]:
                del follows[here]
            heading, here = (there[0] - here[0], there[1] - here[1]), there
        borders.append(np.array(border, np.float64))
    return borders


def _turn_right(here: Any, heading: Any, choices: list[tuple[int, int]]) -> tuple[int, int]:
    """Where two pixels meet only at a corner, stay with the same pixel: pieces are 4-connected."""
    right = (here[0] - heading[1], here[1] + heading[0])
    return right if right in choices else choices[0]


def _simplified(border: Points) -> Points:
    """Cut the pixel stairs at their middles, then keep the corners that Douglas and Peucker's rule keeps.

    Source:
        Douglas and Peucker, Cartographica 10(2), 1973.
    """
    points = (border + np.roll(border, -1, axis=0)) / 2
    # The outermost points stay, so that the polygon's box is the mask's, exactly.
    keep = {int(index) for axis in (0, 1) for index in (points[:, axis].argmin(), points[:, axis].argmax())}
    points = np.roll(points, -min(keep), axis=0)
    corners = sorted(index - min(keep) for index in keep)
    keep = set(corners)
    pending = list(zip(corners, [*corners[1:], len(points)], strict=True))
    closed = np.append(points @ (1, 1j), points[0] @ (1, 1j))  # as complex numbers, a third of the time
    while pending:
        first, last = pending.pop()
        if last - first < 2:
            continue
        chord = closed[last] - closed[first]
        away = np.abs(((closed[first + 1 : last] - closed[first]) * chord.conjugate()).imag)
        middle = int(away.argmax())
        if away[middle] > TOLERANCE * abs(chord):
            middle += first + 1
            keep.add(middle)
            pending += [(first, middle), (middle, last)]
    return points[sorted(keep)]
