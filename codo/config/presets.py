"""Named settings: what differs from the defaults, with the source of each value, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from codo.config.schedules import SCHEDULES

MOCO = "MoCo's code, from memory"
SOCO = "SoCo, from memory of the paper"
DETCO = "DetCo, from memory of the paper"
DENSECL = "DenseCL, from memory of the paper"

Sourced = Mapping[str, tuple[Any, str]]
"""Dotted field -> (value, where the value comes from)."""


@dataclass(frozen=True)
class Preset:
    """Settings by name.

    Attributes:
        about: one line.
        fields: what differs from the defaults.
    """

    about: str
    fields: Sourced = field(default_factory=dict)

    def tree(self) -> dict[str, Any]:
        """Nest the fields as a config has them."""
        tree: dict[str, Any] = {}
        for key, (value, _) in self.fields.items():
            *sections, name = key.split(".")
            section = tree
            for part in sections:
                section = section.setdefault(part, {})
            section[name] = value
        return tree


_MOCO_V2: Sourced = {
    "background": (False, "MoCo v2: nothing is pasted"),
    "alignment": (False, "MoCo v2: no FPN, no box head"),
    "hierarchy": (False, "MoCo v2: the last stage alone"),
    "views": (1, "MoCo v2"),
    "canvas": (224, "MoCo v2"),
    "optim.nesterov": (False, MOCO),
    "optim.schedule": ("epoch", MOCO),
}

_METHODS: dict[str, Preset] = {
    "codo": Preset("CoDo: composites on downstream backgrounds, jittered boxes, every pyramid level, two query views"),
    "insloc": Preset(
        "InsLoc: composites on the foregrounds themselves, anchor jitter on P5 alone, one query view",
        {
            "views": (1, "InsLoc"),
            "paste.source": ("self", "InsLoc"),
            "jitter.mode": ("anchor", "InsLoc"),
            "jitter.levels": ((5,), "InsLoc"),
            "model.roi_sampling_ratio": (0, "InsLoc"),
            "model.roi_aligned": (True, "InsLoc"),
        },
    ),
    "moco_v2": Preset("MoCo v2: image-level contrast, the three switches off", _MOCO_V2),
    "detco": Preset(
        "DetCo: its losses at every backbone stage C2-C5, without its local patches",
        {
            **_MOCO_V2,
            "hierarchy": (True, "DetCo: a loss at every backbone stage"),
            "loss.level_weights": ((0.1, 0.4, 0.7, 1.0), DETCO),
        },
    ),
    "soco": Preset(
        "SoCo: BYOL's cosine loss on boxes, each from its level; boxes of the paste instead of selective search",
        {
            "hierarchy": (False, SOCO),
            "paste.source": ("self", "SoCo sees no downstream images"),
            "views": (1, "SoCo's third, downsampled view is left out"),
            "canvas": (224, SOCO),
            "jitter.mode": ("ratio", SOCO),
            "model.projector_hidden": (4096, SOCO),
            "model.projector_bn": (True, SOCO),
            "model.embedding": (256, SOCO),
            "model.key_momentum": (0.99, SOCO),
            "model.key_momentum_end": (1.0, SOCO),
            "model.bn_groups": (1, SOCO + ": SyncBN"),
            "loss.form": ("cosine", SOCO),
            "loss.symmetric": (True, SOCO),
            "optim.name": ("lars", SOCO),
            "optim.batch_size": (2048, SOCO),
            "optim.lr": (1.0, SOCO),
            "optim.weight_decay": (1e-5, SOCO),
            "optim.nesterov": (False, SOCO),
            "optim.warmup_epochs": (10.0, SOCO),
        },
    ),
    "densecl": Preset(
        "DenseCL: MoCo v2's image loss and the dense loss, half each",
        {**_MOCO_V2, "loss.image": (0.5, DENSECL), "loss.dense": (0.5, DENSECL)},
    ),
}

SMALL_ARCHITECTURE: dict[str, Any] = {
    "backbone": "resnet18",
    "fpn_channels": 128,
    "box_head_channels": 128,
    "box_head_fc": 512,
}

# Two cores. In-batch negatives: with a queue alone a small data set falls for the freshness shortcut, the positive
# being the only fresh key (`codo.jobs.pretrain.watch`).
_SMALL: Sourced = {
    "canvas": (96, "ours"),
    **{f"model.{name}": (value, "ours") for name, value in SMALL_ARCHITECTURE.items()},
    "model.projector_hidden": (512, "ours"),
    "model.embedding": (128, "ours"),
    "model.key_momentum": (0.99, "ours"),
    "model.bn_groups": (2, "ours"),
    "loss.predictor_hidden": (512, "ours"),
    "loss.negatives": ("batch", "ours: with a queue alone, keys are told by their age"),
    "loss.queue_size": (1024, "ours"),
    "optim.epochs": (20, "ours"),
    "optim.batch_size": (32, "ours"),
    "optim.name": ("sgd", "ours"),
    "optim.lr": (0.06, "ours"),
    "optim.nesterov": (True, "ours"),
    "optim.weight_decay": (1e-4, "ours"),
    "optim.schedule": ("iteration", "ours"),
    "optim.warmup_epochs": (0.0, "ours"),
}

# With one BN group there is nothing to shuffle, and SoCo's loss has no negatives that a leak could give away.
# Learning rates: the best of three or four for each (experiments/results/exploration.md, section 3; InsLoc's is the
# lowest tried), DetCo's that of its switches' trials (components.md); DenseCL's and SoCo's have not been tried.
_SMALL_OF: dict[str, Sourced] = {
    "codo": {"optim.lr": (0.02, "ours, of four tried")},
    "insloc": {"optim.lr": (0.06, "ours, of three tried")},
    "moco_v2": {"optim.lr": (0.5, "ours, of three tried")},
    "detco": {"optim.lr": (0.17, "ours, of two tried for its switches")},
    "soco": {"model.bn_groups": (1, SOCO + ": SyncBN")},
    "densecl": {"optim.lr": (0.5, "ours: MoCo v2's")},
}

PRESETS: dict[str, Preset] = _METHODS | {
    f"{name}-small": Preset(
        f"{method.about.partition(':')[0]} for two cores: ResNet-18, 96 px, batch 32, 20 epochs",
        {**method.fields, **_SMALL, **_SMALL_OF.get(name, {})},
    )
    for name, method in _METHODS.items()
}
"""The presets of pretraining."""

DEFAULT_PRESET = "codo-small"

ALIASES = {"small": DEFAULT_PRESET}
"""Short name -> preset."""

PRETRAIN_PRESETS: dict[str, dict[str, Any]] = {name: preset.tree() for name, preset in PRESETS.items()}
PRETRAIN_PRESETS |= {short: PRETRAIN_PRESETS[name] for short, name in ALIASES.items()}
"""Preset -> nested fields of PretrainConfig."""

TRANSFER_PRESETS: dict[str, dict[str, Any]] = {
    # Two cores. lr: from scratch on `cards`, 168 px, one seed, 2 of 6 epochs: AP 1.8 at .03, 7.7 at .08, 3.2 at .24.
    # Warm-up: fits the few hundred steps of such a run. From scratch on `bccd_320`, 156 steps, one seed: AP 28.7 after
    # 100 steps of it, 32.5 after 20 (experiments/results/exploration.md)
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
        "optim": {"epochs": 12, "batch_size": 4, "lr": 0.08, "warmup_iterations": 20},
    },
    # Full scale: every default (ResNet-50, 640-800 px, batch 16, 90,000 iterations), and norms over all processes.
    "1x": {"norm": "sync_bn"},
    "2x": {"norm": "sync_bn", "optim": {"iterations": SCHEDULES["2x"].iterations}},
    "12k": {"norm": "sync_bn", "optim": SCHEDULES["12k"]._asdict()},
}
"""Preset -> nested fields of TransferConfig."""
