"""Crop, paste and jitter against the distributions that InsLoc's rules and SoCo's jitter give."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torchvision

from codo.augment import (
    AnchorJitter,
    ColourJitter,
    CropView,
    NoJitter,
    RatioJitter,
    ViewSampler,
    box_iou,
    paste,
    patch_size,
    random_crop,
)

CANVAS = 256
COUNT = 3000


@pytest.fixture(scope="module")
def boxes() -> np.ndarray:
    """Boxes of patches on a 256 canvas, of photographs in the usual aspect ratios."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(COUNT):
        width, height = rng.integers(300, 640, 2)
        x0, y0, x1, y1 = random_crop(rng, width, height)
        w, h = patch_size(rng, x1 - x0, y1 - y0, CANVAS)
        x, y = rng.integers(CANVAS - w + 1), rng.integers(CANVAS - h + 1)
        found.append([x, y, x + w, y + h])
    return np.array(found, np.float32)


def test_patches_have_inslocs_sizes(boxes):
    sides = boxes[:, 2:] - boxes[:, :2]
    side, aspect = np.sqrt(sides.prod(1)), sides[:, 0] / sides[:, 1]
    assert np.median(side) == pytest.approx(170, abs=4)
    assert (side**2).mean() / CANVAS**2 == pytest.approx(0.45, abs=0.02)
    assert np.percentile(side, [5, 95]) == pytest.approx([129, 215], abs=5)
    assert np.percentile(aspect, [5, 50, 95]) == pytest.approx([0.57, 1.0, 1.8], abs=0.12)


def test_patch_bounds_scale_with_the_canvas():
    rng = np.random.default_rng(0)
    sizes = np.array([patch_size(rng, 100, 70, 96) for _ in range(500)])
    assert sizes.max() <= 95
    assert sizes.max(1).min() >= 47
    assert sizes.max() > 85
    assert max(patch_size(rng, 50, 50, 96, (100.0, 100.0))) == 38  # bounds between two whole pixels: the nearer one


def test_crop_area_is_uniform_and_aspect_log_uniform():
    rng = np.random.default_rng(1)
    crops = np.array([random_crop(rng, 1000, 1000) for _ in range(COUNT)])
    width, height = crops[:, 2] - crops[:, 0], crops[:, 3] - crops[:, 1]
    area = width * height / 1e6
    assert crops.min() >= 0
    assert crops.max() <= 1000
    assert area.min() == pytest.approx(0.2, abs=0.01)
    # Large areas of extreme aspect do not fit and are redrawn, so the area leans to small, and the aspect is symmetric.
    assert 0.45 < area.mean() < 0.58
    assert np.log(width / height).mean() == pytest.approx(0, abs=0.03)
    assert abs(np.log(width / height)).max() <= np.log(2) + 0.02


def test_crop_falls_back_to_the_centre():
    rng = np.random.default_rng(0)
    assert random_crop(rng, 1000, 10, (0.9, 1.0), (0.5, 2.0)) == (490, 0, 510, 10)
    assert random_crop(rng, 1, 1) == (0, 0, 1, 1)


def test_paste_is_inside_hard_edged_and_leaves_the_background_alone():
    rng = np.random.default_rng(0)
    background, patch = np.zeros((64, 64, 3), np.uint8), np.full((20, 30, 3), 255, np.uint8)
    corners = []
    for _ in range(300):
        composite, (x0, y0, x1, y1) = paste(rng, background, patch)
        assert (x1 - x0, y1 - y0) == (30, 20)
        assert composite.sum() == patch.sum()
        assert (composite[int(y0) : int(y1), int(x0) : int(x1)] == 255).all()
        corners.append((x0, y0))
    assert not background.any()
    assert np.array(corners).min(0) == pytest.approx([0, 0], abs=1)
    assert np.array(corners).max(0) == pytest.approx([34, 44], abs=1)


