"""Queries and their nearest neighbours, to look at."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw

from codo.jobs.pretrain.preview import CELL, EXACT, fit, sheet
from codo.jobs.probe.bench import Bench
from codo.jobs.probe.features import COMMON
from codo.jobs.probe.measure import Embedded

QUERIES, NEAREST = 8, 5
FRAME = 6


def draw_sheet(embedded: Embedded, bench: Bench, queries: int = QUERIES) -> Image.Image:
    """Draw composites, one row each, and the nearest of all others by the representation that every method has.

    Those that show the same instance are framed in green. Where the background decides, the neighbours of a query lie
    on its own background.

    Args:
        embedded: of the bench.
        bench: the composites.
        queries: rows; instance i on background i mod M.
    """
    rows = embedded.composites[COMMON]
    count, number, _ = rows.shape
    unit = F.normalize(rows.flatten(0, 1), dim=1)
    drawn = []
    for i in range(min(queries, count)):
        query = i * number + i % number
        cosine = unit @ unit[query]
        cosine[query] = -torch.inf
        nearest = cosine.topk(min(NEAREST, len(unit) - 1)).indices.tolist()
        cells = [_cell(bench, query)]
        for place in nearest:
            cell = _cell(bench, place)
            if place // number == i:
                ImageDraw.Draw(cell).rectangle((0, 0, CELL - 1, CELL - 1), outline=EXACT, width=FRAME)
            cells.append(cell)
        drawn.append(cells)
    header = ["query", *(f"{place + 1}." for place in range(len(drawn[0]) - 1))]
    return sheet(header, drawn)


def _cell(bench: Bench, place: int) -> Image.Image:
    number = len(bench.backgrounds)
    pictures = bench.composites(bench.patches[place // number][None])
    return fit(Image.fromarray(pictures[0, place % number].numpy()))
