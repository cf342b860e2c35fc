"""Images and boxes in, embeddings out."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn

from codo.backbones import LEVELS, STRIDES, Backbone
from codo.heads import MLPProjector, RoIPool, assign_levels, box_head
from codo.losses import Embeddings


class AlignedEncoder(nn.Module):
    """The detector's backbone, FPN and box head, and a projector: backbone -> FPN -> RoIAlign -> box head -> projector.

    Args:
        backbone: with a feature pyramid.
        head: the box head, `(R, C, 7, 7) -> (R, fc)`.
        projector: `(R, fc) -> (R, d)`, shared by all levels.
        pool: RoIAlign.
        embeds: which of `image`, `instance`, `level` to compute.
        levels: the k of the levels P_k that the level embedding pools.
        canonical_size: side in pixels of the box that belongs to P4, for the instance embedding.
        image_projector: for the image embedding, `(B, C_5) -> (B, d)`.
    """

    def __init__(
        self,
        backbone: Backbone,
        head: nn.Module,
        projector: nn.Module,
        pool: RoIPool,
        embeds: Collection[str] = ("level",),
        levels: Sequence[int] = LEVELS,
        canonical_size: float = 224.0,
        image_projector: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.backbone, self.box_head, self.projector, self.pool = backbone, head, projector, pool
        self.image_projector = image_projector
        self.embeds, self.levels, self.canonical_size = frozenset(embeds), tuple(levels), canonical_size

    def forward(self, images: Tensor, boxes: Tensor) -> Embeddings:
        """Embed one view.

        Args:
            images: `(B, 3, S, S)`, normalised.
            boxes: `(4, B, 4)`, the box that P2, P3, P4 and P5 pool from each image, xyxy in pixels.
        """
        stages = self.backbone.stages(images)
        pyramid = list(self.backbone.pyramid(stages).values())
        count, pooled = len(images), []
        if "level" in self.embeds:
            rows = [LEVELS.index(k) for k in self.levels]
            pooled += [self.pool(pyramid[row], boxes[row], STRIDES[row]) for row in rows]
        if "instance" in self.embeds:
            pooled.append(self.pool_assigned(pyramid, boxes))
        # One pass for all: the head's BN sees every level.
        embedded = list(self.projector(self.box_head(torch.cat(pooled))).split(count)) if pooled else []
        return Embeddings(
            image=self.image_projector(stages[-1].mean((2, 3))) if self.image_projector is not None else None,
            instance=embedded.pop() if "instance" in self.embeds else None,
            level=torch.stack(embedded) if "level" in self.embeds else None,
        )

    def pool_assigned(self, pyramid: Sequence[Tensor], boxes: Tensor) -> Tensor:
        """Pool each box from the one level that a detector would assign it to: `(B, C, 7, 7)`.

        Args:
            pyramid: P2-P5.
            boxes: `(4, B, 4)`, the box that each level would pool; P5's decides which level it is.
        """
        assigned = assign_levels(boxes[-1], self.canonical_size)
        pooled = pyramid[0].new_zeros(len(assigned), pyramid[0].shape[1], 7, 7, dtype=torch.float32)
        for row, (level, stride) in enumerate(zip(LEVELS, STRIDES, strict=True)):
            chosen = (assigned == level).nonzero()[:, 0]
            pooled = pooled.index_copy(0, chosen, self.pool(pyramid[row], boxes[row, chosen], stride, chosen))
        return pooled


class StageEncoder(nn.Module):
    """The backbone alone, pooled over the whole canvas: the encoder without alignment.

    Args:
        backbone: its stages are used, a pyramid is not.
        projectors: the k of a stage C_k -> projector `(B, C_k) -> (B, d)`, for the level embedding.
        image_projector: `(B, C_5) -> (B, d)`, for the image embedding.
    """

    def __init__(self, backbone: Backbone, projectors: dict[int, nn.Module], image_projector: nn.Module | None) -> None:
        super().__init__()
        self.backbone = backbone
        self.stage_projectors = nn.ModuleDict({str(k): projector for k, projector in projectors.items()})
        self.image_projector = image_projector

    def forward(self, images: Tensor, boxes: Tensor) -> Embeddings:
        """Embed one view `(B, 3, S, S)`; `boxes` are not looked at."""
        pooled = {k: stage.mean((2, 3)) for k, stage in zip(LEVELS, self.backbone.stages(images), strict=True)}
        level = [projector(pooled[int(k)]) for k, projector in self.stage_projectors.items()]
        return Embeddings(
            image=self.image_projector(pooled[LEVELS[-1]]) if self.image_projector is not None else None,
            level=torch.stack(level) if level else None,
        )


def build_encoder(
    name: str = "resnet50",
    *,
    alignment: bool = True,
    embeds: Collection[str] = ("level",),
    levels: Sequence[int] = LEVELS,
    fpn_channels: int = 256,
    box_head_convs: int = 4,
    box_head_channels: int = 256,
    box_head_fc: int = 1024,
    projector_hidden: int = 1024,
    embedding: int = 128,
    roi_sampling_ratio: int = 2,
    roi_aligned: bool = False,
    canonical_size: float = 224.0,
) -> AlignedEncoder | StageEncoder:
    """Build an encoder of named sizes; the arguments are those of its parts.

    Source:
        The projectors of pooled stages keep the stage's width, as MoCo v2's (2048 -> 2048 -> 128).
    """
    backbone = Backbone(name, fpn_channels if alignment else None)

    def stage_projector(k: int) -> MLPProjector:
        channels = backbone.stage_channels[LEVELS.index(k)]
        return MLPProjector(channels, channels, embedding)

    image_projector = stage_projector(LEVELS[-1]) if "image" in embeds else None
    if not alignment:
        stages = {k: stage_projector(k) for k in levels} if "level" in embeds else {}
        return StageEncoder(backbone, dict(stages), image_projector)
    return AlignedEncoder(
        backbone,
        box_head(fpn_channels, box_head_channels, box_head_convs, box_head_fc),
        MLPProjector(box_head_fc, projector_hidden, embedding),
        RoIPool(roi_sampling_ratio, roi_aligned),
        embeds,
        levels,
        canonical_size,
        image_projector,
    )
