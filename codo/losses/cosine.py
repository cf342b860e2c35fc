"""The cosine loss: no negatives, a predictor instead."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codo.losses.base import Contrast, Loss, stacked
from codo.losses.embeddings import Embeddings


class CosineLoss(Loss):
    """The weighted sum of 2 - 2 cos(predictor(query), key) of one or several embeddings a view.

    Args:
        embeds: which embedding.
        predictor: `(N, d) -> (N, d)`, trained with the encoder; the same for all levels, in one pass.
        weights: one an embedding (level).

    Source:
        BYOL (arXiv 2006.07733); on boxes: SoCo (arXiv 2106.02637).

    Example:
        >>> loss = CosineLoss("image", nn.Identity())
        >>> float(loss(Embeddings(image=torch.eye(2)), Embeddings(image=-torch.eye(2))).loss)
        4.0
    """

    def __init__(self, embeds: str, predictor: nn.Module, weights: Sequence[float] = (1.0,)) -> None:
        super().__init__()
        self.embeds, self.predictor, self.weights = embeds, predictor, tuple(weights)

    def forward(self, query: Embeddings, key: Embeddings) -> Contrast:
        """Compare a query view with the key view; see Loss."""
        q, k = stacked(query, self.embeds), stacked(key, self.embeds)
        predicted = F.normalize(self.predictor(q.flatten(0, 1)).float(), dim=1).view_as(k)
        k = F.normalize(k.float(), dim=2)
        nearest = (predicted.detach() @ k.transpose(1, 2)).argmax(2)
        accuracy = (nearest == torch.arange(k.shape[1], device=k.device)).float().mean()
        losses: Tensor = 2 - 2 * (predicted * k).sum(2).mean(1)
        return Contrast((losses * losses.new_tensor(self.weights)).sum(), batch_accuracy=accuracy)
