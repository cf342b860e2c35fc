"""A contact sheet of real samples: look at it before you believe the augmenters."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from codo.augment import (
    ColourParameters,
    CropView,
    MixedView,
    PasteView,
    ViewSampler,
    denormalise,
    finish_views,
)
from codo.config.pretrain import PretrainConfig
from codo.errors import CodoError
from codo.jobs.pretrain.build import build_dataset, find_sources
from codo.jobs.pretrain.samples import StepSampler
from codo.runs.files import atomic_path

CELL = 192
"""Least side of a picture on the sheet, pixels."""
GAP, HEADER = 8, 28
EXACT, JITTERED, INK, PAPER = "#21d07a", "#ff8c1a", "#1d1d1f", "#f5f5f2"


@dataclasses.dataclass(frozen=True)
class RecordingPaste(PasteView):
    """Pastes, and adds the view's background to a list."""

    drawn: list[np.ndarray | None] = dataclasses.field(default_factory=list)

    def choose_background(self, rng: np.random.Generator, patch: np.ndarray, epoch: int) -> np.ndarray:
        """Draw one, and keep it."""
        background = super().choose_background(rng, patch, epoch)
        self.drawn.append(background)
        return background


@dataclasses.dataclass(frozen=True)
class RecordingCrop(CropView):
    """Crops, and adds to a list that this view has no background."""

    drawn: list[np.ndarray | None] = dataclasses.field(default_factory=list)

    def __call__(
        self, rng: np.random.Generator, foreground: np.ndarray, out: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Make the view; see CropView."""
        self.drawn.append(None)
        return super().__call__(rng, foreground, out)


def recorded(sampler: ViewSampler, drawn: list[np.ndarray | None]) -> ViewSampler:
    """Make a sampler that lists each view's background in `drawn`, None where it has none; of crops alone, nothing."""
    view = sampler.view
    if isinstance(view, PasteView):
        view = RecordingPaste(**vars(view), drawn=drawn)
    elif isinstance(view, MixedView):
        pasted = RecordingPaste(**vars(view.pasted), drawn=drawn)
        view = dataclasses.replace(view, pasted=pasted, cropped=RecordingCrop(**vars(view.cropped), drawn=drawn))
    return dataclasses.replace(sampler, view=view)


def preview(config: PretrainConfig, samples: int, out: Path) -> int:
    """Draw the first samples of `shown_epoch`, as the network would see them.

    Args:
        config: of the pretraining.
        samples: rows; fewer where there are fewer foregrounds.
        out: the PNG to write.

    Returns:
        The number of samples drawn.
    """
    check_png("--out", out)
    dataset = build_dataset(config, find_sources(config))
    drawn: list[np.ndarray | None] = []
    dataset.sampler = recorded(dataset.sampler, drawn)
    count = min(samples, len(dataset))
    first = shown_epoch(config) * (len(dataset) // count)
    (keys,) = StepSampler(len(dataset), count, config.seed, first, first + 1)
    names = [*(f"query {v + 1}" for v in range(config.views)), "key"]
    before = ["background"] if config.background else []
    header = ["foreground", *(part for name in names for part in [*before, name])]
    rows = []
    for key in keys:
        drawn.clear()
        sample = dataset[key]
        views = _visible(sample.views.images, sample.views.colour, config.colour.exact)
        cells = [fit(Image.fromarray(dataset.foregrounds[int(sample.foreground)]))]
        for v, picture in enumerate(views):
            if config.background:
                cells.append(_background_cell(drawn[v]))
            boxes = [(sample.views.exact_boxes[v].tolist(), EXACT)]
            if v < config.views:
                boxes.append((sample.views.boxes[v].tolist(), JITTERED))
            cells.append(_with_boxes(fit(picture), boxes, config.canvas))
        rows.append(cells)
    write_png(out, sheet(header, rows))
    return count


def check_png(flag: str, path: Path) -> None:
    """Refuse a sheet that is not named as a PNG; `flag` named it."""
    if path.suffix.lower() != ".png":
        raise CodoError(f"{flag} {path}: the sheet is a PNG, name it {path.with_suffix('.png')}")


def write_png(path: Path, picture: Image.Image) -> None:
    """Write a picture, whole or not at all."""
    with atomic_path(path) as temporary:
        picture.save(temporary, format="PNG")


def shown_epoch(config: PretrainConfig) -> int:
    """Give the epoch that a preview is of: 0, or the first one after the warm-up of `paste.p`."""
    return math.ceil(config.paste.warmup_epochs) if config.mixes_views else 0


def _visible(images: torch.Tensor, colour: ColourParameters, exact: bool) -> list[Image.Image]:
    """Undo the normalisation of finished views."""
    finished = finish_views(images, colour, exact=exact)
    pixels = (denormalise(finished) * 255).round().clamp(0, 255).to(torch.uint8)
    return [Image.fromarray(np.ascontiguousarray(p.permute(1, 2, 0).numpy())) for p in pixels]


def fit(picture: Image.Image) -> Image.Image:
    """Centre a picture in a cell."""
    scale = CELL / max(picture.size)
    small = picture.resize(
        (max(1, round(picture.width * scale)), max(1, round(picture.height * scale))), Image.Resampling.BICUBIC
    )
    cell = Image.new("RGB", (CELL, CELL), PAPER)
    cell.paste(small, ((CELL - small.width) // 2, (CELL - small.height) // 2))
    return cell


def _background_cell(background: np.ndarray | None) -> Image.Image:
    return Image.new("RGB", (CELL, CELL), PAPER) if background is None else fit(Image.fromarray(background))


def _with_boxes(cell: Image.Image, boxes: list[tuple[list[float], str]], canvas: int) -> Image.Image:
    draw = ImageDraw.Draw(cell)
    for box, colour in boxes:
        x0, y0, x1, y1 = (round(v * CELL / canvas) for v in box)
        draw.rectangle((x0, y0, max(x0, x1 - 1), max(y0, y1 - 1)), outline=colour, width=2)
    return cell


def sheet(header: list[str], rows: list[list[Image.Image]]) -> Image.Image:
    """Lay cells out in rows below their header."""
    step = CELL + GAP
    sheet = Image.new("RGB", (GAP + step * len(header), HEADER + GAP + step * len(rows)), PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for column, name in enumerate(header):
        draw.text((GAP + column * step, GAP), name, INK, font=font)
    for r, cells in enumerate(rows):
        for column, cell in enumerate(cells):
            sheet.paste(cell, (GAP + column * step, HEADER + GAP + r * step))
    return sheet
