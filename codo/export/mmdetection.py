"""mmdetection: a checkpoint under its own names, with the config that goes with it."""

from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path

from torch import Tensor

from codo.errors import CodoError
from codo.export.contents import Contents
from codo.runs.checkpoint import save_checkpoint
from codo.weights import keys

SUFFIXES = (".pth",)


def names(contents: Contents) -> dict[str, str]:
    """Map the run's names to mmdetection's."""
    resnet = contents.resnet("mmdetection")
    if resnet.groups == 1 and resnet.width != 64:
        raise CodoError(f"export: mmdetection has no wide ResNet, so no {contents.architecture.backbone}")
    key_map = keys.mmdetection(contents.convs)
    return {name: theirs for name in contents.state if (theirs := key_map.theirs(name)) is not None}


def write(path: Path, tensors: dict[str, Tensor], contents: Contents) -> list[str]:
    """Write `{"state_dict", "meta"}`."""
    meta = {"codo_version": contents.version, "codo_run": contents.fingerprint}
    save_checkpoint(path, {"state_dict": OrderedDict(tensors), "meta": meta})
    return []


def usage(path: Path, contents: Contents) -> str:
    """Write the config that loads it: FPN and box head come by `load_from`, which takes the backbone along."""
    resnet, a = contents.resnet("mmdetection"), contents.architecture
    mean, std = ([round(255 * v, 3) for v in values] for values in (contents.mean, contents.std))
    kind, form = "ResNet", ""
    if resnet.groups != 1:
        kind, form = "ResNeXt", f"groups={resnet.groups}, base_width={resnet.width}, "
    file = json.dumps(str(path))
    head = "Shared4Conv1FCBBoxHead" if a.box_head_convs == 4 else "ConvFCBBoxHead"
    counts = "" if a.box_head_convs == 4 else f" num_shared_convs={a.box_head_convs}, num_shared_fcs=1,"
    return f"""# codo.py, for mmdetection 3; put the base that you train from
_base_ = "mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py"
load_from = {file}
norm_cfg = dict(type="SyncBN", requires_grad=True)  # BN on one GPU
model = dict(
    data_preprocessor=dict(mean={mean}, std={std}, bgr_to_rgb=True),
    backbone=dict(
        type="{kind}", depth={resnet.depth}, {form}style="pytorch", frozen_stages=-1,
        norm_cfg=norm_cfg, norm_eval=False, init_cfg=None,
    ),
    neck=dict(in_channels={contents.stage_channels}, out_channels={a.fpn_channels}, norm_cfg=norm_cfg),
    rpn_head=dict(in_channels={a.fpn_channels}, feat_channels={a.fpn_channels}),
    roi_head=dict(
        bbox_roi_extractor=dict(
            roi_layer=dict(
                type="RoIAlign", output_size=7, sampling_ratio={contents.sampling_ratio}, aligned={contents.aligned}
            ),
            out_channels={a.fpn_channels},
        ),
        bbox_head=dict(
            type="{head}",{counts} in_channels={a.fpn_channels}, conv_out_channels={a.box_head_channels},
            fc_out_channels={a.box_head_fc}, norm_cfg=norm_cfg,
        ),
    ),
)
# The backbone alone, in any model:
# backbone=dict(..., init_cfg=dict(type="Pretrained", checkpoint={file}, prefix="backbone."))"""
