"""The composites that every method is probed on: N instances, each on the same M backgrounds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from codo.augment import RatioJitter, box_iou
from codo.data.images import decode, resize
from codo.jobs.probe.images import ProbeImages, take
from codo.runs.seed import generator

PATCH_SHARE = 2 / 3
"""Side of the pasted square in canvases: the middle of the patches that pretraining sees (170 of 256 pixels)."""

VIEW_SIDE = 0.5**0.5
"""Side of another view's crop, in short sides of the foreground: half of the square's area."""

JITTERED = 12
"""Jittered boxes of an instance."""

REACH = 0.6
"""Largest r of their ratio jitter: IoU from 1 down to about .15."""


@dataclass(frozen=True)
class Bench:
    """Composites of N instances and M backgrounds; only the background differs between those of one instance.

    The patch is the central square of the foreground and lies, at one size, in the middle of the canvas: neither place
    nor shape nor size of the box tells which instance it is. No colour jitter, no flip.

    Attributes:
        patches: `(N, s, s, 3)` uint8 RGB.
        views: `(N, s, s, 3)`, another view of each: a square crop of half the area, mirrored or not.
        backgrounds: `(M, S, S, 3)` uint8 RGB.
        jittered: `(N, J, 4)` float32 xyxy in pixels: boxes about the patch's.
        iou: `(N, J)`, with the patch's.
        files: of the instances, then of the backgrounds.
    """

    patches: Tensor
    views: Tensor
    backgrounds: Tensor
    jittered: Tensor
    iou: Tensor
    files: tuple[list[Path], list[Path]]

    @staticmethod
    def build(images: ProbeImages, canvas: int, seed: int = 0) -> Bench:
        """Read and place the images.

        Args:
            images: which.
            canvas: S in pixels.
            seed: of the jittered boxes.

        Raises:
            CodoError: too few of the images can be read.
        """
        side = patch_side(canvas)
        instances, patches = take(
            images.foregrounds, images.instances, lambda path: square(path, side), images.fewest[0]
        )
        scenes, backgrounds = take(
            images.backgrounds,
            images.backgrounds_per_instance,
            lambda path: resize(decode(path, canvas), canvas, canvas),
            images.fewest[1],
        )
        box = patch_box(canvas)
        views = np.stack(
            [another_view(path, side, generator("probe view", seed, i)) for i, path in enumerate(instances)]
        )
        rng = generator("probe boxes", seed)
        jittered = np.stack(
            [
                [RatioJitter(r, min_iou=0.0)(rng, box, canvas) for r in rng.uniform(0, REACH, JITTERED)]
                for _ in range(len(patches))
            ]
        )
        iou = box_iou(jittered.reshape(-1, 4), box[None]).reshape(len(patches), JITTERED)
        return Bench(
            torch.from_numpy(patches),
            torch.from_numpy(views),
            torch.from_numpy(backgrounds),
            torch.from_numpy(jittered),
            torch.from_numpy(iou),
            (instances, scenes),
        )

    @property
    def box(self) -> Tensor:
        """The patch's box `(4,)` float32 xyxy in pixels, the same in every composite."""
        return torch.from_numpy(patch_box(self.backgrounds.shape[1]))

    def composites(self, patches: Tensor) -> Tensor:
        """Compose some patches on every background.

        Args:
            patches: `(n, s, s, 3)` uint8, of `patches` or `views`.

        Returns:
            `(n, M, S, S, 3)` uint8 RGB.
        """
        x0, y0, x1, y1 = (int(v) for v in self.box)
        pictures = self.backgrounds.expand(len(patches), *self.backgrounds.shape).clone()
        pictures[:, :, y0:y1, x0:x1] = patches[:, None]
        return pictures


def patch_side(canvas: int) -> int:
    """Give the side of the patch in pixels, on a canvas of `canvas`."""
    return round(canvas * PATCH_SHARE)


def patch_box(canvas: int) -> np.ndarray:
    """Give the patch's box `(4,)` float32 xyxy in pixels."""
    side = patch_side(canvas)
    corner = (canvas - side) // 2
    return np.array([corner, corner, corner + side, corner + side], np.float32)


def square(path: Path, side: int) -> np.ndarray:
    """Read the central square of an image as `(side, side, 3)` uint8; raises `ImageError`."""
    image = decode(path, side)
    height, width, _ = image.shape
    short = min(height, width)
    x, y = (width - short) // 2, (height - short) // 2
    return resize(image, side, side, box=(x, y, x + short, y + short))


def another_view(path: Path, side: int, rng: np.random.Generator) -> np.ndarray:
    """Read a square crop of half the area at a uniform place, mirrored half of the time: `(side, side, 3)` uint8."""
    image = decode(path, side)
    height, width, _ = image.shape
    crop = max(1, round(min(height, width) * VIEW_SIDE))
    x, y = int(rng.integers(width - crop + 1)), int(rng.integers(height - crop + 1))
    view = resize(image, side, side, box=(x, y, x + crop, y + crop))
    return np.ascontiguousarray(view[:, ::-1]) if rng.random() < 0.5 else view
