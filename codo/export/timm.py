"""timm: the backbone as a folder in the layout of its hub, `model.safetensors` and `config.json`."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor

from codo.errors import CodoError
from codo.export.contents import Contents
from codo.runs.files import write_json
from codo.runs.seed import integer_seed
from codo.runs.weights_file import save_weights
from codo.weights.timm_names import body_names

SUFFIXES = ("",)
"""A folder."""

_CONFIG = ("input_size", "fixed_input_size", "pool_size", "interpolation", "crop_pct", "first_conv", "classifier")
"""What of timm's own configuration of the model holds for these weights too."""


def names(contents: Contents) -> dict[str, str]:
    """Map the body's names to the whole model's."""
    backbone = contents.architecture.backbone
    if ":" in backbone:
        raise CodoError(f"export: the backbone {backbone} is your own; timm has no names for it")
    found = {f"backbone.body.{own}": theirs for theirs, own in body_names(backbone).items()}
    lacking = [name for name in contents.state if name.startswith("backbone.body.") and name not in found]
    if lacking:
        raise CodoError(f"export: timm's {backbone} has no tensor for {lacking[0]}; was the run of another timm?")
    return {name: theirs for name, theirs in found.items() if name in contents.state}


def write(path: Path, tensors: dict[str, Tensor], contents: Contents) -> list[str]:
    """Write the folder: a model without classifier, which timm loads strictly.

    Returns:
        Names of the tensors that are fresh, as they lie behind the last stage.
    """
    backbone = contents.architecture.backbone
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.default_generator.manual_seed(integer_seed("export", 0))
        model: Any = timm.create_model(backbone, num_classes=0)
    own = model.state_dict()
    wrong = [name for name, tensor in tensors.items() if name not in own or own[name].shape != tensor.shape]
    if wrong:
        raise CodoError(f"export: {wrong[0]} does not fit timm's {backbone}; was the run of another timm?")
    fresh = [name for name in own if name not in tensors]
    told = {key: model.pretrained_cfg[key] for key in _CONFIG if key in model.pretrained_cfg}
    config = {
        "architecture": backbone,
        "num_classes": 0,
        "num_features": model.num_features,
        "pretrained_cfg": {
            **told,
            "mean": contents.mean,
            "std": contents.std,
            "num_classes": 0,
            "tag": "codo",
            "custom_load": False,
        },
    }
    save_weights(path / "model.safetensors", {name: tensors.get(name, own[name]) for name in own}, {"format": "pt"})
    write_json(path / "config.json", config)
    return fresh


def usage(path: Path, contents: Contents) -> str:
    """Write the code that loads the folder."""
    file, folder = json.dumps(str(path / "model.safetensors")), json.dumps(f"local-dir:{path}")
    return f"""import timm

model = timm.create_model("{contents.architecture.backbone}", num_classes=0, checkpoint_path={file})
# or from the folder, also with num_classes=10 for a fresh classifier, or features_only=True for a detector
model = timm.create_model({folder}, pretrained=True)"""
