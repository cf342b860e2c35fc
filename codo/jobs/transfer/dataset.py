"""Labelled images for a detector: in which order, and how they come off the disk."""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import Iterator, Mapping
from itertools import compress
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from codo.data.coco import CocoDataset, CocoImage
from codo.data.images import ImageError, decode, resize
from codo.data.masks import draw_mask
from codo.jobs.transfer.data import training_annotations
from codo.jobs.transfer.features import Kept
from codo.runs.seed import generator
from codo.runs.world import World

MAX_REPLACEMENTS = 20
"""Broken images in a row after which training gives up."""
MIN_SIDE = 1e-3
"""Side in pixels of the image under which a box is dropped: in float32 it may collapse, which torchvision refuses."""


class LabelledImage(NamedTuple):
    """One image with its targets.

    Attributes:
        image: `(3, H, W) uint8` RGB; `(3, 0, 0)` where no image could be read.
        boxes: `(N, 4) float32` xyxy in pixels of `image`; crowds, and what `MIN_SIDE` says, left out.
        labels: `(N,) int64`, 1..K.
        masks: `(N, H, W) uint8`, 0 or 1; None where the detector learns boxes alone.
        position: of the image in the data set.
        unreadable: what was wrong with the images that this one stands in for.
        flipped: mirrored.
    """

    image: Tensor
    boxes: Tensor
    labels: Tensor
    position: int
    unreadable: list[str]
    masks: Tensor | None = None
    flipped: bool = False


class DetectionDataset(Dataset[LabelledImage]):
    """The images and boxes of a COCO data set, as the detector takes them.

    Images larger than the detector's largest input are shrunk here, anti-aliased, in the loader's process; the
    detector's own transform enlarges the others on the device.

    Args:
        coco: the images and annotations.
        labels: category id -> label 1..K.
        short_side: the detector's largest short side in pixels.
        long_side: bound of the long side in pixels.
        flip_p: how often an image is mirrored.
        seed: of the flips and replacements.
        train: replace a broken image by another one, and mirror; else a broken image comes empty, with its reason.
        masks: give masks too; annotations without one are left out.

    Attributes:
        kept: of each image its size or what is wrong with it, where its features are kept: it is not read then, and
            comes black.
    """

    def __init__(
        self,
        coco: CocoDataset,
        labels: Mapping[int, int],
        short_side: int,
        long_side: int,
        *,
        train: bool,
        flip_p: float = 0.0,
        seed: int = 0,
        masks: bool = False,
    ) -> None:
        self.coco_images = coco.images
        self.kept: list[Kept] | None = None
        self.short_side, self.long_side = short_side, long_side
        self.flip_p, self.seed, self.train = flip_p, seed, train
        # One array for all images: forked workers would copy a million small objects page by page.
        boxes, numbers = array("f"), array("q")
        packed: list[bytes] = []
        ends = [0]
        for image in coco.images:
            for annotation in (targets := training_annotations(coco, image.id, masks)):
                boxes.extend(annotation["bbox"])
                numbers.append(labels[annotation["category_id"]])
            ends.append(len(numbers))
            if masks:
                packed.append(json.dumps([annotation["segmentation"] for annotation in targets]).encode())
        self._ends = np.array(ends)
        self._boxes = np.array(boxes, np.float32).reshape(-1, 4)
        self._boxes[:, 2:] += self._boxes[:, :2]
        self._labels = np.array(numbers, np.int64)
        self._masks = _Packed(packed) if masks else None

    def __len__(self) -> int:
        return len(self.coco_images)

    def __getitem__(self, key: tuple[int, int]) -> LabelledImage:
        """Read the image of `(epoch, index)`; everything random in it is a function of seed, epoch and index."""
        epoch, index = key
        draw = generator("transfer image", self.seed, epoch, index)
        flip = self.train and draw.random() < self.flip_p
        unreadable: list[str] = []
        while True:
            try:
                pixels = self._read(index)
                return self._sample(pixels, index, flip, unreadable)
            except ImageError as error:
                unreadable.append(str(error))
            if not self.train or len(unreadable) >= MAX_REPLACEMENTS:
                none = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)
                return LabelledImage(torch.zeros(3, 0, 0, dtype=torch.uint8), *none, index, unreadable)
            index = int(draw.integers(len(self)))

    def _read(self, index: int) -> np.ndarray:
        if self.kept is None:
            return read_image(self.coco_images[index], self.short_side, self.long_side)
        known = self.kept[index]
        if known.reason is not None:
            raise ImageError(known.reason)
        return np.broadcast_to(np.uint8(0), (*known.size, 3))

    def _sample(self, pixels: np.ndarray, index: int, flip: bool, unreadable: list[str]) -> LabelledImage:
        height, width = pixels.shape[:2]
        source = self.coco_images[index]
        rows = slice(self._ends[index], self._ends[index + 1])
        boxes = self._boxes[rows] * np.tile(np.array([width / source.width, height / source.height], np.float32), 2)
        if flip:
            pixels = pixels[:, ::-1]
            boxes = np.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], axis=1)
        kept = np.minimum(boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]) >= MIN_SIDE
        planes = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
        masks = None
        if self._masks:
            masks = _draw(list(compress(self._masks[index], kept)), source, (width, height), flip)
        labels = torch.from_numpy(self._labels[rows][kept])
        return LabelledImage(planes, torch.from_numpy(boxes[kept]), labels, index, unreadable, masks, flip)


