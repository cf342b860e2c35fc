"""Detections that look like a trained detector's, to time metrics on."""

from __future__ import annotations

from typing import Any

import numpy as np

from codo.data.coco import CocoDataset
from codo.data.masks import has_mask, to_rle
from codo.runs.seed import generator

SHIFT = 0.12
"""Standard deviation of a detection's sides from its object's, in the object's width and height."""
RIGHT_CLASS = 0.7


def detections(truth: CocoDataset, per_image: int, seed: int = 0, *, masks: bool = False) -> list[dict[str, Any]]:
    """Make up detections: of every image its annotations, moved by an eighth of their size, some under another class.

    Args:
        truth: the annotations; an image without any has no detections.
        per_image: how many an image has.
        seed: of the moves, classes and scores.
        masks: give each the mask of its annotation, compressed RLE; annotations without one are left out.

    Returns:
        COCO's result format, scores uniform in 0..1.
    """
    rng, classes = generator("made-up detections", seed), np.array(sorted(truth.categories))
    results: list[dict[str, Any]] = []
    for image in truth.images:
        own = [a for a in truth.annotations[image.id] if not masks or has_mask(a)]
        if not own:
            continue
        boxes = np.array([a["bbox"] for a in own], np.float64)
        rows = rng.integers(0, len(own), per_image)
        sides = boxes[rows][:, 2:]
        moved = _clip(boxes[rows] + rng.normal(0, SHIFT, (per_image, 4)) * np.tile(sides, 2), image.width, image.height)
        right = np.array([a["category_id"] for a in own])[rows]
        named = np.where(rng.random(per_image) < RIGHT_CLASS, right, rng.choice(classes, per_image))
        scores = rng.random(per_image).round(5)
        found = [
            {"image_id": image.id, "category_id": c, "bbox": box, "score": score}
            for box, c, score in zip(moved.tolist(), named.tolist(), scores.tolist(), strict=True)
        ]
        if masks:
            drawn = [_text(to_rle(a["segmentation"], image.width, image.height)) for a in own]
            found = [{**result, "segmentation": drawn[row]} for result, row in zip(found, rows, strict=True)]
        results += found
    return results


def _clip(boxes: np.ndarray, width: int, height: int) -> np.ndarray:
    """Keep boxes xywh within the image, a pixel wide or more."""
    low = boxes[:, :2].clip(0, (max(width - 2, 0), max(height - 2, 0)))
    high = (low + boxes[:, 2:].clip(1)).clip(None, (width, height))
    return np.concatenate([low, high - low], 1).round(2)


def _text(rle: dict[str, Any]) -> dict[str, Any]:
    counts = rle["counts"]
    return {"size": rle["size"], "counts": counts.decode() if isinstance(counts, bytes) else counts}
