"""Projectors: what the contrastive loss sees and the detector never gets."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class MLPProjector(nn.Module):
    """fc + ReLU + fc, then L2 norm.

    Args:
        in_channels: width of the input `(N, in_channels)`.
        hidden_channels: width of the hidden layer.
        out_channels: width of the embedding (128 in MoCo v2 and InsLoc).

    Returns (forward):
        `(N, out_channels)` float32 of unit length.

    Source:
        MoCo v2's `mlp` head; InsLoc's projection after the box head.

    Example:
        >>> import torch
        >>> MLPProjector(16, 32, 8)(torch.randn(5, 16)).norm(dim=1).round().tolist()
        [1.0, 1.0, 1.0, 1.0, 1.0]
    """

    def __init__(self, in_channels: int, hidden_channels: int, out_channels: int = 128) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(in_channels, hidden_channels),
            nn.ReLU(inplace=True),
            nn.Linear(hidden_channels, out_channels),
        )

    def forward(self, features: Tensor) -> Tensor:
        """Embed `features` `(N, in_channels)`."""
        return F.normalize(self.layers(features).float(), dim=1)
