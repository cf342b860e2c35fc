"""Boxes from feature maps: which level a box belongs to, and RoIAlign."""

from __future__ import annotations

import torch
from torch import Tensor, nn

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

        Interpolation is separable, so that RoIAlign is two products: rows x feature map x columns. Against
        torchvision's kernel the result is the same to rounding, forward and backward take a quarter of the time on a
        processor, and the gradient stays channels-last.

        Args:
            features: `(B, C, H, W)`, the level.
            boxes: `(R, 4)` xyxy in pixels of the image.
            stride: pixels per cell of the level.
            images: `(R,)` int64, the image of each box; by default R / B boxes an image, one after the other.

        Returns:
            `(R, C, 7, 7)` float32.
        """
        # In fp32 also under autocast: bf16 boxes would be rounded to pixels.
        with torch.autocast(features.device.type, enabled=False):
            grid = boxes.float() / stride - (0.5 if self.aligned else 0.0)
            maps = features.float() if images is None else features.float()[images]
            height, width = maps.shape[2:]
            low, high = grid.T.split(2)
            if width == height:  # both axes at once: fewer launches on a GPU
                columns, rows = self._weights(low, high, width)
            else:
                columns, rows = (self._weights(low[a], high[a], size) for a, size in enumerate((width, height)))
            cells = maps.permute(0, 2, 3, 1)  # (B, H, W, C): no copy where the map is channels-last
            # (B, R / B 7, H) x (B, H, W C), then (R, 1, 7, W) x (R, 7, W, C)
            each = len(boxes) // max(1, len(cells))
            bands = rows.reshape(len(cells), each * POOLED_SIZE, height) @ cells.flatten(2)
            bands = bands.view(len(boxes), POOLED_SIZE, width, maps.shape[1])
            return (columns[:, None] @ bands).permute(0, 3, 1, 2)

    def _weights(self, low: Tensor, high: Tensor, size: int) -> Tensor:
        """Weigh the `size` cells of an axis for each of the 7 bins: from `(..., R)` to `(..., R, 7, size)`.

        A bin is the mean of its samples, a sample lies between two cells; samples beyond the map by more than a cell
        count as 0, nearer ones are clamped (as torchvision's kernel does).
        """
        extent = high - low
        if not self.aligned:
            extent = extent.clamp(min=1.0)
        bins = (extent / POOLED_SIZE)[..., None, None]
        if self.sampling_ratio > 0:
            count, most = torch.full_like(bins, self.sampling_ratio), self.sampling_ratio
        else:
            count = bins.ceil().clamp(min=1.0)
            most = int(count.max()) if count.numel() else 1
        sample = torch.arange(most, device=low.device, dtype=low.dtype)
        number = torch.arange(POOLED_SIZE, device=low.device, dtype=low.dtype)[:, None]
        place = low[..., None, None] + number * bins + (sample + 0.5) * bins / count  # (..., R, 7, S)
        used = (sample < count) & (place >= -1) & (place <= size)
        place = place.clamp(0, size - 1)
        cell = torch.arange(size, device=low.device, dtype=low.dtype)
        weights = (1 - (place[..., None] - cell).abs()).clamp(min=0) * used[..., None]  # (..., R, 7, S, size)
        return weights.sum(-2) / count
