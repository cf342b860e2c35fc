"""What sees an image: a timm backbone and the feature pyramid on top of it."""

from codo.backbones.backbone import LEVELS, STRIDES, Backbone, has_branches

__all__ = ["LEVELS", "STRIDES", "Backbone", "has_branches"]
