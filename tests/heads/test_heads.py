"""Heads against torchvision's detectors, which they are built to match."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from torchvision.models.detection import fasterrcnn_resnet50_fpn_v2
from torchvision.ops import MultiScaleRoIAlign, roi_align
from torchvision.ops.poolers import LevelMapper

from codo.backbones import STRIDES
from codo.heads import MLPProjector, RoIPool, assign_levels, box_head


def random_boxes(n: int, size: float, seed: int = 0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    low, extent = torch.rand(n, 2, generator=g) * size * 0.5, torch.rand(n, 2, generator=g) * size * 0.5 + 2
    return torch.cat([low, low + extent], 1)


def test_levels_are_torchvisions():
    boxes = random_boxes(500, 1600)
    assert torch.equal(assign_levels(boxes), LevelMapper(2, 5)([boxes]) + 2)
    assert torch.equal(assign_levels(boxes * 0.25, 56.0), assign_levels(boxes))


@pytest.mark.parametrize(("sampling_ratio", "aligned"), [(2, False), (0, True), (0, False), (3, True)])
@pytest.mark.parametrize(("height", "width", "stride"), [(24, 24, 4), (40, 17, 8), (3, 3, 32)])
def test_pooling_is_roi_align_forward_and_backward(sampling_ratio, aligned, height, width, stride):
    features = torch.randn(16, 8, height, width).to(memory_format=torch.channels_last).requires_grad_()
    twin = features.detach().clone().requires_grad_()
    boxes = random_boxes(16, 1.2 * stride * max(height, width)) - 10  # some leave the map, on either side
    boxes[0, 2:] = boxes[0, :2] + 0.5  # under a cell
    ours = RoIPool(sampling_ratio, aligned)(features, boxes, stride)
    theirs = roi_align(twin, [b[None] for b in boxes], 7, 1 / stride, sampling_ratio, aligned)
    assert torch.allclose(ours, theirs, atol=1e-5)
    weight = torch.randn_like(ours)
    (ours * weight).sum().backward()
    (theirs * weight).sum().backward()
    assert torch.allclose(features.grad, twin.grad, atol=1e-5)
    assert features.grad.is_contiguous(memory_format=torch.channels_last)


def test_pooling_takes_no_boxes_and_several_of_an_image():
    features, boxes = torch.randn(2, 4, 12, 12), random_boxes(5, 48)
    images = torch.tensor([1, 0, 1, 1, 0])
    pool = RoIPool(0, True)
    theirs = roi_align(features, torch.cat([images[:, None].float(), boxes], 1), 7, 0.25, 0, True)
    assert torch.allclose(pool(features, boxes, 4, images), theirs, atol=1e-5)
    assert pool(features, boxes[:0], 4, images[:0]).shape == (0, 4, 7, 7)


def test_pooling_from_the_assigned_level_is_the_detectors():
    sizes = [256 // s for s in STRIDES]
    pyramid = OrderedDict((str(i), torch.randn(1, 4, s, s)) for i, s in enumerate(sizes))
    boxes = random_boxes(40, 256)
    pooler = MultiScaleRoIAlign(["0", "1", "2", "3"], 7, 2, canonical_scale=80)
    theirs = pooler(pyramid, [boxes], [(256, 256)])
    levels, pool = assign_levels(boxes, 80.0), RoIPool()
    assert len(levels.unique()) >= 3
    for i, level in enumerate(levels.tolist()):
        ours = pool(pyramid[str(level - 2)], boxes[i : i + 1], 2**level)
        assert torch.allclose(ours[0], theirs[i], atol=1e-5)


def test_pooling_stays_in_fp32_under_autocast():
    features = torch.randn(1, 4, 64, 64).bfloat16()
    box = torch.tensor([[101.3, 99.7, 203.1, 180.9]])
    with torch.autocast("cpu", torch.bfloat16):
        pooled = RoIPool()(features, box, 4)
    assert pooled.dtype == torch.float32
    assert torch.equal(pooled, RoIPool()(features, box, 4))


def test_box_head_is_torchvisions():
    theirs = fasterrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None).roi_heads.box_head.state_dict()
    ours = box_head().state_dict()
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}


def test_projector_equals_its_formula():
    projector = MLPProjector(6, 5, 4)
    x = torch.randn(3, 6)
    first, _, second = projector.layers
    hidden = (x @ first.weight.T + first.bias).clamp(min=0)
    out = hidden @ second.weight.T + second.bias
    assert torch.allclose(projector(x), out, atol=1e-6)  # the losses normalise


def test_levels_are_torchvisions_to_its_epsilon():
    sides = torch.tensor([111.99999, 223.9999, 447.9999, 223.99, 224.0, 10.0, 9000.0])
    boxes = torch.stack([torch.zeros(7), torch.zeros(7), sides, sides], 1)
    assert torch.equal(assign_levels(boxes), LevelMapper(2, 5)([boxes]) + 2)
    assert assign_levels(boxes).tolist() == [3, 4, 5, 3, 4, 2, 5]
