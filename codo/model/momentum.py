"""The key encoder: a moving average of the query encoder, whose BN must not leak which key belongs to which query."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from codo.losses import Embeddings


def embed_in_groups(encoder: nn.Module, images: Tensor, boxes: Tensor, groups: int) -> Embeddings:
    """Embed a batch in `groups` equal parts, each with BN statistics of its own.

    Args:
        encoder: `(images, boxes) -> Embeddings`.
        images: `(B, 3, S, S)`.
        boxes: `(4, B, 4)`.
        groups: divides B.
    """
    parts = zip(images.chunk(groups), boxes.chunk(groups, dim=1), strict=True)
    return Embeddings.concatenate([encoder(i, b) for i, b in parts])


class MomentumEncoder(nn.Module):
    """The key encoder.

    Args:
        encoder: the query encoder; the key encoder starts as its copy and takes no gradient.
        momentum: m; `key <- m key + (1 - m) query` at each `update`.
        groups: BN groups of one device among which keys are shuffled; 1 turns the shuffle off, as it would do nothing.

    Source:
        MoCo (arXiv 1911.05722): momentum encoder and shuffled BN, there across GPUs.
    """

    def __init__(self, encoder: nn.Module, momentum: float = 0.999, groups: int = 1) -> None:
        super().__init__()
        self.encoder = copy.deepcopy(encoder).requires_grad_(False)
        self.momentum, self.groups = momentum, groups

    @torch.no_grad()
    def update(self, query_encoder: nn.Module) -> None:
        """Move towards the query encoder."""
        own: list[Tensor] = list(self.encoder.parameters())
        query: list[Tensor] = list(query_encoder.parameters())
        torch._foreach_lerp_(own, query, 1 - self.momentum)

    @torch.no_grad()
    def forward(self, images: Tensor, boxes: Tensor, generator: torch.Generator) -> Embeddings:
        """Embed keys, in another order than the queries, so that their BN groups differ.

        Args:
            images: `(B, 3, S, S)`, normalised.
            boxes: `(4, B, 4)`, shuffled along with the images.
            generator: on the processor; draws the order.

        Returns:
            Embeddings in the order of `images`.
        """
        if self.groups == 1:
            return self.encoder(images, boxes)
        order = torch.randperm(len(images), generator=generator).to(images.device)
        shuffled = embed_in_groups(self.encoder, images[order], boxes[:, order], self.groups)
        return shuffled.take(order.argsort())
