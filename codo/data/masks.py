"""Instance masks of COCO annotations: polygons, compressed and uncompressed RLE."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from codo.errors import CodoError

MIN_POLYGON = 6
"""Numbers of a polygon: three points."""
MAX_COORDINATE = 100_000
"""Bound of a polygon's coordinates in pixels; they may lie outside the image."""


def has_mask(annotation: dict[str, Any]) -> bool:
    """Tell whether an annotation has a segmentation at all; `check_mask` looks at its content."""
    found = annotation.get("segmentation")
    if isinstance(found, list):
        return bool(polygons_of(found))
    return isinstance(found, dict) and bool(found.get("counts"))


def polygons_of(segmentation: list[Any]) -> list[list[float]]:
    """Pick the polygons of three points or more; COCO's own files hold a few that have fewer."""
    return [p for p in segmentation if isinstance(p, list) and len(p) >= MIN_POLYGON and len(p) % 2 == 0]


def check_mask(segmentation: Any, width: int, height: int) -> None:
    """Check that a segmentation can be drawn; see `to_rle`.

    Example:
        >>> check_mask({"size": [2, 3], "counts": [1, 4]}, 3, 2)
        Traceback (most recent call last):
        codo.errors.CodoError: a segmentation's runs add up to 5 pixels; its image, 3 x 2, has 6
    """
    _checked(segmentation, width, height)


def to_rle(segmentation: Any, width: int, height: int) -> dict[str, Any]:
    """Turn a segmentation into compressed RLE, checked against the size of its image.

    Args:
        segmentation: a list of polygons `[x0, y0, x1, y1, ...]` in pixels; or a dict with `size` `[height, width]` and
            `counts`: a list of run lengths, or their compressed text.
        width: of the image, pixels.
        height: of the image, pixels.

    Raises:
        CodoError: neither, or runs that do not add up to the image.

    Example:
        >>> coco_mask.decode(to_rle([[1, 0, 3, 0, 3, 2, 1, 2]], 4, 2)).tolist()
        [[0, 1, 1, 0], [0, 1, 1, 0]]
    """
    checked = _checked(segmentation, width, height)
    rle = coco_mask.frPyObjects(checked, height, width)
    return coco_mask.merge(rle) if isinstance(checked, list) else rle


def draw_mask(segmentation: Any, size: tuple[int, int], scaled: tuple[int, int]) -> np.ndarray:
    """Draw a mask at another size than its image's.

    Args:
        segmentation: see `to_rle`.
        size: `(width, height)` of the image in pixels.
        scaled: `(width, height)` to draw.

    Returns:
        `(height, width)` uint8, 0 or 1; polygons are scaled before they are drawn, RLE after (nearest neighbour).

    Raises:
        CodoError: see `to_rle`.
    """
    if isinstance(segmentation, list) and size != scaled:
        ratio = [scaled[0] / size[0], scaled[1] / size[1]]
        polygons = _checked(segmentation, *size)
        return coco_mask.decode(to_rle([[v * ratio[i % 2] for i, v in enumerate(p)] for p in polygons], *scaled))
    mask = coco_mask.decode(to_rle(segmentation, *size))
    if size == scaled:
        return mask
    return np.asarray(Image.fromarray(mask).resize(scaled, Image.Resampling.NEAREST))


def _checked(segmentation: Any, width: int, height: int) -> Any:
    """Return what pycocotools may be given: polygons, or a dict of runs.

    It trusts what it gets: runs beyond the image would be written beyond its memory, and a far point would take
    memory by the length of its edge.
    """
    if isinstance(segmentation, list):
        polygons = polygons_of(segmentation)
        if not polygons:
            raise CodoError("a segmentation has no polygon of three points or more")
        if not all(_is_coordinate(v) for polygon in polygons for v in polygon):
            raise CodoError(f"a polygon has a coordinate that is no number within {MAX_COORDINATE:,} pixels")
        return polygons
    if not isinstance(segmentation, dict):
        raise CodoError("a segmentation is neither polygons nor an RLE")
    size = segmentation.get("size")
    if not isinstance(size, list | tuple) or list(size) != [height, width]:
        raise CodoError(f"a segmentation's RLE is of size {size}; its image is [{height}, {width}] (height, width)")
    counts = segmentation.get("counts")
    runs = counts if isinstance(counts, list) else _runs(counts)
    if not all(isinstance(run, int) and run >= 0 for run in runs):
        raise CodoError("a segmentation's run lengths are not whole numbers from 0")
    if sum(runs) != width * height:
        raise CodoError(
            f"a segmentation's runs add up to {sum(runs)} pixels; its image, {width} x {height}, has {width * height}"
        )
    return {"size": [height, width], "counts": runs}


def _is_coordinate(value: Any) -> bool:
    return isinstance(value, int | float) and -MAX_COORDINATE <= value <= MAX_COORDINATE


def _runs(text: Any) -> list[int]:
    """Read COCO's compressed run lengths: 5 bits a character, least significant first, differences from the third on.

    Source:
        pycocotools, `rleFrString`.
    """
    data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    if not isinstance(data, bytes):
        raise CodoError("a segmentation's counts are neither a list nor a text")
    runs: list[int] = []
    value = shift = 0
    for byte in data:
        bits = byte - 48
        if not 0 <= bits < 64 or shift > 60:
            raise CodoError("a segmentation's counts are not COCO's compressed RLE")
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            if bits & 16:
                value -= 1 << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    if shift:
        raise CodoError("a segmentation's counts are cut off")
    return runs
