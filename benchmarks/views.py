"""A view's time, on one thread: codo beside the classic InsLoc pipeline in PIL and lightly's MoCo v2.

    CODO_DATA=../shared/data python -m benchmarks.views            # some minutes
    CODO_DATA=../shared/data python -m benchmarks.views --small    # seconds; writes nothing

Every side makes two views of a foreground and ends with normalised float tensors, codo's in batches of 16 samples and
in channels-last memory as a training step takes them. The foregrounds are the same for all sides; codo and InsLoc paste
them on backgrounds, lightly has none. Images: $CODO_DATA/objects_open on $CODO_DATA/cards (small files), and
$CODO_DATA/tiny_coco on itself (COCO's own files, for the decoder).
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightly.transforms import MoCoV2Transform
from PIL import Image, ImageFilter
from torch import Tensor
from torchvision import transforms as T

from benchmarks import view_errors
from benchmarks.pictures import real_images
from benchmarks.results_file import Row, facts, table, versions, write
from codo.augment import IMAGENET_MEAN, IMAGENET_STD, finish_views, patch_size, random_crop
from codo.config import PretrainConfig
from codo.data.coco import background_paths
from codo.data.images import list_images
from codo.data.sample import sample_data
from codo.jobs.bench.machine import machine, peaks
from codo.jobs.bench.timing import Times, in_turns
from codo.jobs.pretrain.build import build_dataset, find_sources
from codo.jobs.pretrain.samples import SampleDataset, collate

BATCH, VIEWS = 16, 2
"""Samples of a batch; views of a sample, the query and the key."""


class InsLoc:
    """InsLoc's data path in the classic form: PIL images through torchvision's transforms."""

    def __init__(self, canvas: int, backgrounds: Sequence[Path]) -> None:
        self.canvas, self.backgrounds = canvas, backgrounds
        self.rng = np.random.default_rng(0)
        self.finish = T.Compose(
            [
                T.RandomApply([T.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
                T.RandomGrayscale(p=0.2),
                T.RandomApply([T.Lambda(self.blur)], p=0.5),
                T.RandomHorizontalFlip(),
                T.ToTensor(),
                T.Normalize(IMAGENET_MEAN, IMAGENET_STD),
            ]
        )

    @staticmethod
    def blur(image: Image.Image) -> Image.Image:
        return image.filter(ImageFilter.GaussianBlur(radius=random.uniform(0.1, 2.0)))

    def view(self, foreground: Image.Image) -> Tensor:
        x0, y0, x1, y1 = random_crop(self.rng, *foreground.size)
        width, height = patch_size(self.rng, x1 - x0, y1 - y0, self.canvas)
        patch = foreground.crop((x0, y0, x1, y1)).resize((width, height), Image.Resampling.BILINEAR)
        file = self.backgrounds[int(self.rng.integers(len(self.backgrounds)))]
        canvas = Image.open(file).convert("RGB").resize((self.canvas, self.canvas), Image.Resampling.BILINEAR)
        place = (self.rng.integers(self.canvas - width + 1), self.rng.integers(self.canvas - height + 1))
        canvas.paste(patch, (int(place[0]), int(place[1])))
        return self.finish(canvas)

    def __call__(self, file: Path) -> list[Tensor]:
        foreground = Image.open(file).convert("RGB")
        return [self.view(foreground) for _ in range(VIEWS)]


def dataset(canvas: int, foregrounds: Path, backgrounds: Path, *, cache: str) -> SampleDataset:
    """Build the data set of a pretraining run with one query view."""
    config = PretrainConfig.model_validate(
        {
            "canvas": canvas,
            "views": VIEWS - 1,
            "data": {"foregrounds": str(foregrounds), "backgrounds": str(backgrounds)},
            "run": {"cache": cache},
        }
    )
    return build_dataset(config, find_sources(config))


def codo(data: SampleDataset, rows: Sequence[int], epoch: int) -> Tensor:
    """Make a batch as a training step sees it: samples, collated, finished."""
    views = collate([data[(epoch, row)] for row in rows]).views
    colour = type(views.colour)(*(c.transpose(0, 1).flatten(0, 1) for c in views.colour))
    return finish_views(views.images.transpose(0, 1).flatten(0, 1), colour)


def batches(size: int) -> Iterator[tuple[int, np.ndarray]]:
    """Draw the rows of batches, the same for every side, and number them."""
    order = np.random.default_rng(0).permutation(size)
    for number in count():
        yield number, order[(np.arange(BATCH) + number * BATCH) % size]


def measure(canvas: int, foregrounds: Path, backgrounds: Path, rounds: int) -> Times:
    """Time all sides in turns; seconds a batch."""
    off, cached = (dataset(canvas, foregrounds, backgrounds, cache=cache) for cache in ("off", "disk"))
    files = off.foregrounds.paths
    if cached.foregrounds.paths != files:
        raise SystemExit("broken files among the foregrounds: the sides would not see the same images")
    classic, transform = InsLoc(canvas, background_paths(backgrounds)), MoCoV2Transform(input_size=canvas)
    pixels = torch.zeros(BATCH * VIEWS, canvas, canvas, 3, dtype=torch.uint8)
    works: dict[str, Callable[[int, np.ndarray], Any]] = {
        "InsLoc": lambda _, rows: [classic(files[i]) for i in rows],
        "lightly": lambda _, rows: [transform(Image.open(files[i]).convert("RGB")) for i in rows],
        "lightly cached": lambda _, rows: [transform(Image.fromarray(cached.foregrounds[i])) for i in rows],
        "codo": lambda number, rows: codo(off, rows, number),
        "codo cached": lambda number, rows: codo(cached, rows, number),
        # What no view can do without: its pixels are read, and written as floats.
        "floor": lambda _, rows: pixels.float(),
    }

    def side(work: Callable[[int, np.ndarray], Any]) -> Callable[[], Any]:
        turns = batches(len(files))
        return lambda: work(*next(turns))

    return in_turns({name: side(work) for name, work in works.items()}, rounds=rounds, warm_up=2)


def milliseconds(times: Times) -> dict[str, float]:
    """Median milliseconds a view of each side."""
    return {name: 1e3 * times.median(name) / (BATCH * VIEWS) for name in times.seconds}


TARGETS = [
    (256, "from JPEG files", "codo", [("InsLoc", 3), ("lightly", 1.8)]),
    (256, "cached", "codo cached", [("InsLoc", 12), ("lightly cached", 6)]),
    (128, "cached", "codo cached", [("InsLoc", 24), ("lightly cached", 7)]),
]


WHY = [
    "Where a row misses: of a view from files most is decoding, which both sides leave to libjpeg-turbo, "
    "and codo decodes at half size only where that is enough for the canvas. InsLoc's path decodes in every "
    "row, so that its ratios shrink with small files. Of a cached view about a third is geometry (two "
    "generators, a resize, the draws), the rest in fp32 one matrix product for the "
    "colour and, for half of the views, a weighted sum and a product of tiles for the "
    "blur. Dense, strided and depthwise convolutions, larger "
    "tiles and planar memory were timed for these and are slower on this processor, which has no AMX.",
    "",
]


def compare(images: str, canvas: int, times: Times) -> list[Row]:
    """Hold the ratios of one run against the targets."""
    cost, rows = milliseconds(times), []
    for side, how, ours, peers in TARGETS:
        for peer, target in peers if side == canvas else []:
            low, high = times.spread(peer, ours)
            work = f"{images}: a {canvas} px view {how}, {peer} beside codo"
            figures = f"{cost[peer]:.2f} ms against {cost[ours]:.2f} ms (rounds {low:.1f} to {high:.1f})"
            rows.append(Row(work, figures, times.ratio(peer, ours), target, note="views.md says why"))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--small", action="store_true", help="one round at 128 px, a handful of images; write nothing")
    parser.add_argument("--rounds", type=int, default=25)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    about = machine() | versions("torch", "torchvision", "lightly", "pillow")
    about |= peaks(rounds=1 if arguments.small else 5)
    print(about, flush=True)
    rows, costs, pairs = [], {}, folders()
    for images, (foregrounds, backgrounds) in pairs.items():
        for canvas in [128] if arguments.small else [256, 128]:
            times = measure(canvas, foregrounds, backgrounds, 1 if arguments.small else arguments.rounds)
            costs[f"{images}, {canvas} px"] = milliseconds(times)
            rows += compare(images, canvas, times)
            print("\n".join(table(facts(rows))), flush=True)
    count = 10 if arguments.small else 200
    small, large = (spread(list_images(foregrounds), count) for foregrounds, _ in pairs.values())
    found = view_errors.measure(small, large)
    lines = [
        *WHY,
        "Milliseconds a view, medians:",
        "",
        *cost_table(costs),
        "",
        "Pixel errors of what is approximated, in levels of 255, over real images and drawn parameters:",
        "",
        *view_errors.table(found),
    ]
    print("\n".join(lines))
    if not arguments.small:
        title = "A view: codo beside InsLoc's path in PIL and lightly's MoCo v2, on one thread"
        write("views", title, "python -m benchmarks.views", about, rows, lines=lines, milliseconds=costs, errors=found)


def folders() -> dict[str, tuple[Path, Path]]:
    """Find the pairs of foregrounds and backgrounds: small files, and large ones."""
    data = real_images()
    if data is None:
        sample = sample_data()
        return dict.fromkeys(("sample data", "sample data again"), (sample / "foregrounds", sample / "detection"))
    return {
        "objects_open on cards": (data / "objects_open" / "images", data / "cards"),
        "tiny_coco on itself": (data / "tiny_coco" / "images", data / "tiny_coco"),
    }


def spread(paths: Sequence[Path], count: int) -> Sequence[Path]:
    """Take at most about `count` paths, evenly spread."""
    return paths[:: max(1, len(paths) // count)]


def cost_table(costs: dict[str, dict[str, float]]) -> list[str]:
    """Write the sides' milliseconds as a Markdown table."""
    names = list(next(iter(costs.values())))
    lines = [f"| | {' | '.join(names)} |", "|---|" + "---:|" * len(names)]
    return lines + [f"| {k} | " + " | ".join(f"{v[n]:.3f}" for n in names) + " |" for k, v in costs.items()]


if __name__ == "__main__":
    main()
