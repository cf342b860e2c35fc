"""What sees an image: a timm backbone and the feature pyramid on top of it."""

from codo.backbones.backbone import LEVELS, STRIDES, Backbone

__all__ = ["LEVELS", "STRIDES", "Backbone"]
