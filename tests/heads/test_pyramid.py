"""Pooling many boxes from a pyramid, against torchvision's kernel."""

from __future__ import annotations

import pytest
import torch
from torchvision.ops import roi_align

from codo.heads.pyramid import pool_pyramid

STRIDES = (4, 8)


def pyramid(dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """Maps of two images of 68 x 52 pixels, larger channels than sides so that a wrong axis shows."""
    g = torch.Generator().manual_seed(0)
    maps = [torch.randn(2, 5, -(-52 // s), -(-68 // s), generator=g).to(dtype) for s in STRIDES]
    return [m.to(memory_format=torch.channels_last).requires_grad_() for m in maps]


def boxes_of(count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Boxes of which some leave the map by more than a cell, one is under a cell and one a point, images, levels."""
    g = torch.Generator().manual_seed(1)
    low = torch.rand(count, 2, generator=g) * 90 - 25
    boxes = torch.cat([low, low + torch.rand(count, 2, generator=g) * 60], 1)
    if count:
        boxes[0, 2:], boxes[1, 2:] = boxes[0, :2] + 0.5, boxes[1, :2]
    return boxes, torch.arange(count) % 2, (torch.rand(count, generator=g) < 0.4).long()


@pytest.mark.parametrize(("size", "samples"), [(7, 2), (14, 2), (7, 3)])
def test_it_is_roi_align_forward_and_backward(size: int, samples: int) -> None:
    boxes, images, assigned = boxes_of(60)
    maps, twins = pyramid(), pyramid()
    ours = pool_pyramid(maps, STRIDES, boxes, images, assigned, size, samples)
    theirs = torch.zeros_like(ours)
    for i, (twin, stride) in enumerate(zip(twins, STRIDES, strict=True)):
        rows = assigned == i
        rois = torch.cat([images[rows, None].float(), boxes[rows]], 1)
        theirs[rows] = roi_align(twin, rois, size, 1 / stride, samples)
    assert torch.allclose(ours, theirs, atol=1e-5)
    assert (theirs.flatten(1).abs().amax(1) == 0).any()  # a box beyond the map is there
    weight = torch.randn_like(ours)
    (ours * weight).sum().backward()
    (theirs * weight).sum().backward()
    for own, twin in zip(maps, twins, strict=True):
        assert torch.allclose(own.grad, twin.grad, atol=1e-4)
        assert own.grad.is_contiguous(memory_format=torch.channels_last)


def test_it_takes_no_boxes() -> None:
    maps = pyramid()
    pooled = pool_pyramid(maps, STRIDES, *boxes_of(0))
    assert pooled.shape == (0, 5, 7, 7)
    pooled.sum().backward()
    assert all(m.grad.abs().sum() == 0 for m in maps)


def test_bf16_maps_are_pooled_in_fp32() -> None:
    maps = pyramid(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        pooled = pool_pyramid(maps, STRIDES, *boxes_of(9))
    assert torch.equal(pooled, pool_pyramid([m.detach().float() for m in maps], STRIDES, *boxes_of(9)))
    pooled.sum().backward()
    assert maps[0].grad.dtype == torch.bfloat16
