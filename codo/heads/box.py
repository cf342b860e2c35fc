"""The detector's own box head (4conv1fc), which is pretrained and transferred."""

from __future__ import annotations

from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead

from codo.errors import CodoError

POOLED_SIZE = 7
"""Side of a pooled box in cells (torchvision, InsLoc)."""


def box_head(
    in_channels: int = 256,
    fc_channels: int = 1024,
    *,
    conv_channels: int = 256,
    convs: int = 4,
) -> FastRCNNConvFCHead:
    """Build torchvision's `_v2` box head: `convs` x (3x3 conv + norm + ReLU) -> fc + ReLU.

    Its state dict has torchvision's names below `roi_heads.box_head`: `{j}.0|1.*` and `{convs + 1}.weight|bias`.

    Args:
        in_channels: channels of a pooled box `(R, in_channels, 7, 7)`.
        fc_channels: width of the output `(R, fc_channels)`.
        conv_channels: channels of each convolution.
        convs: how many convolutions.

    Source:
        torchvision `fasterrcnn_resnet50_fpn_v2`; InsLoc's 4conv1fc.

    Example:
        >>> import torch
        >>> box_head(16, 32, conv_channels=16, convs=2)(torch.randn(5, 16, 7, 7)).shape
        torch.Size([5, 32])
    """
    return FastRCNNConvFCHead(
        (in_channels, POOLED_SIZE, POOLED_SIZE), [conv_channels] * convs, [fc_channels], norm_layer=nn.BatchNorm2d
    )


def head_and_cells(head: nn.Module, pooled: Tensor) -> tuple[Tensor, Tensor]:
    """Pass pooled boxes through a box head: its output `(R, fc)`, and the cells that it flattens `(R, C, 7, 7)`."""
    assert isinstance(head, nn.Sequential)
    cells = pooled
    for part in head:
        if isinstance(part, nn.Flatten):
            cells = pooled
        pooled = part(pooled)
    return pooled, cells


def cell_channels(head: nn.Module, channels: int) -> int:
    """Count the channels of the cells that a box head flattens; those of a pooled box are `channels`.

    Raises:
        CodoError: it flattens none.
    """
    for part in head if isinstance(head, nn.Sequential) else ():
        if isinstance(part, nn.Flatten):
            return channels
        channels = next((m.out_channels for m in part.modules() if isinstance(m, nn.Conv2d)), channels)
    raise CodoError("loss.cell: needs a box head that is a Sequential with an nn.Flatten, as codo's own is")
