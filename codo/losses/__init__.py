"""What pulls and pushes: InfoNCE, its queue, and the image, instance and level losses."""

from codo.losses.embeddings import Embeddings
from codo.losses.image import ImageLoss
from codo.losses.info_nce import Contrast, info_nce
from codo.losses.instance import InstanceLoss
from codo.losses.level import LevelLoss
from codo.losses.queue import KeyQueue

__all__ = ["Contrast", "Embeddings", "ImageLoss", "InstanceLoss", "KeyQueue", "LevelLoss", "info_nce"]
