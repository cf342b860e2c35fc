"""The detectors that pretrained weights go to: torchvision's, on codo's backbone, FPN and box head."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool
from torchvision.ops.poolers import initLevelMapper

from codo.augment import IMAGENET_MEAN, IMAGENET_STD
from codo.backbones import LEVELS, STRIDES, Backbone
from codo.config.sections import Part
from codo.config.transfer import DETECTORS, ONE_STAGE, TransferConfig
from codo.errors import CodoError
from codo.heads import box_head
from codo.heads.box import POOLED_SIZE
from codo.heads.pyramid import pool_pyramid
from codo.jobs.transfer.base import Anchors, Detector
from codo.jobs.transfer.norms import put_group_norms, set_training
from codo.jobs.transfer.one_stage import FCOSDetector, RetinaNetDetector, fcos_parts, retinanet_parts, upper_backbone
from codo.parts import find, make

ANCHOR_SIDES = (32, 64, 128, 256, 512)
"""Side in pixels of the anchors of P2-P6 (torchvision)."""
ASPECT_RATIOS = (0.5, 1.0, 2.0)
CANONICAL_SIZE = 224
"""Side in pixels of the box that is pooled from P4 (torchvision)."""
SAMPLING_RATIO = 2
"""RoIAlign samples per cell and side (torchvision)."""
MASK_SIZE = 14
"""Side of a box pooled for its mask, in cells; the mask has twice that (torchvision)."""
MASK_CONVS = 4


class BoxFeatures:
    """What a two-stage detector's predictors see."""

    backbone: nn.Module
    roi_heads: Any

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


class FasterRCNNDetector(BoxFeatures, Detector, FasterRCNN):
    """torchvision's Faster R-CNN; the state dict has the names of `fasterrcnn_resnet50_fpn_v2`."""


class MaskRCNNDetector(BoxFeatures, Detector, MaskRCNN):
    """torchvision's Mask R-CNN; the state dict has the names of `maskrcnn_resnet50_fpn_v2`."""

    kinds: ClassVar[tuple[str, ...]] = ("bbox", "segm")


def kinds_of(detector: str) -> tuple[str, ...]:
    """Tell what a detector finds, by its name or dotted path: `bbox`, and `segm` where it learns masks.

    Raises:
        CodoError: the dotted path cannot be imported.
    """
    if detector in DETECTORS:
        return MaskRCNNDetector.kinds if detector == "mask_rcnn" else Detector.kinds
    return tuple(getattr(find(detector), "kinds", Detector.kinds))


