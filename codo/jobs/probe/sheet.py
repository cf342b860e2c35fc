"""Queries and their nearest neighbours, to look at."""

from __future__ import annotations

import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from codo.jobs.pretrain.preview import CELL, EXACT, fit, sheet
from codo.jobs.probe.bench import Bench
from codo.jobs.probe.features import COMMON
from codo.jobs.probe.measure import Embedded

QUERIES, NEAREST = 8, 4
FRAME = 6
DRAWN = {COMMON: "C5", "box_head": "box head"}
"""Representation -> what its neighbours are headed by: that which every method has, and that which transfers."""


def draw_sheet(embedded: Embedded, bench: Bench, queries: int = QUERIES) -> Image.Image:
    """Draw composites, one row each, and beside each the nearest of the other views, on any background.

    The neighbours are of another view of each instance, the gallery of the probes `view_*`: a copy of the query's own
    pixels is found by any network. Those that show the query's instance are framed in green. Where the background
    decides, they lie on the query's own.

    Args:
        embedded: of the bench; neighbours by its `backbone`, and by its `box_head` where it has one.
        bench: the composites.
        queries: rows; instance i on background i mod M.
    """
    count, number, _ = embedded.composites[COMMON].shape
    names = [name for name in DRAWN if name in embedded.composites]
    shown = min(NEAREST, count * number)
    drawn = []
    for i in range(min(queries, count)):
        cells = [_cell(bench, bench.patches, i * number + i % number)]
        for name in names:
            unit = F.normalize(embedded.views[name].flatten(0, 1), dim=1)
            nearest = (unit @ embedded.composites[name][i, i % number]).topk(shown).indices.tolist()
            cells += [_framed(_cell(bench, bench.views, place), same=place // number == i) for place in nearest]
        drawn.append(cells)
    header = ["query", *(f"{DRAWN[name]}: {place + 1}." for name in names for place in range(shown))]
    return sheet(header, drawn)


def _cell(bench: Bench, patches: Tensor, place: int) -> Image.Image:
    number = len(bench.backgrounds)
    pictures = bench.composites(patches[place // number][None])
    return fit(Image.fromarray(pictures[0, place % number].numpy()))


def _framed(cell: Image.Image, same: bool) -> Image.Image:
    if same:
        ImageDraw.Draw(cell).rectangle((0, 0, CELL - 1, CELL - 1), outline=EXACT, width=FRAME)
    return cell
