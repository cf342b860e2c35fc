"""Samples for pretraining: which foreground is drawn when, its views, and the loader."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from codo.augment import ColourParameters, CropView, Views, ViewSampler
from codo.data.cache import ImagePool
from codo.data.images import ImageError
from codo.errors import CodoError
from codo.runs.hardware import Hardware
from codo.runs.seed import generator, generators
from codo.runs.world import World

MAX_SUBSTITUTES = 100
"""Images in a row that may be unreadable before the run is ended."""


class Sample(NamedTuple):
    """One sample: its views, the index of the foreground used, and the names of unreadable images passed over."""

    views: Views
    foreground: Tensor
    skipped: list[str]


class Readable:
    """The images of a pool; the next one stands in for one that cannot be read.

    Args:
        pool: the images.
        name: of the pool, for `skipped`.
        skipped: takes the names of those that cannot be read.
    """

    def __init__(self, pool: ImagePool, name: str, skipped: list[str]) -> None:
        self.pool, self.name, self.skipped = pool, name, skipped

    def __len__(self) -> int:
        return len(self.pool)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.read(index)[0]

    def read(self, index: int) -> tuple[np.ndarray, int]:
        """Read an image `(H, W, 3)` uint8, and tell which one it is."""
        first = range(len(self.pool))[index]
        for offset in range(MAX_SUBSTITUTES):
            chosen = (first + offset) % len(self.pool)
            try:
                return self.pool[chosen], chosen
            except ImageError as error:
                last = error
                self.skipped.append(f"{self.name}: {self.pool.paths.name_of(chosen)}")
        raise CodoError(f"{MAX_SUBSTITUTES} {self.name} in a row cannot be read, the last: {last}")


class SampleDataset(Dataset[Sample]):
    """Views of foregrounds. What a sample looks like is a function of (seed, epoch, index, view) alone.

    Args:
        images: the foregrounds; its `skipped` is that of all images that the sampler reads.
        sampler: composes the views.
        seed: of the run.
        unreadable: names of the images that were left out.
        backgrounds: pool of backgrounds -> how many images it has.

    Attributes:
        foregrounds: the pool of foregrounds.
    """

    def __init__(
        self,
        images: Readable,
        sampler: ViewSampler,
        seed: int,
        unreadable: Collection[str] = (),
        backgrounds: Mapping[str, int] | None = None,
    ) -> None:
        self.images, self.foregrounds = images, images.pool
        self.sampler, self.seed, self.unreadable, self.backgrounds = sampler, seed, unreadable, backgrounds or {}

    def __len__(self) -> int:
        return len(self.foregrounds)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        """Make the sample of `(epoch, index)`; the next foreground stands in for one that cannot be read."""
        epoch, index = key
        self.images.skipped.clear()
        foreground, chosen = self.images.read(index)
        views = self.sampler(foreground, partial(generators, 2, "view", self.seed, epoch, index), epoch)
        return Sample(views, torch.tensor(chosen), list(self.images.skipped))


class Background:
    """Draws a background uniformly from pools.

    Args:
        downstream: squares of the canvas's side, of the downstream data set; None where it is not used.
        own: squares of the foregrounds; None where they are not used.
        probability: of the downstream pool, where both are given.
        crop: makes the background of an image; with it the pools hold images of any size. None: the square itself.
        per_epoch: images of a pool that an epoch draws from; None: all.
        seed: draws which.
    """

    def __init__(
        self,
        downstream: Readable | None,
        own: Readable | None,
        probability: float = 1.0,
        crop: CropView | None = None,
        per_epoch: int | None = None,
        seed: int = 0,
    ) -> None:
        self.downstream, self.own, self.probability, self.crop = downstream, own, probability, crop
        self.per_epoch, self.seed = per_epoch, seed

    def __call__(self, rng: np.random.Generator, epoch: int) -> np.ndarray:
        """Draw one `(S, S, 3)` uint8."""
        image = self.draw(rng, epoch)
        return image if self.crop is None else self.crop(rng, image)[0]

    def draw(self, rng: np.random.Generator, epoch: int) -> np.ndarray:
        """Draw an image of the pools."""
        chance = rng.random()
        pool = self.own if self.downstream is None or (self.own and chance >= self.probability) else self.downstream
        assert pool is not None, "one of the two pools is needed"
        if self.per_epoch is None or self.per_epoch >= len(pool):
            return pool[int(rng.integers(len(pool)))]
        chosen = generator("backgrounds", self.seed, epoch).choice(len(pool), self.per_epoch, replace=False)
        return pool[int(chosen[rng.integers(self.per_epoch)])]


class StepSampler(Sampler[list[tuple[int, int]]]):
    """The (epoch, index) keys of every step from `first` on; each epoch is a permutation drawn from (seed, epoch).

    Args:
        size: number of foregrounds.
        batch_size: samples a step; what is left over at the end of an epoch is left out.
        seed: of the run.
        first: the first step to yield, for a resumed run.
        last: the step before which to stop.
        world: the processes that share a batch; this one's part is yielded.
    """

    def __init__(
        self, size: int, batch_size: int, seed: int, first: int, last: int, world: World | None = None
    ) -> None:
        self.size, self.batch_size, self.seed, self.first, self.last = size, batch_size, seed, first, last
        self.world = world or World()

    def __len__(self) -> int:
        return self.last - self.first

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        per_epoch = self.size // self.batch_size
        epoch, order = -1, np.empty(0, np.int64)
        for step in range(self.first, self.last):
            if step // per_epoch != epoch:
                epoch = step // per_epoch
                order = generator("order", self.seed, epoch).permutation(self.size)
            start = step % per_epoch * self.batch_size
            yield self.world.share([(epoch, int(i)) for i in order[start : start + self.batch_size]])


def collate(samples: Sequence[Sample]) -> Sample:
    """Join samples; every tensor gets a leading dimension B, `skipped` is joined, `foreground` is a tensor `(B,)`."""
    views = [sample.views for sample in samples]
    images, exact, boxes, sources = (torch.stack(column) for column in list(zip(*views, strict=True))[:-1])
    colour = ColourParameters.stack([view.colour for view in views])
    return Sample(
        Views(images, exact, boxes, sources, colour),
        torch.stack([sample.foreground for sample in samples]),
        [name for sample in samples for name in sample.skipped],
    )


def sample_loader(dataset: SampleDataset, steps: StepSampler, hardware: Hardware) -> DataLoader[Sample]:
    """Load the samples of `steps`, in that order, with `hardware.workers` processes."""
    return DataLoader(dataset, batch_sampler=steps, collate_fn=collate, **hardware.loader_options())