def statistics(jitter, boxes):
    """Mean IoU with the exact box, share of background inside the visible box, share that leaves the canvas."""
    rng = np.random.default_rng(2)
    drawn = np.array([jitter(rng, box, CANVAS) for box in boxes])
    seen = drawn.clip(0, CANVAS)
    low, high = np.maximum(seen[:, :2], boxes[:, :2]), np.minimum(seen[:, 2:], boxes[:, 2:])
    inside = (high - low).clip(0).prod(1)
    iou = np.array([box_iou(a[None], b[None])[0, 0] for a, b in zip(drawn, boxes, strict=True)])
    background = 1 - inside / (seen[:, 2:] - seen[:, :2]).prod(1)
    return iou.mean(), background.mean(), (seen != drawn).any(1).mean(), iou


@pytest.mark.parametrize(
    ("ratio", "iou", "background"), [(0.05, 0.90, 0.05), (0.10, 0.81, 0.095), (0.15, 0.74, 0.13), (0.20, 0.68, 0.16)]
)
def test_ratio_jitter_matches_the_calibration(boxes, ratio, iou, background):
    # The expected figures were simulated without the redraw below an IoU of .5; so is this.
    mean, share, leaving, _ = statistics(RatioJitter(ratio, min_iou=0), boxes)
    assert mean == pytest.approx(iou, abs=0.012)
    assert share == pytest.approx(background, abs=0.012)
    assert leaving == 0


def test_ratio_jitter_redraws_below_the_bound(boxes):
    *_, iou = statistics(RatioJitter(0.3), boxes)
    assert iou.min() >= 0.5
    *_, loose = statistics(RatioJitter(0.3, min_iou=0), boxes)
    assert loose.min() < 0.4
    assert loose.mean() == pytest.approx(0.57, abs=0.012)


def test_a_ratio_jitter_without_a_bound_still_gives_a_box():
    rng, corner = np.random.default_rng(0), np.array([0, 0, 56, 56], np.float32)
    drawn = np.array([RatioJitter(0.99, min_iou=0)(rng, corner, CANVAS) for _ in range(3000)])
    assert ((drawn[:, 2:] - drawn[:, :2]) > 0).all()


def test_ratio_jitter_gives_the_exact_box_after_ten_tries():
    box = np.array([10, 10, 20, 20], np.float32)
    assert (RatioJitter(0.9, min_iou=1.0)(np.random.default_rng(0), box, CANVAS) == box).all()


def test_ratio_jitter_probability(boxes):
    *_, iou = statistics(RatioJitter(0.15, p=0.25), boxes)
    assert (iou < 0.999).mean() == pytest.approx(0.25, abs=0.04)


def test_anchor_jitter_matches_the_calibration(boxes):
    mean, share, leaving, iou = statistics(AnchorJitter(), boxes[:800])
    assert mean == pytest.approx(0.55, abs=0.012)
    assert share == pytest.approx(0.15, abs=0.015)
    assert leaving == pytest.approx(0.42, abs=0.05)
    assert iou.min() > 0.5


def test_anchors_stand_on_the_corners_of_the_grid():
    anchors = AnchorJitter.anchors(256)
    assert len(anchors) == 16 * 16 * 4 * 5
    centres, sides = (anchors[:, :2] + anchors[:, 2:]) / 2, anchors[:, 2:] - anchors[:, :2]
    assert np.allclose(np.unique(centres.round(3)), np.arange(16) * 16)
    assert np.allclose(np.unique(np.sqrt(sides.prod(1)).round(2)), [32, 64, 128, 256])
    assert np.allclose(np.unique((sides[:, 1] / sides[:, 0]).round(4)), [0.5, 0.75, 1, 1.5, 2])
    assert np.allclose(AnchorJitter.anchors(96), anchors * 96 / 256)


def test_anchor_jitter_without_survivors_is_the_exact_box():
    sliver = np.array([3, 3, 5, 200], np.float32)
    assert (AnchorJitter()(np.random.default_rng(0), sliver, CANVAS) == sliver).all()


def test_no_jitter():
    box = np.array([1, 2, 3, 4], np.float32)
    assert (NoJitter()(np.random.default_rng(0), box, CANVAS) == box).all()


def test_iou():
    a = np.array([[0, 0, 10, 10], [20, 20, 30, 30]], np.float32)
    b = np.array([[5, 0, 15, 10]], np.float32)
    assert box_iou(a, b)[:, 0] == pytest.approx([50 / 150, 0])


