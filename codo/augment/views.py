"""One training sample: V query views and one key view of a foreground, each with its own background."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from codo.augment.colour import ColourJitter, ColourParameters
from codo.augment.crop import random_crop
from codo.augment.jitter import BoxJitter, NoJitter
from codo.augment.paste import most_alike, paste, patch_size
from codo.data.images import resize
from codo.errors import CodoError

DrawBackground = Callable[[np.random.Generator, int], np.ndarray]
"""`(rng, epoch) -> background`: draws one `(S, S, 3)` uint8 for a view of that epoch."""


class Images(Protocol):
    """A sequence of images `(H, W, 3)` uint8 RGB."""

    def __len__(self) -> int:
        """Count them."""
        ...

    def __getitem__(self, index: int) -> np.ndarray:
        """Read one."""
        ...


Augmenter = Callable[[np.random.Generator, np.ndarray, np.ndarray, Images], tuple[np.ndarray, np.ndarray]]
"""`(rng, image, box, foregrounds) -> (image, box)`: image `(S, S, 3)` uint8 RGB, box `(4,)` float32 xyxy in pixels;
foregrounds `(H, W, 3)` uint8, all that there are, for those who mix."""


class Views(NamedTuple):
    """Views of one sample, or with a leading dimension of a batch; the queries first, the key last.

    Attributes:
        images: `(V + 1, S, S, 3)` uint8 RGB, before colour and flip.
        exact_boxes: `(V + 1, 4)` float32 xyxy in pixels, **as after the flip**.
        boxes: `(V + 1, 4)`, jittered, as after the flip; the key's is used where it takes a query's place.
        sources: `(V + 1, 4)` float32 xyxy in pixels of the foreground, the part that fills the exact box; x0 > x1 where
            the flip has mirrored it.
        colour: parameters of V + 1 views; `finish_views` applies them.
    """

    images: Tensor
    exact_boxes: Tensor
    boxes: Tensor
    sources: Tensor
    colour: ColourParameters


@dataclass(frozen=True)
class PasteView:
    """A view with background invariance: a crop of the foreground, pasted on a background.

    Args:
        canvas: S, side of the view in pixels.
        background: draws a background of that size.
        crop_area: bounds of the crop's share of the foreground.
        crop_aspect: bounds of its width / height.
        patch_side: bounds of the patch's sides in pixels of a 256 canvas.
        soft_edge: share of the patch's shorter side over which it fades into the background.
        candidates: of so many backgrounds the one whose colours are most like the patch's; 1: any.

    Source:
        InsLoc; the downstream data set as source of backgrounds is CoDo's; candidates are ours.

    Example:
        >>> view = PasteView(96, lambda rng, epoch: np.zeros((96, 96, 3), np.uint8))
        >>> image, box, source = view(np.random.default_rng(0), np.full((120, 80, 3), 255, np.uint8))
        >>> image.shape, box.shape, source.shape
        ((96, 96, 3), (4,), (4,))
    """

    canvas: int
    background: DrawBackground
    crop_area: tuple[float, float] = (0.2, 1.0)
    crop_aspect: tuple[float, float] = (0.5, 2.0)
    patch_side: tuple[float, float] = (128.0, 254.0)
    soft_edge: float = 0.0
    candidates: int = 1

    def __call__(
        self, rng: np.random.Generator, foreground: np.ndarray, out: np.ndarray | None = None, epoch: int = 0
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Make the view of `foreground` `(H, W, 3)` uint8, in `out` if given, with a background of `epoch`.

        Returns:
            The view `(S, S, 3)` uint8, the box of the patch `(4,)`, and what of the foreground it shows `(4,)`.
        """
        height, width, _ = foreground.shape
        crop = x0, y0, x1, y1 = random_crop(rng, width, height, self.crop_area, self.crop_aspect)
        patch_width, patch_height = patch_size(rng, x1 - x0, y1 - y0, self.canvas, self.patch_side)
        patch = resize(foreground, patch_width, patch_height, box=crop)
        background = self.choose_background(rng, patch, epoch)
        return *paste(rng, background, patch, out, self.soft_edge), np.array(crop, np.float32)

    def choose_background(self, rng: np.random.Generator, patch: np.ndarray, epoch: int) -> np.ndarray:
        """Draw the background `(S, S, 3)` uint8 of a patch `(h, w, 3)` uint8.

        `rng` is left as it is after one, however many candidates there are; for several it must be able to jump, as
        NumPy's default, PCG64, is.
        """
        first = self.background(rng, epoch)
        if self.candidates == 1:
            return first
        # A stream far off, not a child: whoever spawns from `rng` after this gets what it got without candidates.
        others = np.random.default_rng(rng.bit_generator.jumped())  # type: ignore[attr-defined]  # PCG64, NumPy's own
        return most_alike(patch, [first, *(self.background(others, epoch) for _ in range(1, self.candidates))])


