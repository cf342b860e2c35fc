"""The sheet of nearest neighbours: what is drawn beside a query, and which of it is framed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from codo.jobs.pretrain.preview import CELL, EXACT, GAP, HEADER
from codo.jobs.probe.bench import Bench
from codo.jobs.probe.measure import Embedded
from codo.jobs.probe.sheet import DRAWN, draw_sheet

COUNT, NUMBER, CANVAS = 6, 5, 24
FRAME_INSIDE = 8
"""A row of a cell that is inside a frame, and outside the patch."""


@pytest.fixture
def bench() -> Bench:
    """Instance i is a patch of grey 10 i, its other view one brighter; background m is grey 200 + m."""
    greys = torch.arange(COUNT, dtype=torch.uint8)[:, None, None, None] * 10
    patches = greys.expand(COUNT, 16, 16, 3)
    backgrounds = (200 + torch.arange(NUMBER, dtype=torch.uint8))[:, None, None, None]
    boxes = torch.zeros(COUNT, 1, 4)
    scenes = backgrounds.expand(NUMBER, CANVAS, CANVAS, 3)
    return Bench(patches, patches + 1, scenes, boxes, boxes[..., 0], ([], []))


def cell(picture: np.ndarray, row: int, column: int) -> np.ndarray:
    x, y = GAP + column * (CELL + GAP), HEADER + GAP + row * (CELL + GAP)
    return picture[y : y + CELL, x : x + CELL]


def test_neighbours_are_other_views_by_each_representation_and_the_same_instance_is_framed(bench):
    instance = torch.eye(COUNT)[:, None].expand(COUNT, NUMBER, COUNT)
    background = torch.eye(NUMBER).expand(COUNT, NUMBER, NUMBER)
    one = {"backbone": background, "box_head": instance, "embedding": instance}
    picture = np.asarray(draw_sheet(Embedded(one, one, {}), bench))
    frame = np.array([int(EXACT[i : i + 2], 16) for i in (1, 3, 5)])
    assert picture.shape[1] == GAP + (CELL + GAP) * (1 + 4 * len(DRAWN)), "a query, and four neighbours by each of two"
    for row in range(COUNT):
        query = cell(picture, row, 0)
        assert query[CELL // 2, CELL // 2, 0] == 10 * row, "the query is the exact patch"
        assert query[2, CELL // 2, 0] == 200 + row % NUMBER, "on its background"
        by_background, by_instance = (
            [cell(picture, row, c) for c in columns] for columns in (range(1, 5), range(5, 9))
        )
        for found in by_instance:
            assert found[CELL // 2, CELL // 2, 0] == 10 * row + 1, "another view of the same"
            assert (found[0, 0] == frame).all()
        for found in by_background:
            assert found[FRAME_INSIDE, CELL // 2, 0] == 200 + row % NUMBER, "on the query's own background"
            assert (found[0, 0] == frame).all() == (found[CELL // 2, CELL // 2, 0] == 10 * row + 1)


def test_an_encoder_without_a_box_head_has_one_block(bench):
    one = {"backbone": torch.eye(COUNT)[:, None].expand(COUNT, NUMBER, COUNT)}
    assert draw_sheet(Embedded(one, one, {}), bench, queries=2).size == (
        GAP + (CELL + GAP) * 5,
        HEADER + GAP + (CELL + GAP) * 2,
    )
