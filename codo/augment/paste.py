"""Copy and paste: how large a patch is on its canvas, and where it lies."""

from __future__ import annotations

import numpy as np

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
    rng: np.random.Generator, background: np.ndarray, patch: np.ndarray, out: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Paste a patch at a uniform place, wholly inside, with hard edges.

    Args:
        rng: where the place comes from.
        background: `(S, S, 3)` uint8; not changed.
        patch: `(h, w, 3)` uint8, no larger than the background.
        out: `(S, S, 3)` uint8 to write the composite into; a new array if None.

    Returns:
        The composite `(S, S, 3)` uint8, and the box of the patch `(4,)` float32, xyxy in pixels.

    Source:
        InsLoc.
    """
    (side, _, _), (height, width, _) = background.shape, patch.shape
    x, y = int(rng.integers(side - width + 1)), int(rng.integers(side - height + 1))
    composite = np.empty_like(background) if out is None else out
    composite[...] = background
    composite[y : y + height, x : x + width] = patch
    return composite, np.array([x, y, x + width, y + height], np.float32)
