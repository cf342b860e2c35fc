"""The cell loss: each cell of the pooled box with the part of the key's box that shows the same of the foreground."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from codo.losses.base import Contrast, Loss
from codo.losses.embeddings import Embeddings


def cell_overlaps(query: Tensor, key: Tensor, cells: int) -> Tensor:
    """Compute what share of each cell of one grid lies in each cell of another, both over the same plane.

    Args:
        query: `(..., 4)`, the plane's coordinates at the left, upper, right and lower side of a grid; left > right
            where it is mirrored.
        key: `(..., 4)`, likewise.
        cells: g, of a grid's side.

    Returns:
        `(..., g^2, g^2)`, row after row of a grid; sums over the last axis are at most 1, less where a cell reaches
        beyond the other grid.

    Example:
        >>> whole, left = torch.tensor([0.0, 0, 4, 4]), torch.tensor([0.0, 0, 2, 4])
        >>> cell_overlaps(left, whole, 2)[0].tolist()  # of the upper left quarter
        [1.0, 0.0, 0.0, 0.0]
        >>> cell_overlaps(whole, left, 2)[0].tolist()  # twice as wide as the two of them
        [0.5, 0.5, 0.0, 0.0]
    """
    steps = torch.linspace(0, 1, cells + 1, device=query.device)

    def along(axis: int) -> Tensor:
        edges = [(g[..., axis, None] + steps * (g[..., axis + 2] - g[..., axis])[..., None]) for g in (query, key)]
        (low, high), (low_k, high_k) = (
            (torch.minimum(e[..., :-1], e[..., 1:]), torch.maximum(e[..., :-1], e[..., 1:])) for e in edges
        )
        shared = torch.minimum(high[..., :, None], high_k[..., None, :])
        shared = (shared - torch.maximum(low[..., :, None], low_k[..., None, :])).clamp(min=0)
        return shared / (high - low).clamp(min=1e-6)[..., :, None]

    down, across = along(1), along(0)
    return (down[..., :, None, :, None] * across[..., None, :, None, :]).flatten(-2).flatten(-3, -2)


def shown(boxes: Tensor, exact: Tensor, sources: Tensor) -> Tensor:
    """Find what of its foreground a box would show, did the patch not end where it does.

    Args:
        boxes: `(..., 4)` xyxy in pixels of the view.
        exact: `(..., 4)`, the patch's.
        sources: `(..., 4)`, what of the foreground the patch shows; see `codo.augment.Views`.

    Returns:
        `(..., 4)` in pixels of the foreground.

    Example:
        >>> patch, source = torch.tensor([10.0, 10, 30, 30]), torch.tensor([80.0, 0, 0, 40])  # mirrored
        >>> shown(torch.tensor([0.0, 10, 20, 30]), patch, source).tolist()
        [120.0, 0.0, 40.0, 40.0]
    """
    (low, high), (first, last) = exact.split(2, -1), sources.split(2, -1)
    scale = (last - first) / (high - low)
    return torch.cat([first + (corner - low) * scale for corner in boxes.split(2, -1)], -1)


class CellLoss(Loss):
    """InfoNCE of the cells of a pooled box, so that its features keep where in the object they are.

    What pulls is geometry: a cell of the query's box, jittered or not, shows a part of the foreground, and its
    positives are the cells of the key's box that show that part, weighed by how much of it. What pushes are the other
    cells of that key, and of the other samples of the batch the cell at the same place in the box, so that to know the
    place alone does not help. Cells that show nothing of what the key shows do not count.

    Args:
        temperature: divides the cosine.

    Source:
        Ours. Positives by geometry: PixPro (arXiv 2011.10043), ReSim (arXiv 2103.12902), there of two crops' maps.

    Example:
        >>> CellLoss().embeds
        'cell'
    """

    embeds = "cell"

    def __init__(self, *, temperature: float = 0.2) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, query: Embeddings, key: Embeddings) -> Contrast:
        """Compare a query view with the key view; see Loss. The mean over the boxes pooled, samples and cells."""
        assert query.cell is not None, "the encoder was built without cell embeddings"
        assert key.cell is not None
        assert query.boxes is not None
        assert query.exact_boxes is not None
        assert query.sources is not None
        assert key.sources is not None
        levels = len(query.boxes)
        q, k = (F.normalize(e.float(), dim=2).unflatten(0, (levels, -1)) for e in (query.cell, key.cell))
        q, k = (e.transpose(1, 2) for e in (q, k))  # (L, B, g^2, d)
        side = math.isqrt(q.shape[2])
        target = cell_overlaps(shown(query.boxes, query.exact_boxes, query.sources), key.sources, side)
        own = q @ k.transpose(2, 3) / self.temperature  # (L, B, g^2, g^2)
        others = torch.einsum("lbid,lcid->lbic", q, k) / self.temperature
        same = torch.eye(q.shape[1], dtype=torch.bool, device=q.device)[:, None]
        total = torch.cat([own, others.masked_fill(same, float("-inf"))], 3).logsumexp(3)
        covered = target.sum(3)
        return Contrast((covered * total - (target * own).sum(3)).sum() / covered.sum().clamp(min=1e-6))
