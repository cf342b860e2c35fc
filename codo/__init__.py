"""codo: contrastive pretraining of whole detectors, ablation-first.

What is named here is the library's API: the jobs, the parts they are made of, and what parts of your own derive from.
Everything is imported when it is first used, so that `import codo` is light.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from codo._version import __version__

if TYPE_CHECKING:
    from codo.augment import (
        AnchorJitter,
        ColourJitter,
        CropView,
        MixedView,
        NoJitter,
        PasteView,
        RatioJitter,
        ViewSampler,
    )
    from codo.backbones import Backbone
    from codo.config import PretrainConfig, TransferConfig, load_pretrain_config
    from codo.errors import CodoError, Interrupted
    from codo.export import Exported, export_run
    from codo.heads import MLPProjector, RoIPool, box_head
    from codo.jobs.ablate.run import AblateResult, ablate
    from codo.jobs.pretrain import PretrainResult, pretrain
    from codo.jobs.pretrain import resume as resume_pretrain
    from codo.jobs.probe.run import probe
    from codo.jobs.transfer import TransferResult, load_transfer_config, transfer
    from codo.jobs.transfer import resume as resume_transfer
    from codo.jobs.transfer.compare import compare as compare_transfers
    from codo.jobs.transfer.seeds import transfer_seeds
    from codo.losses import (
        Contrast,
        CosineLoss,
        DenseLoss,
        Embeddings,
        ImageLoss,
        InstanceLoss,
        KeyQueue,
        LevelLoss,
        Loss,
        StageLoss,
        info_nce,
    )
    from codo.model import AlignedEncoder, MomentumEncoder, StageEncoder, build_encoder

_HOMES = {
    "AblateResult": "codo.jobs.ablate.run:AblateResult",
    "AlignedEncoder": "codo.model:AlignedEncoder",
    "AnchorJitter": "codo.augment:AnchorJitter",
    "Backbone": "codo.backbones:Backbone",
    "CodoError": "codo.errors:CodoError",
    "ColourJitter": "codo.augment:ColourJitter",
    "Contrast": "codo.losses:Contrast",
    "CosineLoss": "codo.losses:CosineLoss",
    "CropView": "codo.augment:CropView",
    "DenseLoss": "codo.losses:DenseLoss",
    "Embeddings": "codo.losses:Embeddings",
    "Exported": "codo.export:Exported",
    "ImageLoss": "codo.losses:ImageLoss",
    "InstanceLoss": "codo.losses:InstanceLoss",
    "Interrupted": "codo.errors:Interrupted",
    "KeyQueue": "codo.losses:KeyQueue",
    "LevelLoss": "codo.losses:LevelLoss",
    "Loss": "codo.losses:Loss",
    "MLPProjector": "codo.heads:MLPProjector",
    "MixedView": "codo.augment:MixedView",
    "MomentumEncoder": "codo.model:MomentumEncoder",
    "NoJitter": "codo.augment:NoJitter",
    "PasteView": "codo.augment:PasteView",
    "PretrainConfig": "codo.config:PretrainConfig",
    "PretrainResult": "codo.jobs.pretrain:PretrainResult",
    "RatioJitter": "codo.augment:RatioJitter",
    "RoIPool": "codo.heads:RoIPool",
    "StageEncoder": "codo.model:StageEncoder",
    "StageLoss": "codo.losses:StageLoss",
    "TransferConfig": "codo.config:TransferConfig",
    "TransferResult": "codo.jobs.transfer:TransferResult",
    "ViewSampler": "codo.augment:ViewSampler",
    "ablate": "codo.jobs.ablate.run:ablate",
    "box_head": "codo.heads:box_head",
    "build_encoder": "codo.model:build_encoder",
    "compare_transfers": "codo.jobs.transfer.compare:compare",
    "export_run": "codo.export:export_run",
    "info_nce": "codo.losses:info_nce",
    "load_pretrain_config": "codo.config:load_pretrain_config",
    "load_transfer_config": "codo.jobs.transfer:load_transfer_config",
    "pretrain": "codo.jobs.pretrain:pretrain",
    "probe": "codo.jobs.probe.run:probe",
    "resume_pretrain": "codo.jobs.pretrain:resume",
    "resume_transfer": "codo.jobs.transfer:resume",
    "transfer": "codo.jobs.transfer:transfer",
    "transfer_seeds": "codo.jobs.transfer.seeds:transfer_seeds",
}

__all__ = [
    "AblateResult",
    "AlignedEncoder",
    "AnchorJitter",
    "Backbone",
    "CodoError",
    "ColourJitter",
    "Contrast",
    "CosineLoss",
    "CropView",
    "DenseLoss",
    "Embeddings",
    "Exported",
    "ImageLoss",
    "InstanceLoss",
    "Interrupted",
    "KeyQueue",
    "LevelLoss",
    "Loss",
    "MLPProjector",
    "MixedView",
    "MomentumEncoder",
    "NoJitter",
    "PasteView",
    "PretrainConfig",
    "PretrainResult",
    "RatioJitter",
    "RoIPool",
    "StageEncoder",
    "StageLoss",
    "TransferConfig",
    "TransferResult",
    "ViewSampler",
    "__version__",
    "ablate",
    "box_head",
    "build_encoder",
    "compare_transfers",
    "export_run",
    "info_nce",
    "load_pretrain_config",
    "load_transfer_config",
    "pretrain",
    "probe",
    "resume_pretrain",
    "resume_transfer",
    "transfer",
    "transfer_seeds",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        module, _, attribute = _HOMES[name].partition(":")
        return getattr(importlib.import_module(module), attribute)
    raise AttributeError(f"module 'codo' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
