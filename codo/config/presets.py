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
    # lr: of .06 and .24 (one seed, objects_open on cards) .06 was ahead from the second epoch on (batch accuracy in
    # the third epoch .18 against .10).
    "small": {
        "canvas": 96,
        "model": {**SMALL_ARCHITECTURE, "projector_hidden": 512, "key_momentum": 0.99, "bn_groups": 2},
        "loss": {"negatives": "batch", "queue_size": 1024},
        "optim": {"epochs": 20, "batch_size": 32, "lr": 0.06},
    },
    # Full scale: every default (ResNet-50, 256 px, 200 epochs, batch 256).
    "codo": {},
}
"""Preset -> nested fields of PretrainConfig."""

TRANSFER_PRESETS: dict[str, dict[str, Any]] = {
    # Two cores. lr: from scratch on `cards`, 168 px, one seed, 2 of 6 epochs: AP 1.8 at .03, 7.7 at .08, 3.2 at .24
    "small": {
        "architecture": SMALL_ARCHITECTURE,
        "detection": {
            "min_size": (240,),
            "max_size": 320,
            "rpn_pre_nms_train": 500,
            "rpn_pre_nms_test": 300,
            "rpn_post_nms_train": 300,
            "rpn_post_nms_test": 300,
            "roi_batch_size": 48,
        },
        "optim": {"epochs": 12, "batch_size": 4, "lr": 0.08, "warmup_iterations": 100},
    },
    # Full scale, method.md section 5: every default (ResNet-50, 640-800 px, batch 16, 90,000 iterations).
    "1x": {},
    "2x": {"optim": {"iterations": 180_000}},
}
"""Preset -> nested fields of TransferConfig."""
