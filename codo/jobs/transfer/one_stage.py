"""RetinaNet and FCOS on codo's backbone: the levels P3-P7."""

from __future__ import annotations

from collections import OrderedDict
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection._utils import BoxLinearCoder
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.fcos import FCOSClassificationHead, FCOSHead, FCOSRegressionHead
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from codo.backbones import Backbone
from codo.jobs.transfer.base import Anchors, Detector
from codo.jobs.transfer.norms import norm_groups

RETINANET_ANCHORS = tuple(tuple(int(side * 2 ** (i / 3)) for i in range(3)) for side in (32, 64, 128, 256, 512))
"""Sides in pixels of the anchors of P3-P7 (torchvision)."""
FCOS_ANCHORS = ((8,), (16,), (32,), (64,), (128,))
"""Sides in pixels that FCOS regresses by, its strides (torchvision)."""


class RetinaNetDetector(Detector, RetinaNet):
    """torchvision's RetinaNet, in the shape of `retinanet_resnet50_fpn_v2`, on codo's FPN P3-P5 and P6, P7.

    One difference: P6 comes from P5, as in torchvision's first version and its FCOS, not from C5.
    """


class FCOSDetector(Detector, FCOS):
    """torchvision's FCOS on codo's FPN P3-P5 and P6, P7."""


def upper_backbone(name: str, channels: int) -> Backbone:
    """Build a backbone whose pyramid is P3-P7.

    P3-P5 have the names that they have in the whole pyramid, so that pretrained ones load; P2 is neither there nor
    computed. P6 and P7 are strided convolutions on P5.
    """
    backbone = Backbone(name, channels, extra_blocks=LastLevelP6P7(channels, channels))
    assert isinstance(backbone.fpn, FeaturePyramidNetwork)
    backbone.fpn.__class__ = _UpperPyramid
    for blocks in (backbone.fpn.inner_blocks, backbone.fpn.layer_blocks):
        blocks[0] = nn.Identity()
    return backbone


class _UpperPyramid(FeaturePyramidNetwork):
    def forward(self, x: dict[str, Tensor]) -> OrderedDict[str, Tensor]:
        """Compute P3-P7 from C2-C5: keys "1", "2", "3", "p6", "p7"."""
        names, stages = list(x)[1:], list(x.values())
        inner = self.inner_blocks[-1](stages[-1])
        levels = [self.layer_blocks[-1](inner)]
        for i in range(len(stages) - 2, 0, -1):
            lateral = self.inner_blocks[i](stages[i])
            inner = lateral + F.interpolate(inner, size=lateral.shape[-2:], mode="nearest")
            levels.insert(0, self.layer_blocks[i](inner))
        if self.extra_blocks is not None:
            levels, names = self.extra_blocks(levels, stages, names)
        return OrderedDict(zip(names, levels, strict=True))


def retinanet_parts(channels: int, classes: int) -> tuple[AnchorGenerator, nn.Module]:
    """Build RetinaNet's anchors and head; `classes` counts the background."""
    anchors = Anchors(RETINANET_ANCHORS, ((0.5, 1.0, 2.0),) * len(RETINANET_ANCHORS))
    count = anchors.num_anchors_per_location()[0]
    head = _RetinaNetHead(channels, count, classes, norm_layer=_group_norm(channels))
    head.regression_head._loss_type = "giou"  # as torchvision's v2 sets it
    return anchors, head


def fcos_parts(channels: int, classes: int) -> tuple[AnchorGenerator, nn.Module]:
    """Build FCOS's anchors and head; `classes` counts the background."""
    return Anchors(FCOS_ANCHORS, ((1.0,),) * len(FCOS_ANCHORS)), _FCOSHead(channels, classes)


def _group_norm(channels: int) -> partial[nn.GroupNorm]:
    return partial(nn.GroupNorm, norm_groups(channels))


# Under bf16 autocast torchvision would decode boxes in bf16; so the heads hand on float32.


class _RetinaNetHead(RetinaNetHead):
    def forward(self, x: list[Tensor]) -> dict[str, Tensor]:
        return {name: value.float() for name, value in super().forward(x).items()}


class _FCOSHead(FCOSHead):
    def __init__(self, channels: int, classes: int) -> None:
        nn.Module.__init__(self)  # FCOSHead's own insists on 32 groups
        self.box_coder = BoxLinearCoder(normalize_by_size=True)
        norm = _group_norm(channels)
        self.classification_head = FCOSClassificationHead(channels, 1, classes, norm_layer=norm)
        self.regression_head = FCOSRegressionHead(channels, 1, norm_layer=norm)

    def forward(self, x: list[Tensor]) -> dict[str, Tensor]:
        return {name: value.float() for name, value in super().forward(x).items()}
