"""Soft edges against the blend in real numbers; hard ones, and the numbers drawn, as without the switch; likeness."""

from __future__ import annotations

import numpy as np
import pytest

from codo.augment.paste import fade, most_alike, paste


def blend(below: np.ndarray, patch: np.ndarray, share: float) -> np.ndarray:
    """Blend by the definition, pixel by pixel."""
    height, width, _ = patch.shape
    y, x = np.mgrid[:height, :width] + 0.5
    nearest = np.minimum(np.minimum(x, width - x), np.minimum(y, height - y))
    weight = np.clip(nearest / (share * min(height, width)), 0, 1)[..., None]
    return weight * patch + (1 - weight) * below


@pytest.mark.parametrize("share", [0.001, 0.1, 0.25, 0.5])
@pytest.mark.parametrize(("height", "width"), [(40, 57), (31, 12), (1, 1), (2, 9)])
def test_a_soft_edge_is_the_blend_of_its_definition(share, height, width):
    rng = np.random.default_rng(0)
    below, patch = rng.integers(0, 256, (2, height, width, 3), dtype=np.uint8)
    below[: height // 2], patch[: height // 2] = 255, 0  # the largest differences, of both signs
    below[:, : width // 3], patch[:, : width // 3] = 0, 255
    found = fade(below, patch, share)
    assert found.dtype == np.uint8
    assert np.abs(found - blend(below, patch, share)).max() <= 1.5  # a weight to 1/128, then to whole levels


def test_a_soft_edge_changes_the_patch_alone_and_its_middle_not():
    rng = np.random.default_rng(1)
    background, patch = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8), np.full((30, 40, 3), 200, np.uint8)
    untouched = background.copy()
    hard, box = paste(np.random.default_rng(5), background, patch)
    out = np.empty_like(background)
    soft, same = paste(np.random.default_rng(5), background, patch, out, soft_edge=0.2)
    assert soft is out
    assert (box == same).all()
    assert (background == untouched).all()
    x0, y0, x1, y1 = box.astype(int)
    differs = (hard != soft).any(2)
    inside = np.zeros_like(differs)
    inside[y0:y1, x0:x1] = True
    inside[y0 + 6 : y1 - 6, x0 + 6 : x1 - 6] = False  # .2 of 30 pixels
    assert not differs[~inside].any()
    assert differs[inside].mean() > 0.9


def test_no_soft_edge_is_the_hard_paste_and_draws_what_it_drew():
    background, patch = np.zeros((64, 64, 3), np.uint8), np.full((20, 30, 3), 9, np.uint8)
    rng, other = np.random.default_rng(3), np.random.default_rng(3)
    composite, (x0, y0, _, _) = paste(rng, background, patch)
    x, y = int(other.integers(35)), int(other.integers(45))
    assert (x0, y0) == (x, y)
    expected = background.copy()
    expected[y : y + 20, x : x + 30] = patch
    assert (composite == expected).all()
    paste(np.random.default_rng(3), background, patch, soft_edge=0.5)
    assert rng.bit_generator.state == other.bit_generator.state


def test_most_alike_is_the_nearest_in_mean_and_deviation_of_each_channel():
    rng = np.random.default_rng(6)
    for _ in range(20):
        low = rng.integers(0, 200, (10, 1, 1, 3))
        backgrounds = (low + rng.integers(0, rng.integers(2, 56, (10, 1, 1, 1)), (10, 33, 33, 3))).astype(np.uint8)
        patch = rng.integers(20, 140, (17, 12, 3), dtype=np.uint8)
        moments = [np.r_[image.mean((0, 1)), image.std((0, 1))] for image in (patch, *backgrounds)]
        nearest = int(np.argmin([np.linalg.norm(found - moments[0]) for found in moments[1:]]))
        assert (most_alike(patch, backgrounds) == backgrounds[nearest]).all()
    grounds = [np.full((9, 9, 3), value, np.uint8) for value in (110, 90)]
    assert most_alike(np.full((4, 5, 3), 100, np.uint8), grounds) is grounds[0]  # of equals the first
    assert most_alike(patch, grounds[1:]) is grounds[1]
