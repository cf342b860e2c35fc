"""What an encoder hands to the losses."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Embeddings(NamedTuple):
    """Embeddings of one view of B samples, of unit length; None where no loss asked for them.

    Attributes:
        image: `(B, d)`, the whole canvas.
        instance: `(B, d)`, the box from the level a detector would assign.
        level: `(L, B, d)`, the box from every level, or the canvas from every stage.
    """

    image: Tensor | None = None
    instance: Tensor | None = None
    level: Tensor | None = None

    def take(self, rows: Tensor) -> Embeddings:
        """Take the samples `rows` `(B,)`, in that order."""
        return Embeddings(*(None if e is None else e.index_select(-2, rows) for e in self))

    @staticmethod
    def concatenate(parts: list[Embeddings]) -> Embeddings:
        """Join the samples of several."""
        return Embeddings(
            *(None if column[0] is None else torch.cat(column, -2) for column in zip(*parts, strict=True))
        )
