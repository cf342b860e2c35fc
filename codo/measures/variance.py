"""Background invariance as a ratio of variances."""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor


class Variance(NamedTuple):
    """Where the variance of the embeddings comes from.

    Attributes:
        ratio: variance between the backgrounds of one instance, over that between instances: 0 where the background
            changes nothing, infinite where it is all that there is.
        instance: share of the variance that the instance explains.
        background: share that the background explains, whatever the instance.
        interaction: the rest: what a background does to some instances and not to others.
    """

    ratio: float
    instance: float
    background: float
    interaction: float


def variance_shares(embeddings: Tensor) -> Variance:
    """Split the variance of normalised embeddings into instance, background and the rest.

    Args:
        embeddings: `(N, M, d)`, N instances on the same M backgrounds; need not be normalised.

    Returns:
        All NaN where all embeddings are the same.

    Source:
        The two-way analysis of variance without replication. `ratio` is (background + interaction) / instance.

    Example:
        >>> import torch
        >>> round(variance_shares(torch.eye(3)[:, None].expand(3, 2, 3)).ratio, 9)  # shows the instance alone
        0.0
    """
    unit = F.normalize(embeddings.double(), dim=2)
    mean = unit.mean((0, 1))
    total = float((unit - mean).square().sum(2).mean())
    instance = float((unit.mean(1) - mean).square().sum(1).mean())
    background = float((unit.mean(0) - mean).square().sum(1).mean())
    if total < 1e-12:
        return Variance(float("nan"), float("nan"), float("nan"), float("nan"))
    rest = max(0.0, total - instance - background)
    ratio = (background + rest) / instance if instance > 1e-9 * total else float("inf")
    return Variance(ratio, instance / total, background / total, rest / total)


def chance_ratio(instances: int, backgrounds: int) -> float:
    """Compute the expected ratio of embeddings that are pure noise: they know neither instance nor background."""
    return (backgrounds - 1) * instances / (instances - 1)
