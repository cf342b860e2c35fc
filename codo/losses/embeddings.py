"""What an encoder hands to the losses."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Embeddings(NamedTuple):
    """Embeddings of one view of B samples, float32, of any length; None where no loss asked for them.

    The losses see the whole batch, however many processes share it.

    Attributes:
        image: `(B, d)`, the whole canvas.
        instance: `(B, d)`, the box from the level a detector would assign.
        level: `(L, B, d)`, the box from every level, or the canvas from every stage.
        dense: `(G, B, d)`, the G cells of the last stage.
        dense_features: `(G, B, C)`, the same cells before their projector, without gradient.
        offsets: `(P, B, 4)`, where the patch lies as seen from each of the boxes pooled; see `box_offsets`.
        boxes: `(P, B, 4)` xyxy in pixels, these boxes.
        exact_boxes: `(1, B, 4)`, the patch's; training adds it.
        stage: `(L, B, d)`, the box from backbone stages, before the pyramid.
        cell: `(P g^2, B, d)`, the g x g cells of each of the boxes pooled, box after box.
        sources: `(1, B, 4)`, what of the foreground the patch shows, see `codo.augment.Views`; training adds it.

    Example:
        >>> Embeddings(image=torch.zeros(4, 8)).take(torch.tensor([2, 0])).image.shape
        torch.Size([2, 8])
    """

    image: Tensor | None = None
    instance: Tensor | None = None
    level: Tensor | None = None
    dense: Tensor | None = None
    dense_features: Tensor | None = None
    offsets: Tensor | None = None
    boxes: Tensor | None = None
    exact_boxes: Tensor | None = None
    stage: Tensor | None = None
    cell: Tensor | None = None
    sources: Tensor | None = None

    def take(self, rows: Tensor) -> Embeddings:
        """Take the samples `rows` `(B,)`, in that order."""
        return Embeddings(*(None if e is None else e.index_select(-2, rows) for e in self))

    def leaves(self) -> Embeddings:
        """Cut them off from what computed them, to take the gradients of the losses."""
        return Embeddings(
            *(e if e is None or name in _GIVEN else e.detach().requires_grad_() for name, e in self._asdict().items())
        )

    @staticmethod
    def concatenate(parts: list[Embeddings]) -> Embeddings:
        """Join the samples of several."""
        return Embeddings(
            *(None if column[0] is None else torch.cat(column, -2) for column in zip(*parts, strict=True))
        )


_GIVEN = ("dense_features", "boxes", "exact_boxes", "sources")
"""What of Embeddings takes no gradient."""

EMBEDS: tuple[str, ...] = ("image", "instance", "level", "dense", "offsets", "stage", "cell")
"""What a loss can ask an encoder for."""
