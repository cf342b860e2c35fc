"""What the image and the instance loss have in common: one embedding a view, one queue."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn

from codo.losses.embeddings import Embeddings
from codo.losses.info_nce import Contrast, Negatives, info_nce


class SingleLoss(nn.Module):
    """InfoNCE of the one embedding named by `embeds`.

    Args:
        temperature: of the InfoNCE.
        negatives: where its negatives come from.
    """

    embeds: ClassVar[str]
    """The field of Embeddings that this loss contrasts."""
    queues = 1

    def __init__(self, temperature: float = 0.2, negatives: Negatives = "queue") -> None:
        super().__init__()
        self.temperature, self.negatives = temperature, negatives

    def keys(self, key: Embeddings) -> list[Tensor]:
        """List the keys `(B, d)` that go into each queue."""
        return [getattr(key, self.embeds)]

    def forward(self, query: Embeddings, key: Embeddings, queues: Sequence[Tensor | None]) -> Contrast:
        """Contrast one query view with the key view, given the keys `(K, d)` of each queue."""
        (positive,) = self.keys(key)
        return info_nce(
            getattr(query, self.embeds), positive, queues[0], negatives=self.negatives, temperature=self.temperature
        )
