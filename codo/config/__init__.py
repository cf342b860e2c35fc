"""Typed settings: one field is one switch is one ablation axis. Imports no torch."""

from codo.config.load import dump_yaml, fingerprint, load_config, load_pretrain_config
from codo.config.presets import PRETRAIN_PRESETS, TRANSFER_PRESETS
from codo.config.pretrain import PretrainConfig
from codo.config.transfer import TransferConfig

__all__ = [
    "PRETRAIN_PRESETS",
    "TRANSFER_PRESETS",
    "PretrainConfig",
    "TransferConfig",
    "dump_yaml",
    "fingerprint",
    "load_config",
    "load_pretrain_config",
]
