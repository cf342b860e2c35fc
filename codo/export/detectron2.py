"""detectron2: a pickle of arrays under its own names, with the config that goes with them."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from codo.export.contents import Contents
from codo.runs.files import atomic_path
from codo.weights import keys

SUFFIXES = (".pkl",)
"""By which detectron2 tells a pickle."""


def names(contents: Contents) -> dict[str, str]:
    """Map the run's names to detectron2's."""
    contents.resnet("detectron2")
    key_map = keys.detectron2(contents.convs)
    return {name: theirs for name in contents.state if (theirs := key_map.theirs(name)) is not None}


def write(path: Path, tensors: dict[str, Tensor], contents: Contents) -> list[str]:
    """Write `{"model": {name: array}, "__author__": ..., "matching_heuristics": True}`."""
    content = {
        "model": {name: tensor.cpu().contiguous().numpy() for name, tensor in tensors.items()},
        "__author__": f"codo {contents.version}, run {contents.fingerprint}",
        "matching_heuristics": True,
    }
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        _Pickler(file, 4).dump(content)
    return []


_PythonPickler: Any = pickle._Pickler  # not the one in C, as one of its steps is replaced
_RECONSTRUCT = np.zeros(0).__reduce__()[0]


class _Pickler(_PythonPickler):
    """Names NumPy's modules as NumPy 1 does, which both read: detectron2 is often run with NumPy 1."""

    def save_global(self, obj: Any, name: str | None = None) -> None:
        if obj is _RECONSTRUCT:
            self.write(pickle.GLOBAL + b"numpy.core.multiarray\n_reconstruct\n")
            self.memoize(obj)
        else:
            super().save_global(obj, name)


def usage(path: Path, contents: Contents) -> str:
    """Write the config: what is said here was so in pretraining, and is not detectron2's default."""
    resnet, a = contents.resnet("detectron2"), contents.architecture
    lines = [f"DEPTH: {resnet.depth}"]
    if resnet.groups != 1 or resnet.width != 64:
        lines.append(f"NUM_GROUPS: {resnet.groups}\n    WIDTH_PER_GROUP: {resnet.width}")
    if resnet.depth < 50:
        lines.append("RES2_OUT_CHANNELS: 64")
    form = "\n    ".join(lines)
    mean, std = (", ".join(f"{255 * v:.3f}" for v in values) for values in (contents.mean, contents.std))
    return f"""# codo.yaml, for cfg.merge_from_file
MODEL:
  META_ARCHITECTURE: GeneralizedRCNN
  WEIGHTS: {json.dumps(str(path))}
  PIXEL_MEAN: [{mean}]
  PIXEL_STD: [{std}]
  BACKBONE:
    NAME: build_resnet_fpn_backbone
    FREEZE_AT: 0
  RESNETS:
    {form}
    NORM: SyncBN  # BN on one GPU
    STRIDE_IN_1X1: False
    OUT_FEATURES: [res2, res3, res4, res5]
  FPN:
    NORM: SyncBN
    IN_FEATURES: [res2, res3, res4, res5]
    OUT_CHANNELS: {a.fpn_channels}
  ANCHOR_GENERATOR:
    SIZES: [[32], [64], [128], [256], [512]]
    ASPECT_RATIOS: [[0.5, 1.0, 2.0]]
  RPN:
    IN_FEATURES: [p2, p3, p4, p5, p6]
  ROI_HEADS:
    NAME: StandardROIHeads
    IN_FEATURES: [p2, p3, p4, p5]
  ROI_BOX_HEAD:
    NAME: FastRCNNConvFCHead
    NUM_CONV: {a.box_head_convs}
    CONV_DIM: {a.box_head_channels}
    NUM_FC: 1
    FC_DIM: {a.box_head_fc}
    NORM: SyncBN
    POOLER_RESOLUTION: 7
    POOLER_SAMPLING_RATIO: {contents.sampling_ratio}
    POOLER_TYPE: {"ROIAlignV2" if contents.aligned else "ROIAlign"}
INPUT:
  FORMAT: RGB"""
