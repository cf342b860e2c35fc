"""Background invariance as retrieval: find the same instance on another background."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

DIGITS = 6
"""Cosines that agree in so many digits are equal: float32 has no more."""


class Retrieval(NamedTuple):
    """Shares in [0, 1], and what an order drawn at random gives.

    Attributes:
        top1: share of searches whose nearest candidate is the right one.
        mean_ap: mean average precision; with one right candidate that is the mean of 1 / its place.
        chance_top1: of a random order, 1 / N.
        chance_ap: of a random order.
    """

    top1: float
    mean_ap: float
    chance_top1: float
    chance_ap: float


def retrieval(queries: Tensor, *, hard: bool, gallery: Tensor | None = None) -> Retrieval:
    """Look for each instance on each other background, among the other instances, by cosine similarity.

    A search has a query, instance i on background b, and N candidates. One is right: i on a background b' that is not
    b. The N - 1 wrong ones are the other instances

    - easy: on b' too, so that no candidate shares the query's background;
    - `hard`: on the query's own background b: an embedding that relies on the background takes them for nearer.

    Both have N candidates and so the same level of chance: what `hard` loses against easy is the background's doing.
    Equal similarities count as an order drawn at random: embeddings that are all the same score chance.

    Args:
        queries: `(N, M, d)`, N instances on the same M backgrounds, both at least 2; need not be normalised.
        hard: which of the two.
        gallery: `(N, M, d)`, the candidates, where they are other views than the queries; by default the queries.

    Source:
        ours.

    Example:
        >>> instances = torch.eye(3)[:, None].expand(3, 2, 3)  # shows the instance, whatever the background
        >>> retrieval(instances, hard=True).top1
        1.0
        >>> backgrounds = torch.eye(2)[None].expand(3, 2, 2)  # shows the background alone
        >>> retrieval(backgrounds, hard=True).top1
        0.0
    """
    count, number, _ = queries.shape
    if count < 2 or number < 2:
        raise ValueError(f"{count} instances on {number} backgrounds: at least 2 of each are needed")
    asked = F.normalize(queries.double(), dim=2)
    offered = asked if gallery is None else F.normalize(gallery.double(), dim=2)
    others = ~torch.eye(count, dtype=torch.bool, device=asked.device)
    harmonic = torch.cat([asked.new_zeros(1), (1 / torch.arange(1, count + 1, device=asked.device)).cumsum(0)])
    first, precision = [], []
    for b in range(number):
        own = asked[:, b] @ offered[:, b].T
        for other in range(number):
            if other == b:
                continue
            there = asked[:, b] @ offered[:, other].T  # (N, N): each query with each instance on b'
            right = there.diagonal()[:, None].round(decimals=DIGITS)
            wrong = (own if hard else there)[others].view(count, -1).round(decimals=DIGITS)
            nearer, equal = (wrong > right).sum(1), (wrong == right).sum(1)
            first.append((nearer == 0) / (equal + 1))
            precision.append((harmonic[nearer + equal + 1] - harmonic[nearer]) / (equal + 1))
    return Retrieval(
        float(torch.stack(first).double().mean()),
        float(torch.stack(precision).mean()),
        1 / count,
        float(harmonic[count]) / count,
    )
