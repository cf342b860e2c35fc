"""The key encoder: a moving average of the query encoder, whose BN must not leak which key belongs to which query."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from codo.losses import Embeddings
from codo.runs.world import World


class MomentumEncoder(nn.Module):
    """The key encoder.

    Args:
        encoder: the query encoder, `(images, boxes, BN groups) -> Embeddings`; the key encoder starts as its copy and
            takes no gradient.
        momentum: m; `key <- m key + (1 - m) query` at each `update`.
        groups: BN groups of the whole batch among which keys are shuffled; 1 turns the shuffle off, as it would do
            nothing.
        world: the processes that share the batch.

    Source:
        MoCo (arXiv 1911.05722): momentum encoder and shuffled BN, there across GPUs.

    Example:
        >>> query = nn.Linear(2, 1, bias=False)
        >>> key = MomentumEncoder(query, momentum=0.9)
        >>> with torch.no_grad():
        ...     _ = query.weight.add_(1.0)
        >>> before = key.encoder.weight.clone()
        >>> key.update(query)
        >>> torch.allclose(key.encoder.weight, before + 0.1)
        True
    """

    def __init__(
        self, encoder: nn.Module, momentum: float = 0.999, groups: int = 1, world: World | None = None
    ) -> None:
        super().__init__()
        self.encoder = copy.deepcopy(encoder).requires_grad_(False)
        self.momentum, self.groups, self.world = momentum, groups, world or World()

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
            images: `(B / processes, 3, S, S)`, normalised.
            boxes: `(4, R / processes, 4)`, image after image, equally many in each; shuffled along with the images.
            generator: on the processor, in the same state in every process; draws the order.

        Returns:
            Embeddings of the whole batch, of R boxes, in their order.
        """
        world = self.world
        if self.groups == 1:
            return gather(self.encoder(images, boxes), world)
        count, each = len(images), boxes.shape[1] // len(images)
        order = torch.randperm(count * world.size, generator=generator).to(images.device)
        rows = order[world.rank * count : (world.rank + 1) * count]
        images = world.gather(images)[rows].contiguous(memory_format=torch.channels_last)
        boxes = world.gather(boxes, 1).unflatten(1, (-1, each))[:, rows].flatten(1, 2)
        embedded = self.encoder(images, boxes, self.groups // world.size)
        own = order[:, None] * each + torch.arange(each, device=images.device)  # the boxes, as the images are shuffled
        return gather(embedded, world).take(own.flatten().argsort())


def gather(embeddings: Embeddings, world: World) -> Embeddings:
    """Join the processes' embeddings to those of the whole batch; gradients reach this process's own."""
    return Embeddings(
        *(
            e
            if e is None
            else world.gather_with_gradient(e, e.ndim - 2)
            if e.requires_grad
            else world.gather(e, e.ndim - 2)
            for e in embeddings
        )
    )
