"""Box sensitivity: how an embedding changes when the box is off."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

BINS = 10
"""Bins of the curve over IoU 0..1."""


class BoxSensitivity(NamedTuple):
    """How similarity to the exact box's embedding follows the IoU.

    Attributes:
        slope: of the least-squares line: similarity lost a unit of IoU; 0 for embeddings that do not look at the box.
        rank_correlation: Spearman's, -1 to 1; NaN where all similarities are the same.
        curve: `(IoU from, to, mean similarity, boxes)` of each bin that has boxes.
    """

    slope: float
    rank_correlation: float
    curve: list[tuple[float, float, float, int]]


def box_sensitivity(exact: Tensor, jittered: Tensor, iou: Tensor) -> BoxSensitivity:
    """Relate the similarity of a jittered box's embedding with the exact one's to their IoU.

    Similarity is relative, so that embeddings with different ranges of cosines can be compared: 1 is the exact box's
    own embedding, 0 as far from it as another instance is on average.

    Args:
        exact: `(N, d)`, of the exact boxes of N >= 2 instances.
        jittered: `(N, J, d)`, of J other boxes of each.
        iou: `(N, J)`, of those with the exact one.

    Source:
        ours.

    Example:
        >>> exact, iou = torch.eye(3), torch.linspace(0.5, 1, 5).expand(3, 5)
        >>> measured = box_sensitivity(exact, exact[:, None] * torch.ones(3, 5, 1), iou)
        >>> measured.slope  # the box changes nothing
        0.0
    """
    exact, jittered = F.normalize(exact.double(), dim=1), F.normalize(jittered.double(), dim=2)
    count = len(exact)
    if count < 2:
        raise ValueError(f"{count} instance: at least 2 are needed")
    other = (exact.sum(0).square().sum() - count) / (count * (count - 1))
    cosine = torch.einsum("nd,njd->nj", exact, jittered)
    similarity = ((cosine - other) / (1 - other).clamp(min=1e-9)).flatten()
    overlap = iou.double().flatten()
    centred = overlap - overlap.mean()
    slope = (centred * similarity).sum() / centred.square().sum()
    bins = (overlap * BINS).long().clamp(0, BINS - 1)
    curve = [
        (b / BINS, (b + 1) / BINS, float(similarity[bins == b].mean()), int((bins == b).sum()))
        for b in range(BINS)
        if (bins == b).any()
    ]
    return BoxSensitivity(float(slope), spearman(overlap, similarity.round(decimals=9)), curve)


def spearman(a: Tensor, b: Tensor) -> float:
    """Compute Spearman's rank correlation of two `(N,)`; equal values share their mean rank.

    Returns:
        -1 to 1; NaN where one of them is constant.

    Example:
        >>> spearman(torch.tensor([1.0, 2, 3]), torch.tensor([1.0, 4, 9]))
        1.0
    """
    ranks = torch.stack([_ranks(a), _ranks(b)])
    centred = ranks - ranks.mean(1, keepdim=True)
    scale = centred.square().sum(1).prod().sqrt()
    return float((centred[0] * centred[1]).sum() / scale) if scale > 0 else float("nan")


def _ranks(values: Tensor) -> Tensor:
    _, inverse, counts = values.unique(return_inverse=True, return_counts=True)
    return (counts.cumsum(0) - (counts - 1) / 2)[inverse].double()