def test_crops_lie_anywhere_and_have_the_aspect_asked_for():
    rng = np.random.default_rng(1)
    crops = np.array([random_crop(rng, 400, 300, (0.2, 0.3), (1.5, 2.0)) for _ in range(2000)])
    width, height = crops[:, 2] - crops[:, 0], crops[:, 3] - crops[:, 1]
    assert (width / height).min() > 1.45
    assert (width / height).max() < 2.05
    for at, room in ((crops[:, 0], 400 - width), (crops[:, 1], 300 - height)):
        share = at / room
        assert (share.min(), share.mean(), share.max()) == pytest.approx((0, 0.5, 1), abs=0.03)


def test_a_crop_may_be_as_wide_as_its_image():
    rng = np.random.default_rng(0)
    tops = {random_crop(rng, 100, 200, (0.5, 0.5), (1.0, 1.0)) for _ in range(50)}
    assert {(x0, x1, y1 - y0) for x0, y0, x1, y1 in tops} == {(0, 100, 100)}
    assert len(tops) > 10  # drawn, not the fallback


def test_crop_falls_back_to_the_centre_of_a_tall_image_too():
    assert random_crop(np.random.default_rng(0), 10, 1000, (0.9, 1.0), (0.5, 2.0)) == (0, 490, 10, 510)


def test_the_four_draws_of_a_ratio_jitter_are_uniform_and_independent():
    rng, box = np.random.default_rng(0), np.array([100, 300, 300, 400], np.float32)
    drawn = np.array([RatioJitter(0.15, min_iou=0)(rng, box, 1000) for _ in range(3000)])
    (left, top), (right, bottom) = drawn[:, :2].T, drawn[:, 2:].T
    shares = np.stack([(left - 100) / 200, (top - 300) / 100, (right - left) / 200 - 1, (bottom - top) / 100 - 1])
    assert shares.min(1) == pytest.approx([-0.15] * 4, abs=0.002)
    assert shares.max(1) == pytest.approx([0.15] * 4, abs=0.002)
    assert shares.mean(1) == pytest.approx([0] * 4, abs=0.01)
    assert np.abs(np.corrcoef(shares) - np.eye(4)).max() < 0.1


@pytest.mark.parametrize("canvas", [64, 96, 256])
def test_anchor_jitter_draws_from_all_anchors_that_overlap_thinned_by_nms(canvas):

    def iou(a, b):
        return torchvision.ops.box_iou(torch.from_numpy(a), torch.from_numpy(b)).numpy()

    anchors, drawn, jitter = AnchorJitter.anchors(canvas), np.random.default_rng(canvas), AnchorJitter()
    thinned = lone = 0
    for seed in range(200):
        (width, height), corner = drawn.uniform(0.05, 1.0, 2) * canvas, drawn.uniform(-0.2, 0.9, 2) * canvas
        box = np.array([*corner, corner[0] + width, corner[1] + height], np.float32)
        near, rng, kept = anchors[iou(anchors, box[None])[:, 0] > 0.5], np.random.default_rng(seed), []
        near = near[rng.permutation(len(near))] if len(near) else near
        for candidate in near:
            if not kept or iou(np.array(kept), candidate[None]).max() <= 0.7:
                kept.append(candidate)
        thinned, lone = thinned + (1 < len(kept) < len(near)), lone + (not kept)
        expected = kept[rng.integers(len(kept))] if kept else box
        assert (jitter(np.random.default_rng(seed), box, canvas) == expected).all()
    assert thinned > 50
    assert lone > 5


def test_the_box_of_an_augmenter_is_the_one_that_counts():
    def shrink(rng, image, box, foregrounds):
        return image, np.array([10, 20, 30, 50], np.float32)

    sampler = ViewSampler(CropView(64), 1, NoJitter(), ColourJitter(flip_p=0), [shrink])
    views, whole = (
        s(np.zeros((90, 80, 3), np.uint8), lambda n: np.random.default_rng(n).spawn(2))
        for s in (sampler, replace(sampler, augmenters=()))
    )
    assert views.exact_boxes.tolist() == views.boxes.tolist() == [[10, 20, 30, 50]] * 2
    (low, high), share = whole.sources.split(2, -1), torch.tensor([10, 20, 30, 50]) / 64
    expected = torch.cat([low + share[:2] * (high - low), low + share[2:] * (high - low)], -1)
    assert torch.allclose(views.sources, expected)
