"""What every loss is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from codo.losses.embeddings import Embeddings

NAN = float("nan")


class Contrast(NamedTuple):
    """What a loss computed.

    Attributes:
        loss: scalar, the mean over the batch.
        queue_accuracy: scalar without gradient, share of queries that are nearer to their key than to every key of the
            queue; NaN where no queue takes part.
        batch_accuracy: likewise among the keys of the batch. Far below `queue_accuracy`, it shows the freshness
            shortcut: the positive is recognised by being the only fresh key.

    Example:
        >>> Contrast(torch.tensor(1.5)).queue_accuracy
        tensor(nan)
    """

    loss: Tensor
    queue_accuracy: Tensor = torch.tensor(NAN)
    batch_accuracy: Tensor = torch.tensor(NAN)

    @staticmethod
    def sum(terms: Sequence[Contrast], weights: Sequence[float]) -> Contrast:
        """Sum the weighted losses, and average the accuracies."""
        return Contrast(
            torch.stack([w * term.loss for w, term in zip(weights, terms, strict=True)]).sum(),
            # Those left at their default lie on the processor.
            torch.stack([term.queue_accuracy.to(term.loss.device) for term in terms]).mean(),
            torch.stack([term.batch_accuracy.to(term.loss.device) for term in terms]).mean(),
        )


class Loss(nn.Module):
    """A term of the objective; derive from it to add one.

    It may have trainable parameters and buffers (a queue): both are moved, saved and resumed with the run. It always
    sees the whole batch, however many processes or sub-batches compute the embeddings.

    Attributes:
        embeds: what the encoder computes for it: `image`, `instance`, `level`, `dense`, `offsets`, `stage` or
            `cell` (see Embeddings).

    Example:
        >>> class Distance(Loss):
        ...     embeds = "image"
        ...     def forward(self, query, key):
        ...         return (query.image - key.image).square().sum(1).mean()
        >>> float(Distance()(Embeddings(image=torch.ones(4, 2)), Embeddings(image=torch.zeros(4, 2))))
        2.0
    """

    embeds: str

    def forward(self, query: Embeddings, key: Embeddings) -> Contrast | Tensor:
        """Compare a query view with the key view of the same samples, row by row.

        Args:
            query: with gradient.
            key: without gradient.

        Returns:
            A scalar, or a Contrast.
        """
        raise NotImplementedError

    def update(self, key: Embeddings) -> None:
        """Take in the keys of a step, after its optimizer step; a queue is filled here."""


def stacked(embeddings: Embeddings, name: str) -> Tensor:
    """Look up an embedding as `(L, B, d)`; L is 1 for those without levels."""
    found: Tensor | None = getattr(embeddings, name)
    assert found is not None, f"the encoder was built without {name} embeddings"
    return found if found.ndim == 3 else found[None]
