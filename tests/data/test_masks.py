"""Masks against pycocotools' own decoding, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from codo.data.coco import load_coco
from codo.data.masks import check_mask, draw_mask, has_mask, to_rle
from codo.errors import CodoError

WIDTH, HEIGHT = 37, 23


def random_mask(seed: int, density: float) -> np.ndarray:
    rng = np.random.default_rng(seed)
    coarse = rng.random((5, 6)) < density
    return np.kron(coarse, np.ones((5, 7), bool))[:HEIGHT, :WIDTH].astype(np.uint8)


def encoded(mask: np.ndarray) -> dict[str, Any]:
    rle = coco_mask.encode(np.asfortranarray(mask))
    return {"size": list(rle["size"]), "counts": rle["counts"].decode()}


def run_lengths(mask: np.ndarray) -> dict[str, Any]:
    column = mask.ravel(order="F")
    edges = np.flatnonzero(np.diff(column)) + 1
    runs = np.diff([0, *edges, column.size]).tolist()
    return {"size": list(mask.shape), "counts": [0, *runs] if column[0] else runs}


@pytest.mark.parametrize("density", [0.0, 0.2, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("encode", [encoded, run_lengths])
def test_either_rle_is_decoded_as_pycocotools_does(encode: Any, density: float) -> None:
    for seed in range(5):
        mask = random_mask(seed, density)
        np.testing.assert_array_equal(draw_mask(encode(mask), (WIDTH, HEIGHT), (WIDTH, HEIGHT)), mask)
        assert to_rle(encode(mask), WIDTH, HEIGHT)["counts"].decode() == encoded(mask)["counts"]


def test_long_runs_and_negative_differences_are_read() -> None:
    mask = np.zeros((1500, 1200), np.uint8)
    mask[3:1400, 5:900] = 1
    mask[7, 1100] = 1
    np.testing.assert_array_equal(draw_mask(encoded(mask), (1200, 1500), (1200, 1500)), mask)


def test_polygons_are_drawn_as_pycocotools_does_and_joined() -> None:
    polygons = [[2, 2, 15, 3, 12, 18.5, 3, 14], [20.5, 5, 50, 6, 30, 30]]  # the second one leaves the image
    expected = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, HEIGHT, WIDTH)))
    np.testing.assert_array_equal(draw_mask(polygons, (WIDTH, HEIGHT), (WIDTH, HEIGHT)), expected)
    with_dots = [*polygons, [1, 1, 30, 20], [5, 5]]  # four numbers would be a box to pycocotools
    np.testing.assert_array_equal(draw_mask(with_dots, (WIDTH, HEIGHT), (WIDTH, HEIGHT)), expected)


def test_scaled_polygons_are_smooth_and_scaled_rles_are_nearest_neighbours() -> None:
    triangle = [[4.0, 2.0, 34.0, 2.0, 19.0, 20.0]]
    large = draw_mask(triangle, (WIDTH, HEIGHT), (4 * WIDTH, 4 * HEIGHT))
    by_hand = coco_mask.frPyObjects([[4 * v for v in triangle[0]]], 4 * HEIGHT, 4 * WIDTH)
    np.testing.assert_array_equal(large, coco_mask.decode(coco_mask.merge(by_hand)))
    unequal = draw_mask(triangle, (WIDTH, HEIGHT), (2 * WIDTH, HEIGHT))
    assert unequal.shape == (HEIGHT, 2 * WIDTH)
    assert abs(int(unequal.sum()) - 2 * int(draw_mask(triangle, (WIDTH, HEIGHT), (WIDTH, HEIGHT)).sum())) < 40
    mask = random_mask(1, 0.5)
    doubled = draw_mask(encoded(mask), (WIDTH, HEIGHT), (2 * WIDTH, 2 * HEIGHT))
    np.testing.assert_array_equal(doubled, np.kron(mask, np.ones((2, 2), np.uint8)))


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ({"size": [HEIGHT, WIDTH], "counts": [5, 7]}, "add up to 12 pixels; its image, 37 x 23, has 851"),
        ({"size": [HEIGHT, WIDTH], "counts": [900, -49]}, "whole numbers from 0"),
        ({"size": [HEIGHT, WIDTH], "counts": [850.5, 0.5]}, "whole numbers from 0"),
        ({"size": [WIDTH, HEIGHT], "counts": [851]}, r"of size \[37, 23\]; its image is \[23, 37\]"),
        ({"size": None, "counts": [851]}, "of size None"),
        ({"size": [HEIGHT, WIDTH]}, "neither a list nor a text"),
        ({"size": [HEIGHT, WIDTH], "counts": "5"}, "add up to 5"),
        ({"size": [HEIGHT, WIDTH], "counts": "c"}, "cut off"),
        ({"size": [HEIGHT, WIDTH], "counts": "o" * 40}, "not COCO's compressed RLE"),
        ({"size": [HEIGHT, WIDTH], "counts": " !\x7f"}, "not COCO's compressed RLE"),
        ({"size": [HEIGHT, WIDTH], "counts": "\ud800"}, "not COCO's compressed RLE"),
        ([[1, 1, 5, 5]], "no polygon of three points"),
        ([["a"] * 6], "no number within"),
        ([[0, 0, 5, float("nan"), 5, 5]], "no number within"),
        ([[0, 0, 1e9, 0, 5, 5]], "no number within 100,000 pixels"),
        ([], "no polygon"),
        (None, "neither polygons nor an RLE"),
        ("mask", "neither polygons nor an RLE"),
    ],
)
def test_a_broken_segmentation_is_refused_in_one_line(segmentation: Any, message: str) -> None:
    for call in (check_mask, to_rle):
        with pytest.raises(CodoError, match=message) as refused:
            call(segmentation, WIDTH, HEIGHT)
        assert "\n" not in str(refused.value)
    with pytest.raises(CodoError):
        draw_mask(segmentation, (WIDTH, HEIGHT), (2 * WIDTH, HEIGHT))


def test_what_has_a_mask() -> None:
    for segmentation, expected in (
        ([[0, 0, 5, 0, 5, 5]], True),
        ([[0, 0, 5, 5]], False),
        ([], False),
        (None, False),
        ({"counts": "5", "size": [1, 5]}, True),
        ({"counts": [], "size": [1, 5]}, False),
    ):
        assert has_mask({"segmentation": segmentation}) is expected
    assert not has_mask({})


@pytest.mark.parametrize(
    ("file", "kinds"),
    [("coco_mini/instances_val_masks.json", {"text"}), ("tiny_coco/instances_val.json", {"polygons", "runs"})],
)
def test_real_masks(real_data: Path, file: str, kinds: set[str]) -> None:
    """As pycocotools draws them; and the area is the one that the data set states."""
    coco = load_coco(real_data / file, (real_data / file).parent / "images")
    reference = COCO()
    seen = set()
    for image in coco.images:
        reference.imgs[image.id] = {"width": image.width, "height": image.height}
        for a in coco.annotations[image.id]:
            found = a["segmentation"]
            kind = "polygons" if isinstance(found, list) else "text" if isinstance(found["counts"], str) else "runs"
            if image in coco.images[:12] or kind == "runs":
                seen.add(kind)
                mask = draw_mask(found, (image.width, image.height), (image.width, image.height))
                np.testing.assert_array_equal(mask, reference.annToMask(a))
                if kind == "text":
                    assert mask.sum() == a["area"]
    assert seen == kinds
