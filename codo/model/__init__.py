"""The query encoder and the key encoder."""

from codo.model.encoder import AlignedEncoder, CanvasProjectors, StageEncoder, build_encoder
from codo.model.group_bn import average_statistics, bn_in_groups
from codo.model.momentum import MomentumEncoder, gather
from codo.model.sync_bn import synchronise_bn

__all__ = [
    "AlignedEncoder",
    "CanvasProjectors",
    "MomentumEncoder",
    "StageEncoder",
    "average_statistics",
    "bn_in_groups",
    "build_encoder",
    "gather",
    "synchronise_bn",
]