class _Packed:
    """Lists of segmentations, as one array of bytes: see `DetectionDataset`."""

    def __init__(self, packed: list[bytes]) -> None:
        self._ends = np.cumsum([0, *map(len, packed)])
        self._bytes = np.frombuffer(b"".join(packed), np.uint8)

    def __getitem__(self, index: int) -> list[Any]:
        return json.loads(self._bytes[self._ends[index] : self._ends[index + 1]].tobytes())


def _draw(segmentations: list[Any], source: CocoImage, scaled: tuple[int, int], flip: bool) -> Tensor:
    """Draw the masks of an image: `(N, H, W)`."""
    drawn = [draw_mask(s, (source.width, source.height), scaled) for s in segmentations]
    masks = np.stack(drawn) if drawn else np.zeros((0, scaled[1], scaled[0]), np.uint8)
    return torch.from_numpy(np.ascontiguousarray(masks[:, :, ::-1] if flip else masks))


def read_image(image: CocoImage, short_side: int, long_side: int) -> np.ndarray:
    """Decode an image, and shrink it to fit `short_side` and `long_side` pixels if it is larger.

    Returns:
        `(H, W, 3) uint8`.

    Raises:
        ImageError: unreadable, or of another shape than its JSON entry says (as when only the file was rotated).
    """
    short, long = sorted((image.width, image.height))
    scale = min(short_side / short, long_side / long)
    pixels = decode(image.path, math.ceil(scale * short) if scale < 1 else None)
    height, width = pixels.shape[:2]
    # A JPEG decoded at a fraction of its size has its sides rounded up.
    slack = 0.5 + max(1.0, image.height / image.width)
    if abs(height - width * image.height / image.width) > slack:
        height, width = decode(image.path).shape[:2]
        turned = " (turned, as its EXIF block says?)" if (width, height) == (image.height, image.width) else ""
        raise ImageError(
            f"{image.path}: the picture is {width} x {height}{turned}, its JSON entry says "
            f"{image.width} x {image.height}"
        )
    return fit(pixels, short_side, long_side, (image.width, image.height))


def fit(pixels: np.ndarray, short_side: int, long_side: int, size: tuple[int, int] | None = None) -> np.ndarray:
    """Shrink an image `(H, W, 3) uint8` to fit two sides in pixels, if it is larger.

    Args:
        pixels: the image.
        short_side: bound of its short side.
        long_side: bound of its long side.
        size: `(width, height)` of the whole image, where `pixels` was decoded at less.
    """
    width, height = size or (pixels.shape[1], pixels.shape[0])
    short, long = sorted((width, height))
    scale = min(short_side / short, long_side / long)
    return pixels if scale >= 1 else resize(pixels, max(1, round(scale * width)), max(1, round(scale * height)))


def batches(
    images: int, batch_size: int, seed: int, start: int, end: int, world: World | None = None
) -> Iterator[list[tuple[int, int]]]:
    """Yield this process's part of the batches of the steps `start`..`end`, each a list of `(epoch, index)`.

    An epoch's order is a function of seed and epoch. Its last batch may be smaller: no image is left out.
    """
    per_epoch = steps_per_epoch(images, batch_size)
    for epoch in range(start // per_epoch, math.ceil(end / per_epoch)):
        order = generator("transfer order", seed, epoch).permutation(images)
        for step in range(max(start, epoch * per_epoch), min(end, (epoch + 1) * per_epoch)):
            first = (step - epoch * per_epoch) * batch_size
            yield (world or World()).share([(epoch, int(index)) for index in order[first : first + batch_size]])


def steps_per_epoch(images: int, batch_size: int) -> int:
    """Count the batches of an epoch, the last one possibly smaller."""
    return math.ceil(images / batch_size)
