"""torchvision: the state dict of a detector in the shape of `fasterrcnn_resnet50_fpn_v2`."""

from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path

from torch import Tensor

from codo.augment import IMAGENET_MEAN, IMAGENET_STD
from codo.config.sections import ArchitectureSection
from codo.config.transfer import DetectionSection
from codo.export.contents import Contents
from codo.runs.checkpoint import save_checkpoint
from codo.weights import keys

SUFFIXES = (".pth", ".pt")

_WHOLE = ("faster_rcnn", "mask_rcnn")
"""Detectors whose other parts torchvision has in the same shape."""
_VERSION_2 = ("backbone.fpn", "rpn.head", "roi_heads.mask_head")
"""Modules that rename the tensors of files without a version, as from before torchvision 0.13."""


def names(contents: Contents) -> dict[str, str]:
    """Map the run's names to torchvision's; of a Faster or Mask R-CNN those of RPN and predictors too."""
    contents.resnet("torchvision")
    key_map = keys.torchvision()
    found = {name: theirs for name in contents.state if (theirs := key_map.theirs(name)) is not None}
    if contents.detector in _WHOLE:
        found |= {name: name for name in contents.rest if name.startswith(("rpn.", "roi_heads."))}
    return found


def write(path: Path, tensors: dict[str, Tensor], contents: Contents) -> list[str]:
    """Write the state dict, with the versions of its modules, for `torch.load(weights_only=True)`."""
    state = OrderedDict(tensors)
    versions: OrderedDict[str, dict[str, int]] = OrderedDict({"": {"version": 1}})
    for name in state:
        module = name.rpartition(".")[0]
        is_norm = f"{module}.running_mean" in state
        for parent in _VERSION_2:
            if name.startswith(f"{parent}."):
                versions[parent] = {"version": 2}
        versions[module] = {"version": 2 if is_norm else 1}
    state._metadata = versions  # type: ignore[attr-defined]  # where torch looks for versions
    save_checkpoint(path, state)
    return []


def usage(path: Path, contents: Contents) -> str:
    """Write the code that builds the detector and loads the file."""
    whole, mask = contents.detector in _WHOLE, contents.detector == "mask_rcnn"
    classes = len(contents.classes) + 1 if whole and contents.classes is not None else 91
    given = []
    if (contents.mean, contents.std) != (tuple(IMAGENET_MEAN), tuple(IMAGENET_STD)):
        given = [f"image_mean={list(contents.mean)}", f"image_std={list(contents.std)}"]
    if whole and contents.detection is not None:
        given += _settings(contents.detection)
    build = _standard if contents.architecture == ArchitectureSection() else _spelt_out
    fresh = ", ".join([*contents.lacking, "RPN and predictors"])
    strict, told = ("", "") if whole else (", strict=False", f"  # missing, so fresh: {fresh}")
    return (
        f"{build(contents, mask, classes, given)}\n"
        f"state = torch.load({json.dumps(str(path))}, weights_only=True)\n"
        f"print(model.load_state_dict(state{strict})){told}"
        f"{_names(contents.classes) if whole and contents.classes is not None else ''}"
        f"{_shrink(contents.detection) if whole and contents.detection is not None else ''}"
    )


def _names(classes: list[str]) -> str:
    """Name the labels: they count the data set's categories in the order of their ids."""
    return f"\nnames = {json.dumps(['background', *classes], ensure_ascii=False)}  # names[label]"


def _shrink(detection: DetectionSection) -> str:
    """Write what torchvision's transform leaves out: it shrinks without anti-aliasing, the run's evaluation with."""
    short, long = detection.sides
    return f"""


def shrink(image):  # (3, H, W) uint8; found boxes are in pixels of what it returns: model([shrink(image) / 255])
    scale = min({short} / min(image.shape[1:]), {long} / max(image.shape[1:]))
    size = [max(1, round(scale * side)) for side in image.shape[1:]]
    resize = torch.nn.functional.interpolate
    return resize(image[None], size, mode="bilinear", antialias=True)[0] if scale < 1 else image"""


def _settings(detection: DetectionSection) -> list[str]:
    """List the arguments by which the detector finds what it found in the run's own evaluation."""
    return [
        f"min_size={detection.min_size}",
        f"max_size={detection.max_size}",
        f"rpn_pre_nms_top_n_test={detection.rpn_pre_nms_test}",
        f"rpn_post_nms_top_n_test={detection.rpn_post_nms_test}",
        f"box_score_thresh={detection.score_threshold}",
        f"box_detections_per_img={detection.detections_per_image}",
    ]


def _standard(contents: Contents, mask: bool, classes: int, given: list[str]) -> str:
    name = "maskrcnn_resnet50_fpn_v2" if mask else "fasterrcnn_resnet50_fpn_v2"
    arguments = ",\n    ".join(["weights=None", "weights_backbone=None", f"num_classes={classes}", *given])
    return f"""import torch
from torchvision.models.detection import {name}

model = {name}(  # num_classes counts the background
    {arguments},
)"""


def _spelt_out(contents: Contents, mask: bool, classes: int, given: list[str]) -> str:
    """Spell out what torchvision has no function for: other ResNets and widths."""
    a = contents.architecture
    kind, width = "MaskRCNN" if mask else "FasterRCNN", a.fpn_channels
    imports = ""
    arguments = [
        "backbone",
        f"rpn_head=RPNHead({width}, 3, conv_depth=2)",
        "box_head=box_head",
        f"box_predictor=FastRCNNPredictor({a.box_head_fc}, classes)",
        *given,
    ]
    if mask:
        imports = "from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor\n"
        arguments += [
            f"mask_head=MaskRCNNHeads({width}, [{width}] * 4, 1, norm_layer=nn.BatchNorm2d)",
            f"mask_predictor=MaskRCNNPredictor({width}, {width}, classes)",
        ]
    separator = ",\n    "
    return f"""import torch
from torch import nn
from torchvision.models import {a.backbone}
from torchvision.models.detection import {kind}
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor
{imports}from torchvision.models.detection.rpn import RPNHead

classes = {classes}  # with the background
stages = {{"layer1": "0", "layer2": "1", "layer3": "2", "layer4": "3"}}
channels = {contents.stage_channels}
backbone = BackboneWithFPN({a.backbone}(), stages, channels, {width}, norm_layer=nn.BatchNorm2d)
convs = [{a.box_head_channels}] * {a.box_head_convs}
box_head = FastRCNNConvFCHead(({width}, 7, 7), convs, [{a.box_head_fc}], norm_layer=nn.BatchNorm2d)
model = {kind}(
    {separator.join(arguments)},
)"""
