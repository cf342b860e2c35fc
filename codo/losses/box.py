"""The box loss: where the patch lies, seen from the jittered box."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from codo.losses.base import Contrast, Loss
from codo.losses.embeddings import Embeddings

SCALE = (10.0, 10.0, 5.0, 5.0)
"""What the offsets are multiplied by (Fast R-CNN's, torchvision's)."""

BETA = 1 / 9
"""Where the smooth L1 turns from square to straight (torchvision's box head)."""


def box_offsets(exact: Tensor, boxes: Tensor) -> Tensor:
    """Encode boxes as a detector's box head does.

    Args:
        exact: `(..., 4)` xyxy in pixels, what is looked for.
        boxes: `(..., 4)`, from where.

    Returns:
        `(..., 4)`: shift of the centre in widths and heights, logarithm of the ratio of the sides, times `SCALE`.

    Source:
        Girshick et al., R-CNN (arXiv 1311.2524), appendix C; torchvision's `BoxCoder`.

    Example:
        >>> box_offsets(torch.tensor([0.0, 0, 10, 10]), torch.tensor([1.0, 0, 11, 20])).tolist()
        [-1.0, -2.5, 0.0, -3.4657359...]
    """
    (low, high), (low_e, high_e) = boxes.float().split(2, -1), exact.float().split(2, -1)
    side, side_e = high - low, high_e - low_e
    shift = ((low_e + high_e) - (low + high)) / (2 * side)
    return torch.cat([shift, torch.log(side_e / side)], -1) * shift.new_tensor(SCALE)


class BoxLoss(Loss):
    """A detector's box regression without labels: from the features of a jittered box to the box of the patch.

    Meant to keep what contrast of jittered boxes may make the box head forget: where the box lies. That it does was not
    seen in the one trial made (experiments/results/exploration.md).

    Source:
        Ours. The loss is Faster R-CNN's, of one class.

    Example:
        >>> boxes = torch.tensor([[[0.0, 0, 8, 8]]])
        >>> query = Embeddings(offsets=torch.zeros(1, 1, 4), boxes=boxes, exact_boxes=boxes)
        >>> float(BoxLoss()(query, query).loss)
        0.0
    """

    embeds = "offsets"

    def forward(self, query: Embeddings, key: Embeddings) -> Contrast:
        """Compare the offsets that the encoder saw with those to the patch; the key is not looked at. See Loss."""
        assert query.offsets is not None, "the encoder was built without offsets"
        assert query.boxes is not None
        assert query.exact_boxes is not None
        wanted = box_offsets(query.exact_boxes, query.boxes)
        return Contrast(F.smooth_l1_loss(query.offsets, wanted, beta=BETA, reduction="none").sum(2).mean())
