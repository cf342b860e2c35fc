"""What is pasted, where, and how it is coloured. Parts with plain arguments; randomness comes in as a generator."""

from codo.augment.colour import ColourJitter, ColourParameters
from codo.augment.crop import random_crop
from codo.augment.finish import finish_views
from codo.augment.jitter import AnchorJitter, BoxJitter, NoJitter, RatioJitter, box_iou
from codo.augment.mosaic import mosaic
from codo.augment.paste import paste, patch_size
from codo.augment.pixels import IMAGENET_MEAN, IMAGENET_STD, denormalise, normalise
from codo.augment.views import Augmenter, CropView, MixedView, PasteView, Views, ViewSampler

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "AnchorJitter",
    "Augmenter",
    "BoxJitter",
    "ColourJitter",
    "ColourParameters",
    "CropView",
    "MixedView",
    "NoJitter",
    "PasteView",
    "RatioJitter",
    "ViewSampler",
    "Views",
    "box_iou",
    "denormalise",
    "finish_views",
    "mosaic",
    "normalise",
    "paste",
    "patch_size",
    "random_crop",
]
