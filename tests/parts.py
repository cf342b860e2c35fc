"""What tests share that is no fixture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from codo.config import PretrainConfig, load_pretrain_config

TINY: dict[str, Any] = {
    "canvas": 64,
    "views": 1,
    "model.backbone": "resnet10t",
    "model.fpn_channels": 16,
    "model.box_head_convs": 1,
    "model.box_head_channels": 16,
    "model.box_head_fc": 32,
    "model.projector_hidden": 32,
    "model.embedding": 16,
    "model.bn_groups": 2,
    "loss.queue_size": 32,
    "loss.negatives": "both",
    "optim.epochs": 2,
    "optim.batch_size": 4,
    "run.log_every": 1,
    "run.device": "cpu",
    "run.precision": "fp32",
    "run.workers": 0,
    "run.threads": 1,
}


def tiny_config(images: Path, **fields: Any) -> PretrainConfig:
    """Make a config of a network that takes a step in a fraction of a second; `a__b` stands for `a.b`."""
    sources = {"data.foregrounds": str(images / "foregrounds"), "data.backgrounds": str(images / "backgrounds")}
    given = {key.replace("__", "."): value for key, value in fields.items()}
    absent = [f"{key}=null" for key, value in given.items() if value is None]
    return load_pretrain_config(preset="codo", flags=TINY | sources | given, sets=absent)
