"""Named settings: what differs from the defaults, and nothing else."""

from __future__ import annotations

from typing import Any

SMALL_ARCHITECTURE: dict[str, Any] = {
    "backbone": "resnet18",
    "fpn_channels": 128,
    "box_head_channels": 128,
    "box_head_fc": 512,
}

PRETRAIN_PRESETS: dict[str, dict[str, Any]] = {
    # Two cores. In-batch negatives: a queue alone falls for the freshness shortcut at this size (method.md, Traps).
    "small": {
        "canvas": 96,
        "model": {**SMALL_ARCHITECTURE, "projector_hidden": 512, "key_momentum": 0.99, "bn_groups": 2},
        "loss": {"negatives": "batch", "queue_size": 1024},
        "optim": {"epochs": 20, "batch_size": 32, "lr": 0.24},
    },
    # Full scale: every default (ResNet-50, 256 px, 200 epochs, batch 256).
    "codo": {},
}
"""Preset -> nested fields of PretrainConfig."""

TRANSFER_PRESETS: dict[str, dict[str, Any]] = {}
