"""Instance masks of COCO annotations: polygons, compressed and uncompressed RLE."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from codo.errors import CodoError

MIN_POLYGON = 6
"""Numbers of a polygon: three points."""


def has_mask(annotation: dict[str, Any]) -> bool:
    """Tell whether an annotation has a segmentation at all (its content is checked when it is drawn)."""
    found = annotation.get("segmentation")
    if isinstance(found, list):
        return any(isinstance(polygon, list) and len(polygon) >= MIN_POLYGON for polygon in found)
    return isinstance(found, dict) and bool(found.get("counts"))


def to_rle(segmentation: Any, width: int, height: int) -> dict[str, Any]:
    """Turn a segmentation into compressed RLE, checked against the size of its image.

    Args:
        segmentation: a list of polygons `[x0, y0, x1, y1, ...]` in pixels; or a dict with `size` `[height, width]` and
            `counts`: a list of run lengths, or their compressed text.
        width: of the image, pixels.
        height: of the image, pixels.

    Raises:
        CodoError: neither, or runs that do not add up to the image.
    """
    if isinstance(segmentation, list):
        polygons = [p for p in segmentation if isinstance(p, list) and len(p) >= MIN_POLYGON and len(p) % 2 == 0]
        if not polygons or not np.isfinite(np.concatenate([np.asarray(p, float) for p in polygons])).all():
            raise CodoError("a segmentation has no polygon of three points or more")
        return coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))
    if not isinstance(segmentation, dict) or list(segmentation.get("size", [])) != [height, width]:
        raise CodoError(f"a segmentation is neither polygons nor an RLE of its image's size {height} x {width}")
    counts = segmentation.get("counts")
    runs = counts if isinstance(counts, list) else _runs(counts)
    # pycocotools trusts them: runs beyond the image would be written beyond its memory.
    if not all(isinstance(run, int) and run >= 0 for run in runs) or sum(runs) != width * height:
        raise CodoError(f"a segmentation's runs do not add up to its image, {height} x {width}")
    return coco_mask.frPyObjects({"size": [height, width], "counts": runs}, height, width)


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
        segmentation = [
            [v * ratio[i % 2] for i, v in enumerate(polygon)] for polygon in segmentation if isinstance(polygon, list)
        ]
        return coco_mask.decode(to_rle(segmentation, *scaled))
    mask = coco_mask.decode(to_rle(segmentation, *size))
    if size == scaled:
        return mask
    return np.asarray(Image.fromarray(mask).resize(scaled, Image.Resampling.NEAREST))


def _runs(text: Any) -> list[int]:
    """Read COCO's compressed run lengths: 5 bits a character, least significant first, differences from the third on.

    Source:
        pycocotools, `rleFrString`.
    """
    data = text.encode() if isinstance(text, str) else text
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
