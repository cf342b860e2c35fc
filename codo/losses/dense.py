"""The dense loss: cells of the feature map with the cells that show the same."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from codo.losses.base import Contrast, Loss
from codo.losses.embeddings import Embeddings
from codo.losses.info_nce import Negatives, contrast
from codo.losses.queue import KeyQueue


class DenseLoss(Loss):
    """InfoNCE of every cell of the last stage with the cell of the key view whose features resemble it most.

    The negatives are other samples: the mean over the cells of their key.

    Args:
        queue: of such means; None where `negatives` is `batch`.
        temperature: divides the cosine.
        negatives: `queue`, `batch` or `both`.

    Source:
        DenseCL (arXiv 2011.09157).

    Example:
        >>> DenseLoss(KeyQueue(16, 8, torch.Generator())).embeds
        'dense'
    """

    embeds = "dense"

    def __init__(
        self, queue: KeyQueue | None = None, *, temperature: float = 0.2, negatives: Negatives = "queue"
    ) -> None:
        super().__init__()
        if negatives != "batch" and queue is None:
            raise ValueError(f"negatives={negatives!r} needs a queue")
        self.queue, self.temperature, self.negatives = queue, temperature, negatives

    def forward(self, query: Embeddings, key: Embeddings) -> Contrast:
        """Compare a query view with the key view; see Loss."""
        assert query.dense is not None, "the encoder was built without dense embeddings"
        assert key.dense is not None
        assert query.dense_features is not None
        assert key.dense_features is not None
        q, k = (F.normalize(e.float(), dim=2) for e in (query.dense, key.dense))  # (G, B, d)
        fq, fk = (F.normalize(e.float(), dim=2) for e in (query.dense_features, key.dense_features))
        match = torch.einsum("gbc,hbc->gbh", fq, fk).argmax(2)  # (G, B): the key's cell
        partner = k.gather(0, match[..., None].expand_as(q))
        cells, batch, _ = q.shape
        pooled = _pooled(key)
        others = torch.einsum("gbd,nd->gbn", q, pooled)
        same = torch.eye(batch, dtype=torch.bool, device=q.device)
        return contrast(
            (q * partner).sum(2).view(-1, 1),
            None if self.queue is None else q.flatten(0, 1) @ self.queue.keys.T,
            others.masked_fill(same, float("-inf")).view(cells * batch, batch),
            negatives=self.negatives,
            temperature=self.temperature,
        )

    def update(self, key: Embeddings) -> None:
        """Push the keys of a step; see Loss."""
        if self.queue is not None:
            self.queue.push(_pooled(key))


def _pooled(key: Embeddings) -> torch.Tensor:
    """Average each sample's cells: `(B, d)` of unit length."""
    assert key.dense is not None
    return F.normalize(key.dense.float().mean(0), dim=1)
