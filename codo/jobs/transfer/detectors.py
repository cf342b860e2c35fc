"""The detectors that pretrained weights go to: torchvision's `*_fpn_v2` shape on codo's backbone."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool
from torchvision.ops.poolers import initLevelMapper

from codo.augment.colour import IMAGENET_MEAN, IMAGENET_STD
from codo.backbones import LEVELS, STRIDES, Backbone
from codo.config.sections import ArchitectureSection
from codo.config.transfer import DetectionSection
from codo.errors import CodoError
from codo.heads import box_head
from codo.heads.box import POOLED_SIZE

ANCHOR_SIDES = (32, 64, 128, 256, 512)
"""Side in pixels of the anchors of P2-P6 (torchvision)."""
ASPECT_RATIOS = (0.5, 1.0, 2.0)
CANONICAL_SIZE = 224
"""Side in pixels of the box that is pooled from P4 (torchvision)."""
SAMPLING_RATIO = 2
"""RoIAlign samples per cell and side (torchvision)."""

Norm = Literal["bn", "sync_bn", "frozen_bn"]


class Detector(FasterRCNN):
    """torchvision's Faster R-CNN, on codo's backbone, with its norms stated.

    The state dict has the names of `fasterrcnn_resnet50_fpn_v2`. With frozen norms, the backbone's batch norms keep
    their statistics and their scale and shift in training mode too; their tensors are the same as of trained ones.
    """

    norm: Norm

    def train(self, mode: bool = True) -> Detector:
        """Switch to training mode; frozen norms stay in evaluation mode."""
        super().train(mode)
        if self.norm == "frozen_bn":
            for module in batch_norms(self.backbone.body):
                module.eval()
        return self

    def box_features(self, images: Tensor, boxes: Tensor) -> Tensor:
        """Compute what the box predictor sees.

        Args:
            images: `(1, 3, H, W)`, normalised, sides divisible by 32.
            boxes: `(N, 4)` xyxy in pixels.

        Returns:
            `(N, box_head_fc)`.
        """
        size = (images.shape[2], images.shape[3])
        return self.roi_heads.box_head(self.roi_heads.box_roi_pool(self.backbone(images), [boxes], [size]))


def build_faster_rcnn(
    architecture: ArchitectureSection,
    num_classes: int,
    norm: Norm,
    detection: DetectionSection | None = None,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> Detector:
    """Build a Faster R-CNN in the shape of torchvision's `fasterrcnn_resnet50_fpn_v2`, freshly initialised.

    FPN with BN and a max-pooled P6, RPN head of two convolutions, `box_head_convs` x conv + BN and one fc as box
    head, RoIAlign with torchvision's settings. The fresh weights come from torch's global generator: seed it.

    Args:
        architecture: backbone, FPN and box head.
        num_classes: classes without the background, K; labels are 1..K, and 0 is background.
        norm: `bn` and `sync_bn` train the backbone's batch norms, `frozen_bn` keeps them as loaded.
        detection: image sizes and proposal lists; None is torchvision's.
        mean: of the channels RGB, in 0..1.
        std: of the channels RGB.

    Raises:
        CodoError: an unknown backbone, or `frozen_bn` for a backbone that has no batch norm.
    """
    detection = detection or DetectionSection()
    backbone = Backbone(architecture.backbone, architecture.fpn_channels, extra_blocks=LastLevelMaxPool())
    if norm == "frozen_bn":
        norms = batch_norms(backbone.body)
        if not norms:
            raise CodoError(f"norm: {architecture.backbone} has no batch norm to freeze; use norm=bn")
        for module in norms:
            module.requires_grad_(False)
    anchors = AnchorGenerator(tuple((side,) for side in ANCHOR_SIDES), (ASPECT_RATIOS,) * len(ANCHOR_SIDES))
    detector = Detector(
        backbone,
        min_size=detection.min_size,
        max_size=detection.max_size,
        image_mean=list(mean),
        image_std=list(std),
        rpn_anchor_generator=anchors,
        rpn_head=_RPNHead(architecture.fpn_channels, anchors.num_anchors_per_location()[0], conv_depth=2),
        rpn_pre_nms_top_n_train=detection.rpn_pre_nms_train,
        rpn_pre_nms_top_n_test=detection.rpn_pre_nms_test,
        rpn_post_nms_top_n_train=detection.rpn_post_nms_train,
        rpn_post_nms_top_n_test=detection.rpn_post_nms_test,
        box_roi_pool=_RoIPool(),
        box_head=box_head(
            architecture.fpn_channels,
            architecture.box_head_channels,
            architecture.box_head_convs,
            architecture.box_head_fc,
        ),
        box_predictor=_Predictor(architecture.box_head_fc, num_classes + 1),
        box_batch_size_per_image=detection.roi_batch_size,
        box_score_thresh=detection.score_threshold,
        box_detections_per_img=detection.detections_per_image,
    )
    detector.norm = norm
    return detector


def batch_norms(module: nn.Module) -> list[nn.Module]:
    """List the batch norms in a module."""
    return [m for m in module.modules() if isinstance(m, _BatchNorm)]


# Under bf16 autocast, torchvision would decode boxes in bf16, which tells coordinates above 256 px apart in steps of
# 2 px; and its RoIAlign has no bf16 kernel on processors. So the three parts below hand on float32.


class _RPNHead(RPNHead):
    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        logits, deltas = super().forward(x)
        return [t.float() for t in logits], [t.float() for t in deltas]


class _Predictor(FastRCNNPredictor):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores, deltas = super().forward(x)
        return scores.float(), deltas.float()


class _RoIPool(MultiScaleRoIAlign):
    """RoIAlign from P2-P5 with the strides stated.

    torchvision infers them from the first batch it sees and keeps them; with images under a few strides in size, the
    guess is wrong.
    """

    def __init__(self) -> None:
        super().__init__(
            [str(i) for i in range(len(LEVELS))], POOLED_SIZE, SAMPLING_RATIO, canonical_scale=CANONICAL_SIZE
        )
        self.scales = [1.0 / stride for stride in STRIDES]
        self.map_levels = initLevelMapper(LEVELS[0], LEVELS[-1], canonical_scale=CANONICAL_SIZE)

    def forward(self, x: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]) -> Tensor:
        with torch.autocast(boxes[0].device.type, enabled=False):
            floats = OrderedDict((name, level.float()) for name, level in x.items())
            return super().forward(floats, boxes, image_shapes)
