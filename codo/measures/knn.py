"""Accuracy of the nearest neighbours' labels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

NEIGHBOURS, TEMPERATURE = 20, 0.07


def knn_accuracy(
    features: Tensor, labels: Tensor, neighbours: int = NEIGHBOURS, temperature: float = TEMPERATURE
) -> float:
    """Classify each image by its nearest others (leave one out); each votes with exp(cosine / temperature).

    Args:
        features: `(N, d)`; need not be normalised.
        labels: `(N,)` int64, from 0.
        neighbours: k; at most N - 1 are taken.
        temperature: of the votes.

    Returns:
        The share that is classified right.

    Source:
        Wu et al. (arXiv 1805.01978), the weighting and .07; DINO (arXiv 2104.14294), k = 20. Both classify a
        validation set by a training set; here each image by all others.

    Example:
        >>> knn_accuracy(torch.tensor([[1.0, 0], [1, 0.1], [0, 1], [0.1, 1]]), torch.tensor([0, 0, 1, 1]), 1)
        1.0
    """
    count = len(features)
    if count < 2:
        raise ValueError(f"{count} images: at least 2 are needed")
    unit, kinds = F.normalize(features.double(), dim=1), int(labels.max()) + 1
    right = 0
    for rows in torch.arange(count, device=unit.device).split(1024):
        cosine = unit[rows] @ unit.T
        cosine[torch.arange(len(rows), device=rows.device), rows] = -torch.inf
        nearest = cosine.topk(min(neighbours, count - 1), dim=1)
        votes = unit.new_zeros(len(rows), kinds)
        votes.scatter_add_(1, labels[nearest.indices], (nearest.values / temperature).exp())
        right += int((votes.argmax(1) == labels[rows]).sum())
    return right / count


def majority_share(labels: Tensor) -> float:
    """Compute the accuracy of always naming the most frequent label of `(N,)` int64."""
    return float(labels.bincount().max()) / len(labels)
