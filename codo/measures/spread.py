"""Alignment and uniformity of embeddings on the sphere."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def alignment(embeddings: Tensor) -> float:
    """Compute the mean squared distance of two views of one instance, after normalising.

    Args:
        embeddings: `(N, M, d)`: N instances, M >= 2 views (here: backgrounds) of each.

    Returns:
        0 where all views of an instance agree, to 4.

    Source:
        Wang and Isola (arXiv 2005.10242), with alpha = 2.

    Example:
        >>> alignment(torch.eye(3)[:, None].expand(3, 2, 3))
        0.0
    """
    unit = F.normalize(embeddings.double(), dim=2)
    views = unit.shape[1]
    # The sum over the pairs of an instance is the squared length of its sum.
    cosine = (unit.sum(1).square().sum(1) - unit.square().sum((1, 2))) / (views * (views - 1))
    return float((2 - 2 * cosine).clamp(min=0).mean())


def uniformity(embeddings: Tensor) -> float:
    """Compute the log of the mean Gaussian potential of all pairs, after normalising.

    Args:
        embeddings: `(N, d)`, one view of each of N >= 2 images.

    Returns:
        0 where all are the same; lower where they spread; -4 where all pairs are orthogonal.

    Source:
        Wang and Isola (arXiv 2005.10242), with t = 2.

    Example:
        >>> round(uniformity(torch.eye(5)), 6)
        -4.0
    """
    return float(torch.pdist(F.normalize(embeddings.double(), dim=1)).square().mul(-2).exp().mean().log())