def build_detector(
    config: TransferConfig,
    num_classes: int,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> Detector:
    """Build a detector, freshly initialised from torch's global generator: seed it.

    `faster_rcnn` and `mask_rcnn`: FPN with BN and a max-pooled P6, RPN head of two convolutions, `box_head_convs` x
    conv + BN and one fc as box head, RoIAlign with torchvision's settings. `retinanet`, `fcos`: P3-P7, heads with
    GroupNorm. A dotted path: what it names, called with `(backbone of P2-P5 and a pooled level, classes, detection)`.

    Args:
        config: detector, architecture, detection settings, norm, and what of it is frozen.
        num_classes: classes without the background, K; labels are 1..K, and 0 is background.
        mean: of the channels RGB, in 0..1.
        std: of the channels RGB.

    Raises:
        CodoError: an unknown backbone; nothing to freeze, or stages that are not known; a user's own detector that is
            no module.
    """
    architecture, detection = config.architecture, config.detection
    upper = config.detector in ONE_STAGE
    if upper:
        backbone = upper_backbone(architecture.backbone, architecture.fpn_channels)
    else:
        backbone = Backbone(architecture.backbone, architecture.fpn_channels, extra_blocks=LastLevelMaxPool())
    common: dict[str, Any] = {
        "min_size": detection.min_size,
        "max_size": detection.max_size,
        "image_mean": list(mean),
        "image_std": list(std),
    }
    detector: Detector
    if upper:
        parts, kind = (
            (retinanet_parts, RetinaNetDetector) if config.detector == "retinanet" else (fcos_parts, FCOSDetector)
        )
        anchors, head = parts(architecture.fpn_channels, num_classes + 1)
        detector = kind(
            backbone,
            num_classes + 1,
            anchor_generator=anchors,
            head=head,
            score_thresh=detection.score_threshold,
            detections_per_img=detection.detections_per_image,
            **common,
        )
    elif config.detector in ("faster_rcnn", "mask_rcnn"):
        detector = _two_stage(config, backbone, num_classes, common)
    else:
        detector = _own(config, backbone, num_classes)
    detector.norm = config.norm
    if config.norm == "gn":
        put_group_norms(detector)
    set_training(detector, config)
    return detector


def _two_stage(config: TransferConfig, backbone: Backbone, num_classes: int, common: dict[str, Any]) -> Detector:
    architecture, detection = config.architecture, config.detection
    channels = architecture.fpn_channels
    anchors = Anchors(tuple((side,) for side in ANCHOR_SIDES), (ASPECT_RATIOS,) * len(ANCHOR_SIDES))
    common |= {
        "rpn_anchor_generator": anchors,
        "rpn_head": _RPNHead(channels, anchors.num_anchors_per_location()[0], conv_depth=2),
        "rpn_pre_nms_top_n_train": detection.rpn_pre_nms_train,
        "rpn_pre_nms_top_n_test": detection.rpn_pre_nms_test,
        "rpn_post_nms_top_n_train": detection.rpn_post_nms_train,
        "rpn_post_nms_top_n_test": detection.rpn_post_nms_test,
        "box_roi_pool": _RoIPool(POOLED_SIZE),
        "box_head": box_head(
            channels,
            architecture.box_head_fc,
            conv_channels=architecture.box_head_channels,
            convs=architecture.box_head_convs,
        ),
        "box_predictor": _Predictor(architecture.box_head_fc, num_classes + 1),
        "box_batch_size_per_image": detection.roi_batch_size,
        "box_score_thresh": detection.score_threshold,
        "box_detections_per_img": detection.detections_per_image,
    }
    if config.detector == "faster_rcnn":
        return FasterRCNNDetector(backbone, **common)
    return MaskRCNNDetector(
        backbone,
        mask_roi_pool=_RoIPool(MASK_SIZE),
        mask_head=MaskRCNNHeads(channels, [channels] * MASK_CONVS, 1, norm_layer=nn.BatchNorm2d),
        mask_predictor=_MaskPredictor(channels, channels, num_classes + 1),
        **common,
    )


def _own(config: TransferConfig, backbone: Backbone, num_classes: int) -> Any:
    """Call a user's own maker, and check what it gives."""
    found = make(Part(path=config.detector), backbone, num_classes, config.detection)
    if not isinstance(found, nn.Module) or not hasattr(found, "transform") or not hasattr(found, "backbone"):
        raise CodoError(
            f"detector {config.detector}: must give a module with `backbone` and `transform`, that behaves as "
            "torchvision's detectors do"
        )
    return found


# Under bf16 autocast, torchvision would decode boxes in bf16, which tells coordinates above 256 px apart in steps of
# 2 px; and its RoIAlign has no bf16 kernel on processors. So the parts below hand on float32.


class _RPNHead(RPNHead):
    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        logits, deltas = super().forward(x)
        return [t.float() for t in logits], [t.float() for t in deltas]


class _Predictor(FastRCNNPredictor):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores, deltas = super().forward(x)
        return scores.float(), deltas.float()


class _MaskPredictor(MaskRCNNPredictor):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).float()


class _RoIPool(MultiScaleRoIAlign):
    """RoIAlign from P2-P5 with the strides stated.

    torchvision infers them from the first batch it sees and keeps them; with images under a few strides in size, the
    guess is wrong.
    """

    def __init__(self, size: int) -> None:
        super().__init__([str(i) for i in range(len(LEVELS))], size, SAMPLING_RATIO, canonical_scale=CANONICAL_SIZE)
        self.scales = [1.0 / stride for stride in STRIDES]
        self.map_levels = initLevelMapper(LEVELS[0], LEVELS[-1], canonical_scale=CANONICAL_SIZE)

    def forward(self, x: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]) -> Tensor:
        device = boxes[0].device
        with torch.autocast(device.type, enabled=False):
            levels = OrderedDict((name, x[name]) for name in self.featmap_names)
            if device.type != "cpu":
                floats = OrderedDict((name, level.float()) for name, level in levels.items())
                return super().forward(floats, boxes, image_shapes)
            images = torch.repeat_interleave(torch.tensor([len(own) for own in boxes]))
            assigned = self.map_levels(boxes)
            return pool_pyramid(
                list(levels.values()), STRIDES, torch.cat(boxes), images, assigned, self.output_size[0], SAMPLING_RATIO
            )
