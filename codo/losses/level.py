"""The level loss."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from codo.losses.embeddings import Embeddings
from codo.losses.info_nce import Contrast, Negatives, info_nce


class LevelLoss(nn.Module):
    """The sum over levels of w_l InfoNCE_l; negatives of a level come from that level's queue.

    Args:
        weights: w_l, one a level.
        temperature: of the InfoNCE.
        negatives: where its negatives come from.

    Source:
        InsLoc (arXiv 2102.08318), w_l = 1; over backbone stages instead of FPN levels: DetCo (arXiv 2102.04803).
    """

    def __init__(
        self,
        weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0),
        temperature: float = 0.2,
        negatives: Negatives = "queue",
    ) -> None:
        super().__init__()
        self.weights, self.temperature, self.negatives = tuple(weights), temperature, negatives

    @property
    def queues(self) -> int:
        """How many queues this loss reads."""
        return len(self.weights)

    def keys(self, key: Embeddings) -> list[Tensor]:
        """List the keys `(B, d)` that go into each queue."""
        assert key.level is not None, "the encoder was built without level embeddings"
        return list(key.level)

    def forward(self, query: Embeddings, key: Embeddings, queues: Sequence[Tensor | None]) -> Contrast:
        """Contrast one query view with the key view, given the keys `(K, d)` of each queue.

        Returns:
            The weighted sum of the losses, and the accuracies' means over the levels.
        """
        assert query.level is not None, "the encoder was built without level embeddings"
        terms = [
            info_nce(q, k, queue, negatives=self.negatives, temperature=self.temperature)
            for q, k, queue in zip(query.level, self.keys(key), queues, strict=True)
        ]
        loss = torch.stack([w * term.loss for w, term in zip(self.weights, terms, strict=True)]).sum()
        return Contrast(
            loss,
            torch.stack([term.queue_accuracy for term in terms]).mean(),
            torch.stack([term.batch_accuracy for term in terms]).mean(),
        )
