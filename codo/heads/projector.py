"""Projectors: what the contrastive loss sees and the detector never gets."""

from __future__ import annotations

from torch import Tensor, nn


class MLPProjector(nn.Module):
    """fc (+ BN) + ReLU + fc. The losses normalise its output.

    Args:
        in_channels: width of the input `(N, in_channels)`.
        hidden_channels: width of the hidden layer.
        out_channels: width of the embedding (128 in MoCo v2 and InsLoc).
        bn: batch norm in the hidden layer.

    Source:
        MoCo v2's `mlp` head; InsLoc's projection after the box head; with BN that of BYOL and SoCo, whose predictor
        has the same shape.

    Example:
        >>> import torch
        >>> MLPProjector(16, 32, 8)(torch.randn(5, 16)).shape
        torch.Size([5, 8])
    """

    def __init__(self, in_channels: int, hidden_channels: int, out_channels: int = 128, bn: bool = False) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(in_channels, hidden_channels),
            *([nn.BatchNorm1d(hidden_channels)] if bn else []),
            nn.ReLU(inplace=True),
            nn.Linear(hidden_channels, out_channels),
        )

    def forward(self, features: Tensor) -> Tensor:
        """Embed `features` `(N, in_channels)`."""
        return self.layers(features)
