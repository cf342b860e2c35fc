"""InfoNCE: tell the key of the same instance from other keys."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codo.losses.base import Contrast, Loss, stacked
from codo.losses.embeddings import Embeddings
from codo.losses.queue import KeyQueue

Negatives = Literal["queue", "batch", "both"]


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
        query: `(B, d)`, of any length; normalised here.
        key: `(B, d)`, likewise, without gradient; row i is the positive of query i.
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
    query, key = F.normalize(query.float(), dim=1), F.normalize(key.float(), dim=1)
    among = query @ key.T
    same = torch.eye(len(query), dtype=torch.bool, device=query.device)
    return contrast(
        among.diagonal()[:, None],
        None if queue is None else query @ queue.float().T,
        among.masked_fill(same, float("-inf")),
        negatives=negatives,
        temperature=temperature,
    )


def contrast(
    positive: Tensor, stale: Tensor | None, others: Tensor, *, negatives: Negatives, temperature: float
) -> Contrast:
    """Compute InfoNCE from cosines.

    Args:
        positive: `(N, 1)`, of each query with its key.
        stale: `(N, K)`, with the keys of the queue; None without one.
        others: `(N, M)`, with the keys of this step, -inf at the query's own.
        negatives: which of the two are negatives.
        temperature: divides the cosines.
    """
    columns, queue_accuracy = [positive], positive.new_tensor(float("nan"))
    if negatives != "batch":
        if stale is None:
            raise ValueError(f"negatives={negatives!r} needs a queue")
        columns.append(stale)
        queue_accuracy = (positive.detach()[:, 0] > stale.detach().amax(1)).float().mean()
    if negatives != "queue":
        columns.append(others)
    logits = torch.cat(columns, 1) / temperature
    target = torch.zeros(len(positive), dtype=torch.long, device=positive.device)
    batch_accuracy = (positive.detach()[:, 0] > others.detach().amax(1)).float().mean()
    return Contrast(F.cross_entropy(logits, target), queue_accuracy, batch_accuracy)


class InfoNCELoss(Loss):
    """The weighted sum of the InfoNCE of one or several embeddings a view, each with a queue of its own.

    Args:
        queues: one an embedding; none where `negatives` is `batch`.
        temperature: divides the cosine.
        negatives: `queue`, `batch` or `both`.
        weights: one an embedding.
    """

    def __init__(
        self,
        queues: Sequence[KeyQueue] = (),
        *,
        temperature: float = 0.2,
        negatives: Negatives = "queue",
        weights: Sequence[float] = (1.0,),
    ) -> None:
        super().__init__()
        if negatives != "batch" and len(queues) != len(weights):
            raise ValueError(f"negatives={negatives!r} needs a queue for each of {len(weights)} embeddings")
        self.queues = nn.ModuleList(queues)
        self.temperature, self.negatives, self.weights = temperature, negatives, tuple(weights)

    def forward(self, query: Embeddings, key: Embeddings) -> Contrast:
        """Contrast a query view with the key view; see Loss."""
        rows: list[KeyQueue | None] = [queue for queue in self.queues if isinstance(queue, KeyQueue)]
        terms = [
            info_nce(
                q, k, None if queue is None else queue.keys, negatives=self.negatives, temperature=self.temperature
            )
            for q, k, queue in zip(
                stacked(query, self.embeds),
                stacked(key, self.embeds),
                rows or [None] * len(self.weights),
                strict=True,
            )
        ]
        return Contrast.sum(terms, self.weights)

    def update(self, key: Embeddings) -> None:
        """Push the keys of a step; see Loss."""
        for queue, keys in zip(self.queues, stacked(key, self.embeds), strict=False):
            assert isinstance(queue, KeyQueue)
            queue.push(F.normalize(keys.float(), dim=1))


class ImageLoss(InfoNCELoss):
    """InfoNCE of whole canvases, pooled from the backbone's last stage.

    Source:
        MoCo v2 (arXiv 2003.04297).

    Example:
        >>> eye = torch.eye(4)
        >>> float(ImageLoss(negatives="batch")(Embeddings(image=eye), Embeddings(image=eye)).loss)  # log(1 + 3 exp(-5))
        0.0200...
    """

    embeds = "image"


class InstanceLoss(InfoNCELoss):
    """InfoNCE of boxes, each pooled from the one FPN level that a detector would assign it to.

    Source:
        Boxes are assigned to levels as in SoCo (arXiv 2106.02637); this term alone is CoDo without hierarchy (ours).

    Example:
        >>> InstanceLoss([KeyQueue(16, 8, torch.Generator())]).embeds
        'instance'
    """

    embeds = "instance"


class LevelLoss(InfoNCELoss):
    """The sum over levels of w_l InfoNCE_l; negatives of a level come from that level's queue.

    Source:
        InsLoc (arXiv 2102.08318), w_l = 1; over backbone stages instead of FPN levels: DetCo (arXiv 2102.04803).

    Example:
        >>> LevelLoss(negatives="batch", weights=(0.1, 0.4, 0.7, 1.0)).weights
        (0.1, 0.4, 0.7, 1.0)
    """

    embeds = "level"


class StageLoss(InfoNCELoss):
    """The sum over backbone stages of the InfoNCE of the box pooled from them, each with that stage's queue.

    Source:
        Ours: deep supervision of the backbone. A loss at every stage is DetCo's idea (arXiv 2102.04803), there on whole
        images.

    Example:
        >>> eye = torch.eye(4)[None].expand(2, 4, 4)  # of two stages
        >>> loss = StageLoss(negatives="batch", weights=(1.0, 1.0))
        >>> float(loss(Embeddings(stage=eye), Embeddings(stage=eye)).loss)  # 2 log(1 + 3 exp(-5))
        0.0400...
    """

    embeds = "stage"
