"""Boxes from feature maps: which level a box belongs to, and RoIAlign."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.ops import roi_align

from codo.backbones import LEVELS
from codo.heads.box import POOLED_SIZE


def assign_levels(boxes: Tensor, canonical_size: float = 224.0) -> Tensor:
    """Name the pyramid level that a detector would pool each box from.

    Args:
        boxes: `(N, 4)` xyxy in pixels.
        canonical_size: side in pixels of the box that belongs to P4 (FPN: 224 on images of 800 px).

    Returns:
        `(N,)` int64, the k of P_k, in 2..5: `floor(4 + log2(sqrt(w h) / canonical_size))`, clamped.

    Source:
        Lin et al., Feature Pyramid Networks, eq. 1; torchvision's `LevelMapper` (its epsilon too).

    Example:
        >>> assign_levels(torch.tensor([[0, 0, 224, 224], [0, 0, 60, 60], [0, 0, 900, 900]])).tolist()
        [4, 2, 5]
    """
    boxes = boxes.float()
    side = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt()
    level = torch.floor(4 + torch.log2(side / canonical_size) + 1e-6)
    return level.clamp(LEVELS[0], LEVELS[-1]).long()


class RoIPool(nn.Module):
    """RoIAlign from one pyramid level.

    Args:
        sampling_ratio: samples per cell and side; 0 is adaptive, `ceil(box / 7)`.
        aligned: shift by half a cell, as detectron2 does; torchvision's detectors do not.

    Source:
        The defaults are those of torchvision's `MultiScaleRoIAlign`, the detector that the weights go to. InsLoc
        pools with `sampling_ratio=0, aligned=True`.

    Example:
        >>> pool = RoIPool()
        >>> pool(torch.randn(2, 8, 16, 16), torch.tensor([[0., 0., 32, 32], [8, 8, 64, 60]]), 4).shape
        torch.Size([2, 8, 7, 7])
    """

    def __init__(self, sampling_ratio: int = 2, aligned: bool = False) -> None:
        super().__init__()
        self.sampling_ratio = sampling_ratio
        self.aligned = aligned

    def forward(self, features: Tensor, boxes: Tensor, stride: int, images: Tensor | None = None) -> Tensor:
        """Pool boxes from one level.

        Args:
            features: `(B, C, H, W)`, the level.
            boxes: `(R, 4)` xyxy in pixels of the image.
            stride: pixels per cell of the level.
            images: `(R,)` int64, the image of each box; by default box i belongs to image i.

        Returns:
            `(R, C, 7, 7)` float32.
        """
        # In fp32 also under autocast: torchvision's CPU kernel has no bf16, and bf16 boxes would be rounded to pixels.
        with torch.autocast(features.device.type, enabled=False):
            index = torch.arange(len(boxes), device=boxes.device) if images is None else images
            rois = torch.cat([index[:, None].float(), boxes.float()], dim=1)
            return roi_align(features.float(), rois, POOLED_SIZE, 1.0 / stride, self.sampling_ratio, self.aligned)
