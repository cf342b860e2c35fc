"""Copy and paste: how large a patch is on its canvas, where it lies, and on which background."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

OPAQUE = 128
"""The weight of a pixel that is the patch's alone: times a difference of bytes, it fits 16 bits."""

REFERENCE_CANVAS = 256
"""The canvas side in pixels that patch bounds are written for (InsLoc)."""


def patch_size(
    rng: np.random.Generator,
    crop_width: int,
    crop_height: int,
    canvas: int,
    side: tuple[float, float] = (128.0, 254.0),
) -> tuple[int, int]:
    """Draw the size of the pasted patch; the crop keeps its aspect ratio and is made as large as fits.

    Two sides are drawn, uniform over the whole pixels in `side` (scaled by canvas / 256); the patch's long edge is at
    most the larger, its short edge at most the smaller.

    Returns:
        `(width, height)` in whole pixels, at least 1 and at most the canvas.

    Source:
        InsLoc.
    """
    low, high = (bound * canvas / REFERENCE_CANVAS for bound in side)
    least = max(1, round(low))
    first, second = rng.integers(least, max(least, int(high)) + 1, size=2).tolist()
    long, short = max(crop_width, crop_height), min(crop_width, crop_height)
    scale = min(max(first, second) / long, min(first, second) / short)
    return max(1, int(crop_width * scale + 0.5)), max(1, int(crop_height * scale + 0.5))


def paste(
    rng: np.random.Generator,
    background: np.ndarray,
    patch: np.ndarray,
    out: np.ndarray | None = None,
    soft_edge: float = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Paste a patch at a uniform place, wholly inside.

    Args:
        rng: where the place comes from.
        background: `(S, S, 3)` uint8; not changed.
        patch: `(h, w, 3)` uint8, no larger than the background.
        out: `(S, S, 3)` uint8 to write the composite into; a new array if None.
        soft_edge: share of the patch's shorter side over which it fades in from its border, see `fade`.

    Returns:
        The composite `(S, S, 3)` uint8, and the box of the patch `(4,)` float32, xyxy in pixels.

    Source:
        InsLoc; soft edges are ours.
    """
    (side, _, _), (height, width, _) = background.shape, patch.shape
    x, y = int(rng.integers(side - width + 1)), int(rng.integers(side - height + 1))
    composite = np.empty_like(background) if out is None else out
    composite[...] = background
    place = composite[y : y + height, x : x + width]
    place[...] = fade(place, patch, soft_edge) if soft_edge else patch
    return composite, np.array([x, y, x + width, y + height], np.float32)


def most_alike(patch: np.ndarray, backgrounds: Sequence[np.ndarray]) -> np.ndarray:
    """Choose the background whose colours are most like the patch's; the first of equals.

    Args:
        patch: `(h, w, 3)` uint8.
        backgrounds: one or more, each `(S, S, 3)` uint8.

    Returns:
        The one at the least Euclidean distance in mean and standard deviation of the three channels.

    Source:
        ours.

    Example:
        >>> grounds = [np.full((9, 9, 3), value, np.uint8) for value in (0, 90, 255)]
        >>> most_alike(np.full((4, 5, 3), 100, np.uint8), grounds)[0, 0].tolist()
        [90, 90, 90]
    """
    own = _moments(patch)
    return min(backgrounds, key=lambda background: float(np.square(_moments(background) - own).sum()))


def _moments(image: np.ndarray) -> np.ndarray:
    """Give mean and standard deviation of the channels: `(6,)`."""
    height, width, _ = image.shape
    rows = image.reshape(height, -1).astype(np.float32)  # two dimensions, as in `fade`
    mean, square = (part.sum(0).reshape(-1, 3).sum(0) / (height * width) for part in (rows, np.square(rows)))
    return np.concatenate([mean, np.sqrt(np.maximum(square - np.square(mean), 0))])


def fade(below: np.ndarray, patch: np.ndarray, soft_edge: float) -> np.ndarray:
    """Blend a patch with what lies below it: its weight rises linearly with the distance from its nearest edge.

    Args:
        below: `(h, w, 3)` uint8.
        patch: `(h, w, 3)` uint8.
        soft_edge: where the weight is 1, as a share of the shorter side; up to .5, its middle.

    Returns:
        `(h, w, 3)` uint8, within 1 of the blend in real numbers.

    Source:
        ours.

    Example:
        >>> fade(np.zeros((5, 5, 3), np.uint8), np.full((5, 5, 3), 200, np.uint8), 0.5)[2, :, 0].tolist()
        [41, 120, 200, 120, 41]
    """
    height, width, _ = patch.shape
    rise = soft_edge * min(height, width)
    down, across = (_ramp(length, rise) for length in (height, width))
    weight = np.minimum(down[:, None], np.repeat(across, 3))  # two dimensions: NumPy is slow along an axis of three
    ground = below.reshape(height, -1).astype(np.int16)
    change = patch.reshape(height, -1).astype(np.int16)
    change -= ground
    change *= weight
    change += OPAQUE // 2
    change //= OPAQUE
    ground += change
    return ground.astype(np.uint8).reshape(patch.shape)


def _ramp(length: int, rise: float) -> np.ndarray:
    """Weigh the pixels along one axis by their centres' distance from the nearer end: `(length,)` int16."""
    centre = np.arange(length) + 0.5
    distance = np.minimum(centre, length - centre)
    return np.rint(OPAQUE * np.minimum(distance / rise, 1)).astype(np.int16)
