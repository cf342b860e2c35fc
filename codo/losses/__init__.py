"""What pulls and pushes: InfoNCE and its queue, cosine, dense, box and cell losses, and the base of a user's own."""

from codo.losses.base import Contrast, Loss
from codo.losses.box import BoxLoss, box_offsets
from codo.losses.cell import CellLoss
from codo.losses.cosine import CosineLoss
from codo.losses.dense import DenseLoss
from codo.losses.embeddings import EMBEDS, Embeddings
from codo.losses.info_nce import ImageLoss, InfoNCELoss, InstanceLoss, LevelLoss, StageLoss, info_nce
from codo.losses.queue import KeyQueue

__all__ = [
    "EMBEDS",
    "BoxLoss",
    "CellLoss",
    "Contrast",
    "CosineLoss",
    "DenseLoss",
    "Embeddings",
    "ImageLoss",
    "InfoNCELoss",
    "InstanceLoss",
    "KeyQueue",
    "LevelLoss",
    "Loss",
    "StageLoss",
    "box_offsets",
    "info_nce",
]
