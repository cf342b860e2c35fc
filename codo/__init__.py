"""codo: contrastive pretraining of whole detectors, ablation-first.

What is named here is the library's API; the parts are in `codo.augment`, `codo.backbones`, `codo.heads`, `codo.losses`
and `codo.model`. Everything is imported when it is first used, so that `import codo` is light.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from codo._version import __version__

if TYPE_CHECKING:
    from codo.config import PretrainConfig, TransferConfig, load_pretrain_config
    from codo.errors import CodoError
    from codo.jobs.pretrain import PretrainResult, pretrain
    from codo.jobs.transfer import TransferResult, load_transfer_config, transfer

_HOMES = {
    "CodoError": "codo.errors",
    "PretrainConfig": "codo.config",
    "PretrainResult": "codo.jobs.pretrain",
    "TransferConfig": "codo.config",
    "TransferResult": "codo.jobs.transfer",
    "load_pretrain_config": "codo.config",
    "load_transfer_config": "codo.jobs.transfer",
    "pretrain": "codo.jobs.pretrain",
    "transfer": "codo.jobs.transfer",
}

__all__ = [
    "CodoError",
    "PretrainConfig",
    "PretrainResult",
    "TransferConfig",
    "TransferResult",
    "__version__",
    "load_pretrain_config",
    "load_transfer_config",
    "pretrain",
    "transfer",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'codo' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
