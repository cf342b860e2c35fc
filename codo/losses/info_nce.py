"""InfoNCE: tell the key of the same instance from other keys."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Negatives = Literal["queue", "batch", "both"]


class Contrast(NamedTuple):
    """One InfoNCE.

    Attributes:
        loss: scalar, the mean over the batch.
        queue_accuracy: scalar without gradient, share of queries that are nearer to their key than to every key of the
            queue; NaN where no queue takes part.
        batch_accuracy: likewise among the keys of the batch. Far below `queue_accuracy`, it shows the freshness
            shortcut: the positive is recognised by being the only fresh key.
    """

    loss: Tensor
    queue_accuracy: Tensor
    batch_accuracy: Tensor


def info_nce(
    query: Tensor,
    key: Tensor,
    queue: Tensor | None = None,
    *,
    negatives: Negatives = "queue",
    temperature: float = 0.2,
) -> Contrast:
    """Contrast each query with its key, in one direction.

    Args:
        query: `(B, d)`, unit length.
        key: `(B, d)`, unit length, without gradient; row i is the positive of query i.
        queue: `(K, d)`, unit length, keys of earlier steps; None where `negatives` is `batch`.
        negatives: `queue`; `batch`: the other keys of this step; `both`.
        temperature: divides the cosine.

    Returns:
        The loss `-log(exp(q.k+ / t) / (exp(q.k+ / t) + sum over negatives exp(q.k- / t)))`, and accuracies.

    Source:
        van den Oord et al., arXiv 1807.03748, as in MoCo (arXiv 1911.05722).

    Example:
        >>> eye = torch.eye(4)
        >>> float(info_nce(eye[:2], eye[:2], eye[2:]).loss)  # log(1 + 2 exp(-1 / .2))
        0.0133...
    """
    if negatives != "batch" and queue is None:
        raise ValueError(f"negatives={negatives!r} needs a queue")
    query = query.float()
    among = query @ key.float().T
    positive = among.diagonal()[:, None]
    same = torch.eye(len(query), dtype=torch.bool, device=query.device)
    others = among.masked_fill(same, float("-inf"))
    columns, queue_accuracy = [positive], query.new_tensor(float("nan"))
    if negatives != "batch" and queue is not None:
        stale = query @ queue.float().T
        columns.append(stale)
        queue_accuracy = (positive.detach() > stale.detach()).all(1).float().mean()
    if negatives != "queue":
        columns.append(others)
    logits = torch.cat(columns, 1) / temperature
    target = torch.zeros(len(query), dtype=torch.long, device=query.device)
    batch_accuracy = (positive.detach() > others.detach()).all(1).float().mean()
    return Contrast(F.cross_entropy(logits, target), queue_accuracy, batch_accuracy)
