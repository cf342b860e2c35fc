"""The instance loss."""

from codo.losses.single import SingleLoss


class InstanceLoss(SingleLoss):
    """InfoNCE of boxes, each pooled from the one FPN level that a detector would assign it to.

    Source:
        Boxes are assigned to levels as in SoCo (arXiv 2106.02637); this term alone is CoDo without hierarchy (ours).
    """

    embeds = "instance"
