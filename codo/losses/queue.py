"""The queue of keys."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class KeyQueue(nn.Module):
    """The keys of the latest steps, first in, first out. It starts with random unit vectors.

    Args:
        size: K, the number of keys.
        width: d, of an embedding.
        generator: draws the start.

    Attributes:
        keys: `(K, d)` float32, a buffer: saved and resumed with the run.

    Source:
        MoCo (arXiv 1911.05722).

    Example:
        >>> queue = KeyQueue(4, 2, torch.Generator().manual_seed(0))
        >>> queue.push(torch.ones(3, 2)); queue.push(torch.zeros(2, 2))
        >>> queue.keys[:, 0].tolist()
        [0.0, 1.0, 1.0, 0.0]
    """

    keys: Tensor
    position: Tensor

    def __init__(self, size: int, width: int, generator: torch.Generator) -> None:
        super().__init__()
        start = F.normalize(torch.randn(size, width, generator=generator), dim=1)
        self.register_buffer("keys", start)
        self.register_buffer("position", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def push(self, keys: Tensor) -> None:
        """Replace the oldest keys by `keys` `(B, d)`; of more than K the last K stay."""
        keys = keys.detach().float()[-len(self.keys) :]
        rows = (self.position + torch.arange(len(keys), device=keys.device)) % len(self.keys)
        self.keys[rows] = keys
        self.position.copy_((self.position + len(keys)) % len(self.keys))
