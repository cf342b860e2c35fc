"""Random crops of a foreground."""

from __future__ import annotations

import math

import numpy as np

TRIES = 10
"""Draws before the central crop is taken (InsLoc, torchvision)."""


def uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """Draw one number: what `rng.uniform` gives, several times faster."""
    return low + (high - low) * rng.random()


def random_crop(
    rng: np.random.Generator,
    width: int,
    height: int,
    area: tuple[float, float] = (0.2, 1.0),
    aspect: tuple[float, float] = (0.5, 2.0),
) -> tuple[int, int, int, int]:
    """Draw a crop: area uniform, aspect ratio log-uniform, place uniform.

    Args:
        rng: where the numbers come from.
        width: of the image, pixels.
        height: of the image, pixels.
        area: bounds of the crop's share of the image.
        aspect: bounds of the crop's width / height.

    Returns:
        `(x0, y0, x1, y1)`, whole pixels inside the image, not empty. After ten crops that do not fit: the central one,
        of the whole image or of the nearest aspect ratio allowed.

    Source:
        torchvision's RandomResizedCrop; InsLoc with aspect [1/2, 2], MoCo v2 with [3/4, 4/3].
    """
    for _ in range(TRIES):
        target = width * height * uniform(rng, *area)
        ratio = math.exp(uniform(rng, math.log(aspect[0]), math.log(aspect[1])))
        w, h = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
        if 0 < w <= width and 0 < h <= height:
            x, y = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            return x, y, x + w, y + h
    ratio = min(max(width / height, aspect[0]), aspect[1])
    w, h = min(width, max(1, round(height * ratio))), min(height, max(1, round(width / ratio)))
    x, y = (width - w) // 2, (height - h) // 2
    return x, y, x + w, y + h
