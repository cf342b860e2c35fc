"""The query encoder and the key encoder."""

from codo.model.encoder import AlignedEncoder, StageEncoder, build_encoder
from codo.model.momentum import MomentumEncoder, embed_in_groups

__all__ = ["AlignedEncoder", "MomentumEncoder", "StageEncoder", "build_encoder", "embed_in_groups"]
