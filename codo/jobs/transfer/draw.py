"""Detections drawn on a picture: masks, boxes, labels."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from pycocotools import mask as coco_mask

FONT = f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf"
"""Of labels: Latin, Greek, Cyrillic; comes with matplotlib."""

MASK_OPACITY = 0.45
GOLDEN = 0.618034
"""Step of the hue: neighbouring classes look unlike each other."""


def draw_detections(image: np.ndarray, results: Sequence[dict[str, Any]], names: Mapping[int, str]) -> Image.Image:
    """Draw detections, the best on top.

    Args:
        image: `(H, W, 3) uint8`.
        results: in COCO's format, at the image's size; with `segmentation`, compressed RLE, where there are masks.
        names: category id -> name; its order gives the colours.

    Example:
        >>> found = [{"category_id": 3, "bbox": [2, 2, 5, 4], "score": 0.9}]
        >>> draw_detections(np.zeros((8, 8, 3), np.uint8), found, {3: "cat"}).size
        (8, 8)
    """
    order = sorted(results, key=lambda result: result["score"])
    colours = {category: colour(i) for i, category in enumerate(names)}
    pixels = image.astype(np.float32)
    for result in order:
        if "segmentation" in result:
            inside = coco_mask.decode(result["segmentation"]).astype(bool)
            ink = np.array(colours[result["category_id"]], np.float32)
            pixels[inside] = (1 - MASK_OPACITY) * pixels[inside] + MASK_OPACITY * ink
    picture = Image.fromarray(pixels.round().astype(np.uint8))
    pen = ImageDraw.Draw(picture)
    short = min(picture.size)
    width = max(1, round(short / 200))
    font = ImageFont.truetype(FONT, size=max(9, round(short / 32)))
    for result in order:
        ink_rgb = colours[result["category_id"]]
        x, y, w, h = result["bbox"]
        pen.rectangle((x, y, x + max(w, 1), y + max(h, 1)), outline=ink_rgb, width=width)
        _label(pen, (x, y), f"{names[result['category_id']]} {result['score']:.2f}", ink_rgb, font, picture.size)
    return picture


def colour(index: int) -> tuple[int, int, int]:
    """Give the RGB colour of the class `index`."""
    red, green, blue = colorsys.hsv_to_rgb(index * GOLDEN % 1, 0.85, 0.95)
    return round(255 * red), round(255 * green), round(255 * blue)


def _label(
    pen: ImageDraw.ImageDraw,
    corner: tuple[float, float],
    text: str,
    ink: tuple[int, int, int],
    font: Any,
    size: tuple[int, int],
) -> None:
    """Write above the box's corner, inside the picture."""
    left, top, right, bottom = pen.textbbox((0, 0), text, font=font)
    width, height = right - left + 4, bottom - top + 4
    x = max(0.0, min(corner[0], size[0] - width))
    y = corner[1] - height if corner[1] >= height else corner[1]
    pen.rectangle((x, y, x + width, y + height), fill=ink)
    bright = 0.299 * ink[0] + 0.587 * ink[1] + 0.114 * ink[2] > 140
    pen.text((x + 2 - left, y + 2 - top), text, fill="black" if bright else "white", font=font)