@dataclass(frozen=True)
class CropView:
    """A view without background invariance: a random resized crop that fills the canvas; its box is the canvas.

    Args:
        canvas: S, side of the view in pixels.
        area: bounds of the crop's share of the foreground.
        aspect: bounds of its width / height.

    Source:
        MoCo v2.

    Example:
        >>> image, box, source = CropView(64)(np.random.default_rng(0), np.zeros((120, 80, 3), np.uint8))
        >>> image.shape, box.tolist()
        ((64, 64, 3), [0.0, 0.0, 64.0, 64.0])
    """

    canvas: int
    area: tuple[float, float] = (0.2, 1.0)
    aspect: tuple[float, float] = (3 / 4, 4 / 3)

    def __call__(
        self, rng: np.random.Generator, foreground: np.ndarray, out: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Make the view of `foreground` `(H, W, 3)` uint8, in `out` if given.

        Returns:
            The view `(S, S, 3)` uint8, the canvas as box `(4,)`, and what of the foreground it shows `(4,)`.
        """
        height, width, _ = foreground.shape
        crop = random_crop(rng, width, height, self.area, self.aspect)
        image = resize(foreground, self.canvas, self.canvas, box=crop)
        if out is not None:
            out[...], image = image, out
        return image, np.array([0, 0, self.canvas, self.canvas], np.float32), np.array(crop, np.float32)


@dataclass(frozen=True)
class MixedView:
    """Composites and crops that fill the canvas: each view is drawn to be one of them.

    The kind is drawn from a child of the view's generator, so that a view looks as it does where all are of its kind.

    Args:
        pasted: makes the composites.
        cropped: makes the others.
        p: share of the composites.
        warmup_epochs: w; epoch e < w has the share p e / w.

    Source:
        ours.

    Example:
        >>> view = MixedView(PasteView(96, lambda rng, epoch: np.zeros((96, 96, 3), np.uint8)), CropView(96), 0.8, 4)
        >>> [view.share(epoch) for epoch in (0, 2, 4, 9)]
        [0.0, 0.4, 0.8, 0.8]
    """

    pasted: PasteView
    cropped: CropView
    p: float = 0.5
    warmup_epochs: float = 0.0

    @property
    def canvas(self) -> int:
        """S, side of the view in pixels."""
        return self.pasted.canvas

    def share(self, epoch: int) -> float:
        """Give the share of composites in an epoch."""
        return self.p * min(1.0, epoch / self.warmup_epochs) if self.warmup_epochs else self.p

    def choose(self, rng: np.random.Generator, epoch: int) -> PasteView | CropView:
        """Draw the kind of one view; `rng`, which the view is then made with, stays as it is."""
        return self.pasted if rng.spawn(1)[0].random() < self.share(epoch) else self.cropped


@dataclass(frozen=True)
class ViewSampler:
    """Composes the views of one sample.

    Args:
        view: makes one view of a foreground: a PasteView, a CropView, or a MixedView of both.
        queries: V.
        jitter: draws the box that a query pools.
        colour: draws colour, blur and flip.
        augmenters: applied to each view, one after the other, before its colour; of one that returns another box the
            foreground is taken to lie where it did.
        foregrounds: handed to the augmenters.
        jitter_crops: also jitter the box of a CropView, the canvas.

    Example:
        >>> sampler = ViewSampler(CropView(64), queries=2)
        >>> views = sampler(np.zeros((120, 80, 3), np.uint8), lambda number: np.random.default_rng(number).spawn(2))
        >>> views.images.shape  # two queries and the key
        torch.Size([3, 64, 64, 3])
    """

    view: PasteView | CropView | MixedView
    queries: int = 2
    jitter: BoxJitter = field(default_factory=NoJitter)
    colour: ColourJitter = field(default_factory=ColourJitter)
    augmenters: Sequence[Augmenter] = ()
    foregrounds: Images = ()
    jitter_crops: bool = True

    def __call__(
        self, foreground: np.ndarray, rng: Callable[[int], Sequence[np.random.Generator]], epoch: int = 0
    ) -> Views:
        """Sample.

        Args:
            foreground: `(H, W, 3)` uint8 RGB.
            rng: view number -> two generators, of its geometry and of its colour, so that a switch in one leaves the
                other as it was. The key is number 0 and the queries 1..V, so that another V leaves the views that both
                have as they are.
            epoch: of pretraining; what a MixedView's warm-up goes by, and what backgrounds may.
        """
        count, side = self.queries + 1, self.view.canvas
        streams = [rng(number) for number in (*range(1, count), 0)]
        colour = self.colour.draw([tint for _, tint in streams])
        images = np.empty((count, side, side, 3), np.uint8)
        exact, jittered, sources = np.empty((3, count, 4), np.float32)
        for i, ((geometry, _), flip) in enumerate(zip(streams, colour.flip.tolist(), strict=True)):
            view = self.view.choose(geometry, epoch) if isinstance(self.view, MixedView) else self.view
            if isinstance(view, PasteView):
                image, box, source = view(geometry, foreground, images[i], epoch)
            else:
                image, box, source = view(geometry, foreground, images[i])
            for augment in self.augmenters:
                before = box.copy()
                image, box = self._check_view(augment, augment(geometry, image, box, self.foregrounds))
                if not np.array_equal(box, before):
                    source = _shown(box, before, source)
            u0, v0, u1, v1 = source.tolist()
            if self.augmenters:
                images[i] = image
            x0, y0, x1, y1 = box.tolist()
            exact[i] = (side - x1, y0, side - x0, y1) if flip else (x0, y0, x1, y1)
            sources[i] = (u1, v0, u0, v1) if flip else (u0, v0, u1, v1)
            jitters = self.jitter_crops or isinstance(view, PasteView)
            jittered[i] = self._check_jittered(self.jitter(geometry, exact[i].copy(), side)) if jitters else exact[i]
        pixels, *boxes = (torch.from_numpy(array) for array in (images, exact, jittered, sources))
        return Views(pixels, boxes[0], boxes[1], boxes[2], colour)

    def _check_view(self, augment: Augmenter, found: object) -> tuple[np.ndarray, np.ndarray]:
        """Refuse what is no view.

        Raises:
            CodoError: an augmenter returned something of another shape or kind.
        """
        side = self.view.canvas
        image, box = found if isinstance(found, tuple | list) and len(found) == 2 else (None, None)
        checked = _box(box)
        if (
            not isinstance(image, np.ndarray)
            or image.shape != (side, side, 3)
            or image.dtype != np.uint8
            or checked is None
        ):
            raise CodoError(
                f"augmenter {_name(augment)}: must return an image ({side}, {side}, 3) uint8 and a box (4,), {CORNERS}"
            )
        return image, checked

    def _check_jittered(self, found: object) -> np.ndarray:
        """Refuse what is no box.

        Raises:
            CodoError: the jitter returned something else.
        """
        box = _box(found)
        if box is None:
            raise CodoError(f"jitter {_name(self.jitter)}: must return a box (4,), {CORNERS}")
        return box


def _shown(box: np.ndarray, patch: np.ndarray, source: np.ndarray) -> np.ndarray:
    """Find what of the foreground `box` shows on a canvas where `patch` shows `source`: all `(4,)`."""
    scale = (source[2:] - source[:2]) / (patch[2:] - patch[:2])
    return np.concatenate([source[:2] + (corner - patch[:2]) * scale for corner in (box[:2], box[2:])])


CORNERS = "finite, x0 < x1 and y0 < y1"


def _box(found: Any) -> np.ndarray | None:
    """Read a box with an area, `(4,)` float32; None where it is none."""
    try:
        box = np.asarray(found, np.float32)
    except (TypeError, ValueError):
        return None
    if box.shape != (4,):
        return None
    x0, y0, x1, y1 = box.tolist()
    return box if -math.inf < x0 < x1 < math.inf and -math.inf < y0 < y1 < math.inf else None


def _name(part: object) -> str:
    return getattr(part, "__name__", type(part).__name__)
