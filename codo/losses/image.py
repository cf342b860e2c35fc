"""The image loss."""

from codo.losses.single import SingleLoss


class ImageLoss(SingleLoss):
    """InfoNCE of whole canvases, pooled from the backbone's last stage.

    Source:
        MoCo v2 (arXiv 2003.04297).
    """

    embeds = "image"
