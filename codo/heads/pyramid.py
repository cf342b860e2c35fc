"""RoIAlign of many boxes from all pyramid levels at once, for processors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def pool_pyramid(
    levels: Sequence[Tensor],
    strides: Sequence[int],
    boxes: Tensor,
    images: Tensor,
    assigned: Tensor,
    size: int = 7,
    samples: int = 2,
) -> Tensor:
    """Pool each box from its level and its image, as torchvision's `roi_align(aligned=False)` does.

    A bin is the mean of its samples and a sample lies between two cells along each axis, so that a bin is a weighted
    sum of (2 samples)^2 cells: a lookup in the table of all cells (`embedding_bag`), which reads and, backward, adds
    whole cells of C channels. Against torchvision's kernel, which goes channel by channel, the result is the same to
    rounding (1e-6), and on a processor the two passes take a tenth of the time; the gradient stays channels-last.

    Args:
        levels: maps `(B, C, H_l, W_l)`, any floating type.
        strides: pixels per cell of each level.
        boxes: `(R, 4)` xyxy in pixels, without gradient.
        images: `(R,)` int64, the image of each box.
        assigned: `(R,)` int64, the position in `levels` that each box is pooled from.
        size: bins per side.
        samples: samples per bin and side.

    Returns:
        `(R, C, size, size)` float32, channels-last.

    Source:
        He et al., Mask R-CNN, arXiv 1703.06870; the borders as in torchvision's kernel.

    Example:
        >>> maps = [torch.ones(2, 8, 16, 16), torch.ones(2, 8, 8, 8)]
        >>> boxes = torch.tensor([[0.0, 0, 30, 20], [8, 8, 60, 50]])
        >>> pool_pyramid(maps, (4, 8), boxes, torch.tensor([0, 1]), torch.tensor([0, 1])).shape
        torch.Size([2, 8, 7, 7])
    """
    rows, columns = (torch.tensor([level.shape[axis] for level in levels], device=boxes.device) for axis in (2, 3))
    cells = rows * columns * levels[0].shape[0]
    height, width = rows[assigned], columns[assigned]
    first = (cells.cumsum(0) - cells)[assigned] + images * height * width
    grid = boxes.float() / torch.tensor(strides, device=boxes.device)[assigned, None]
    y, y_weights = _cells(grid[:, 1], grid[:, 3], height, size, samples)
    x, x_weights = _cells(grid[:, 0], grid[:, 2], width, size, samples)
    y = first[:, None, None] + y * width[:, None, None]
    index = y[:, :, None, :, None] + x[:, None, :, None, :]  # (R, size, size, 2 samples, 2 samples)
    weights = y_weights[:, :, None, :, None] * x_weights[:, None, :, None, :]
    # No copy of a level that is channels-last. In fp32 also under autocast: bf16 weights would move the samples.
    table = torch.cat([level.permute(0, 2, 3, 1).flatten(0, 2) for level in levels]).float()
    shape = len(boxes) * size * size, (2 * samples) ** 2
    bins = F.embedding_bag(index.reshape(shape), table, per_sample_weights=weights.reshape(shape), mode="sum")
    return bins.view(len(boxes), size, size, table.shape[1]).permute(0, 3, 1, 2)


def _cells(low: Tensor, high: Tensor, length: Tensor, size: int, samples: int) -> tuple[Tensor, Tensor]:
    """Name the cells along one axis that each bin is a sum of, and weigh them: `(R, size, 2 samples)` both.

    Args:
        low: `(R,)`, where the boxes begin, in cells.
        high: `(R,)`, where they end.
        length: `(R,)` int64, cells of the axis.
        size: bins.
        samples: samples per bin.
    """
    bins = ((high - low).clamp(min=1.0) / size)[:, None, None]
    number = torch.arange(size, device=low.device)[:, None]
    sample = torch.arange(samples, device=low.device)
    place = low[:, None, None] + number * bins + (sample + 0.5) * bins / samples  # (R, size, samples)
    last = (length - 1)[:, None, None]
    # Samples beyond the map by more than a cell count as 0, nearer ones are clamped (torchvision).
    used = (place >= -1) & (place <= last + 1)
    place = place.clamp(min=0).minimum(last.to(place.dtype))
    below = place.long()
    share = place - below
    cells = torch.stack([below, (below + 1).minimum(last)], -1)
    weights = torch.stack([1 - share, share], -1) * used[..., None] / samples
    return cells.flatten(2), weights.flatten(2)
