"""What is probed of an encoder: the same definitions for every method, and those that only some have."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torchvision.ops import roi_align

from codo.backbones import LEVELS, STRIDES
from codo.heads.box import POOLED_SIZE
from codo.model import AlignedEncoder, StageEncoder
from codo.model.statistics import modes_kept

COMMON = "backbone"
"""What the figures without a prefix are of; every encoder has it."""

MEANING: dict[str, str] = {
    COMMON: "C5 under the box, mean: every method has it",
    "c4": "C4 under the box, mean: every method has it",
    "canvas": "C5, mean of the whole canvas: every method has it",
    "box_head": "the box from the level a detector assigns, after the box head: what transfers",
    "embedding": "after the projector: what the loss compares",
}
"""Representation -> what it is."""

Encoder = AlignedEncoder | StageEncoder


def representations(encoder: Encoder) -> list[str]:
    """Name the representations that an encoder has, in the order of `MEANING`."""
    found = [COMMON, "c4", "canvas"]
    if isinstance(encoder, AlignedEncoder):
        found.append("box_head")
    if _projects_boxes(encoder) or _canvas_projector(encoder) is not None:
        found.append("embedding")
    return found


def looks_at_the_box(encoder: Encoder, name: str) -> bool:
    """Tell whether a representation depends on the box at all."""
    return name != "canvas" and (name != "embedding" or _projects_boxes(encoder))


def embed(
    encoder: Encoder, images: Tensor, boxes: Tensor, owners: Tensor, wanted: Collection[str]
) -> dict[str, Tensor]:
    """Embed boxes.

    Args:
        encoder: in evaluation mode.
        images: `(B, 3, S, S)`, normalised.
        boxes: `(R, 4)` xyxy in pixels.
        owners: `(R,)` int64, the image of each box.
        wanted: representations, of those that the encoder has.

    Returns:
        Representation -> `(R, d)` float32; not normalised.

    Source:
        `backbone` and `c4`: RoIAlign (7 x 7, adaptive sampling, shifted by half a cell: detectron2's) of the stage,
        then the mean. It is no part of any method, so that it favours none. `box_head` pools as the encoder does.
    """
    stages = encoder.backbone.stages(images)
    found: dict[str, Tensor] = {}
    for name, k in ((COMMON, 5), ("c4", 4)):
        if name in wanted:
            row = LEVELS.index(k)
            rois = torch.cat([owners[:, None].float(), boxes], 1)
            pooled = roi_align(stages[row].float(), rois, POOLED_SIZE, 1 / STRIDES[row], 0, True)
            found[name] = pooled.mean((2, 3))
    if "canvas" in wanted:
        found["canvas"] = stages[-1].mean((2, 3))[owners]
    if (_uses_box_head(encoder) and {"box_head", "embedding"} & set(wanted)) or "box_head" in wanted:
        assert isinstance(encoder, AlignedEncoder)
        pyramid = list(encoder.backbone.pyramid(stages).values())
        pooled = encoder.pool_assigned(pyramid, boxes.expand(len(LEVELS), *boxes.shape), owners)
        found["box_head"] = encoder.box_head(pooled)
        if _uses_box_head(encoder):
            found["embedding"] = encoder.projector(found["box_head"])
    if "embedding" in wanted and "embedding" not in found and encoder.box_stages is not None:
        found["embedding"] = encoder.box_stages(stages, boxes.expand(len(LEVELS), *boxes.shape), owners)[-1]
    if "embedding" in wanted and "embedding" not in found:
        projector = _canvas_projector(encoder)
        assert projector is not None
        found["embedding"] = projector(stages[-1].mean((2, 3)))[owners]
    return {name: found[name].float() for name in MEANING if name in wanted}


def _projects_boxes(encoder: Encoder) -> bool:
    """Tell whether a loss sees boxes: then its projector is trained on them."""
    return _uses_box_head(encoder) or encoder.box_stages is not None


def _uses_box_head(encoder: Encoder) -> bool:
    """Tell whether a loss sees boxes through the box head."""
    return isinstance(encoder, AlignedEncoder) and bool({"instance", "level"} & encoder.embeds)


def _canvas_projector(encoder: Encoder) -> nn.Module | None:
    """Find the projector of the pooled last stage: the image loss's, else that of the stages' C5."""
    if encoder.canvas.image is not None:
        return encoder.canvas.image
    if isinstance(encoder, StageEncoder) and str(LEVELS[-1]) in encoder.stage_projectors:
        return encoder.stage_projectors[str(LEVELS[-1])]
    return None


@contextmanager
def frozen(encoder: nn.Module) -> Iterator[None]:
    """Hold every module in evaluation mode, without gradients, and put each back as it was."""
    with modes_kept(encoder), torch.no_grad():
        encoder.eval()
        yield
