"""What turns features into embeddings: RoI pooling, the detector's box head, projectors."""

from codo.heads.box import box_head
from codo.heads.projector import MLPProjector
from codo.heads.pyramid import pool_pyramid
from codo.heads.roi import RoIPool, assign_levels

__all__ = ["MLPProjector", "RoIPool", "assign_levels", "box_head", "pool_pyramid"]
