"""Mosaics: the finished views of several samples side by side on one large canvas."""

from __future__ import annotations

import torch
from torch import Tensor


def mosaic(images: Tensor, boxes: Tensor, order: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Lay out views in squares of side x side.

    Args:
        images: `(B, 3, S, S)`; B a multiple of side^2.
        boxes: `(..., B, 4)` xyxy in pixels of their own view.
        order: `(B,)` int64, a permutation: which view comes where, canvas after canvas, row after row.
        side: m, views a side.

    Returns:
        The canvases `(B / m^2, 3, m S, m S)` in channels-last memory, and the boxes `(..., B, 4)` on them, in the order
        of their places.

    Source:
        The layout is the mosaic of YOLOv4 (arXiv 2004.10934) without its random centre; to contrast each tile is ours.

    Example:
        >>> tiles, box = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 3, 2, 2), torch.tensor([[0.0, 0, 2, 1]])
        >>> canvases, boxes = mosaic(tiles, box.expand(4, 4), torch.tensor([3, 1, 0, 2]), 2)
        >>> canvases[0, 0].tolist()
        [[3.0, 3.0, 1.0, 1.0], [3.0, 3.0, 1.0, 1.0], [0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 2.0, 2.0]]
        >>> boxes[3].tolist()
        [2.0, 2.0, 4.0, 3.0]
    """
    count, channels, height, width = images.shape
    tiles = images.permute(0, 2, 3, 1)[order].view(-1, side, side, height, width, channels)
    canvases = tiles.transpose(2, 3).reshape(-1, side * height, side * width, channels).permute(0, 3, 1, 2)
    place = torch.arange(count, device=boxes.device)
    corner = torch.stack([place % side * width, place // side % side * height], 1).to(boxes.dtype)
    return canvases, boxes.index_select(-2, order) + corner.repeat(1, 2)
