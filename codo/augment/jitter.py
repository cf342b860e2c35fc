"""Box jitter: the query pools a box near its patch, so that some background is in it and some object is not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torchvision.ops import nms

from codo.augment.paste import REFERENCE_CANVAS

TRIES = 10
"""Draws of a ratio jitter before the exact box is taken (ours)."""


class BoxJitter(Protocol):
    """Draws a box near an exact one."""

    def __call__(self, rng: np.random.Generator, box: np.ndarray, canvas: int) -> np.ndarray:
        """Draw.

        Args:
            rng: where the numbers come from.
            box: `(4,)` float32 xyxy in pixels.
            canvas: side of the canvas in pixels.

        Returns:
            `(4,)` float32 xyxy in pixels.
        """
        ...


def box_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Compute the IoU of every box of `a` `(N, 4)` with every box of `b` `(M, 4)`: `(N, M)`."""
    low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
    shared, side_a, side_b = np.maximum(high - low, 0), a[:, 2:] - a[:, :2], b[:, 2:] - b[:, :2]
    intersection = shared[..., 0] * shared[..., 1]  # reductions would take several times as long
    return intersection / ((side_a[:, 0] * side_a[:, 1])[:, None] + side_b[:, 0] * side_b[:, 1] - intersection)


def _iou(a: Sequence[float], b: Sequence[float]) -> float:
    """Compute the IoU of two boxes."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    intersection = max(width, 0.0) * max(height, 0.0)
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return intersection / (areas - intersection)


class RatioJitter:
    """Shift the top-left corner by shares of the width and height, scale the sides, clip to the canvas.

    Args:
        ratio: r; x and y shift by U(-r, r) of w and h, w and h scale by 1 + U(-r, r).
        p: probability that a box is jittered at all.
        min_iou: redraw when the IoU with the exact box falls under this, or is 0; the exact box after ten tries.

    Source:
        SoCo's form; p, r = .15 and min_iou are ours.

    Example:
        >>> box = np.array([20, 20, 80, 60], np.float32)
        >>> jittered = RatioJitter(0.15)(np.random.default_rng(0), box, 96)
        >>> bool(box_iou(jittered[None], box[None])[0, 0] >= 0.5)
        True
    """

    def __init__(self, ratio: float = 0.15, p: float = 1.0, min_iou: float = 0.5) -> None:
        self.ratio, self.p, self.min_iou = ratio, p, min_iou

    def __call__(self, rng: np.random.Generator, box: np.ndarray, canvas: int) -> np.ndarray:
        """Draw a box near `box`; see BoxJitter."""
        if rng.random() >= self.p:
            return box
        # Plain numbers: NumPy's calls would cost several times the arithmetic.
        x0, y0, x1, y1 = exact = box.tolist()
        width, height = x1 - x0, y1 - y0
        for _ in range(TRIES):
            right, down, wider, higher = ((2 * u - 1) * self.ratio for u in rng.random(4).tolist())
            left, top = x0 + right * width, y0 + down * height
            corners = (left, top, left + width * (1 + wider), top + height * (1 + higher))
            jittered = [min(max(corner, 0.0), float(canvas)) for corner in corners]
            iou = _iou(jittered, exact)
            if iou > 0 and iou >= self.min_iou:  # a box off the canvas is clipped to nothing
                return np.array(jittered, np.float32)
        return box


class AnchorJitter:
    """InsLoc's: one of the anchors that overlap the patch by an IoU above .5, thinned by NMS.

    Anchors of sides 32, 64, 128, 256 and height / width .5, .75, 1, 1.5, 2 stand on the corners of a grid of stride 16;
    sides and stride are for a 256 canvas and scale with it. The survivors get random scores, NMS at .7 keeps some, one
    is drawn uniformly. Where no anchor survives: the exact box. Boxes may leave the canvas.

    Source:
        InsLoc.

    Example:
        >>> box = np.array([20, 20, 180, 160], np.float32)
        >>> AnchorJitter()(np.random.default_rng(0), box, 256).shape
        (4,)
    """

    SIDES = (32, 64, 128, 256)
    ASPECTS = (0.5, 0.75, 1.0, 1.5, 2.0)
    STRIDE = 16
    MIN_IOU = 0.5
    NMS_IOU = 0.7

    def __init__(self) -> None:
        self._anchors: dict[int, np.ndarray] = {}

    def __call__(self, rng: np.random.Generator, box: np.ndarray, canvas: int) -> np.ndarray:
        """Draw a box near `box`; see BoxJitter."""
        if canvas not in self._anchors:
            self._anchors[canvas] = self.anchors(canvas)
        near = self._similar(self._anchors[canvas], box)
        near = near[box_iou(near, box[None])[:, 0] > self.MIN_IOU]
        if not len(near):
            return box
        near = near[rng.permutation(len(near))]  # the order of random scores
        kept = nms(torch.from_numpy(near), torch.arange(len(near), 0.0, -1), self.NMS_IOU)
        return near[kept[rng.integers(len(kept))]]

    def _similar(self, anchors: np.ndarray, box: np.ndarray) -> np.ndarray:
        """Choose the anchors that share half of the longer side with `box` along either axis: `(M, 4)` in their order.

        An IoU above .5 needs that, and in a grid of anchors it is asked of columns and rows instead of each anchor.
        """
        across = REFERENCE_CANVAS // self.STRIDE
        grid = anchors.reshape(across, across, -1, 4)  # rows, columns, shapes
        columns, rows = (
            np.minimum(line[..., axis + 2], box[axis + 2]) - np.maximum(line[..., axis], box[axis])
            > (self.MIN_IOU - 0.01) * np.maximum(line[..., axis + 2] - line[..., axis], box[axis + 2] - box[axis])
            for axis, line in enumerate((grid[0], grid[:, 0]))
        )
        return grid[rows[:, None] & columns]

    @classmethod
    def anchors(cls, canvas: int) -> np.ndarray:
        """List all anchors of a canvas: `(N, 4)` float32 xyxy."""
        unit = canvas / REFERENCE_CANVAS
        aspect = np.sqrt(np.array(cls.ASPECTS))
        half = np.array(cls.SIDES)[:, None, None] * np.stack([1 / aspect, aspect], 1)[None] * unit / 2
        corner = np.arange(REFERENCE_CANVAS // cls.STRIDE) * cls.STRIDE * unit
        centre = np.stack(np.meshgrid(corner, corner), -1).reshape(-1, 1, 2)
        half = half.reshape(1, -1, 2)
        return np.concatenate([centre - half, centre + half], axis=2).reshape(-1, 4).astype(np.float32)


class NoJitter:
    """The exact box.

    Example:
        >>> NoJitter()(np.random.default_rng(0), np.array([1, 2, 3, 4]), 96).tolist()
        [1, 2, 3, 4]
    """

    def __call__(self, rng: np.random.Generator, box: np.ndarray, canvas: int) -> np.ndarray:
        """Return `box`."""
        return box
