"""The query encoder and the key encoder."""

from codo.model.encoder import AlignedEncoder, CanvasProjectors, StageEncoder, build_encoder
from codo.model.momentum import GroupedEncoder, MomentumEncoder, embed_in_groups, gather
from codo.model.sync_bn import synchronise_bn

__all__ = [
    "AlignedEncoder",
    "CanvasProjectors",
    "GroupedEncoder",
    "MomentumEncoder",
    "StageEncoder",
    "build_encoder",
    "embed_in_groups",
    "gather",
    "synchronise_bn",
]
