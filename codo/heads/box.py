"""The detector's own box head (4conv1fc), which is pretrained and transferred."""

from __future__ import annotations

from torch import nn
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead

POOLED_SIZE = 7
"""Side of a pooled box in cells (torchvision, InsLoc)."""


def box_head(
    in_channels: int = 256,
    conv_channels: int = 256,
    convs: int = 4,
    fc_channels: int = 1024,
    norm_layer: type[nn.Module] = nn.BatchNorm2d,
) -> FastRCNNConvFCHead:
    """Build torchvision's `_v2` box head: `convs` x (3x3 conv + norm + ReLU) -> fc + ReLU.

    Its state dict has torchvision's names below `roi_heads.box_head`: `{j}.0|1.*` and `{convs + 1}.weight|bias`.

    Args:
        in_channels: channels of a pooled box `(R, in_channels, 7, 7)`.
        conv_channels: channels of each convolution.
        convs: how many convolutions.
        fc_channels: width of the output `(R, fc_channels)`.
        norm_layer: norm after each convolution.

    Source:
        torchvision `fasterrcnn_resnet50_fpn_v2`; InsLoc's 4conv1fc.

    Example:
        >>> import torch
        >>> box_head(16, 16, convs=2, fc_channels=32)(torch.randn(5, 16, 7, 7)).shape
        torch.Size([5, 32])
    """
    return FastRCNNConvFCHead(
        (in_channels, POOLED_SIZE, POOLED_SIZE), [conv_channels] * convs, [fc_channels], norm_layer=norm_layer
    )
