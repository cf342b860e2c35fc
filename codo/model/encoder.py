"""Images and boxes in, embeddings out."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor, nn

from codo.backbones import LEVELS, STRIDES, Backbone
from codo.errors import CodoError
from codo.heads import MLPProjector, RoIPool, assign_levels, box_head
from codo.heads.box import POOLED_SIZE, cell_channels, head_and_cells
from codo.losses import Embeddings
from codo.model.group_bn import bn_in_groups, by_group, by_map

MakeProjector = Callable[[int, int, int], nn.Module]
"""`(input, hidden, embedding)` widths -> a module `(N, input) -> (N, embedding)`."""
MakeBoxHead = Callable[[int, int], nn.Module]
"""`(pyramid channels C, fc)` -> a module `(R, C, 7, 7) -> (R, fc)`."""


class CanvasProjectors(nn.Module):
    """Embeds the last stage: pooled over the canvas for `image`, cell by cell for `dense`.

    Args:
        image: `(B, C_5) -> (B, d)`, or None.
        dense: `(N, C_5) -> (N, d)`, or None.
    """

    def __init__(self, image: nn.Module | None, dense: nn.Module | None) -> None:
        super().__init__()
        self.image, self.dense = image, dense

    def forward(self, stage: Tensor, groups: int = 1) -> dict[str, Tensor]:
        """Embed `stage` `(B, C_5, h, w)`: fields of Embeddings."""
        found: dict[str, Tensor] = {}
        if self.image is not None:
            found["image"] = self.image(stage.mean((2, 3))).float()
        if self.dense is not None:
            cells = stage.flatten(2).permute(2, 0, 1)  # (G, B, C)
            found["dense"] = by_map(self.dense(by_group(cells.unbind(), groups)).float(), len(cells), groups)
            found["dense_features"] = cells.detach().float()
        return found


class BoxProjectors(nn.Module):
    """Embeds the box from backbone stages, before any pyramid: RoIAlign, the mean over its cells, a projector a stage.

    Args:
        projectors: the k of a stage C_k -> `(R, C_k) -> (R, d)`.
        pool: RoIAlign.
    """

    def __init__(self, projectors: dict[int, nn.Module], pool: RoIPool) -> None:
        super().__init__()
        self.projectors = nn.ModuleDict({str(k): projector for k, projector in projectors.items()})
        self.pool = pool

    def forward(self, stages: Sequence[Tensor], boxes: Tensor, images: Tensor | None = None) -> Tensor:
        """Embed boxes: `(L, R, d)`, of each stage that has a projector.

        Args:
            stages: C2-C5.
            boxes: `(4, R, 4)`; C_k pools the box that P_k would.
            images: `(R,)` int64, the image of each box; by default each image has equally many, one after the other.
        """
        embedded = []
        for k, projector in self.projectors.items():
            row = LEVELS.index(int(k))
            pooled = self.pool(stages[row], boxes[row], STRIDES[row], images)
            embedded.append(projector(pooled.mean((2, 3))).float())
        return torch.stack(embedded)


class AlignedEncoder(nn.Module):
    """The detector's backbone, FPN and box head, and a projector: backbone -> FPN -> RoIAlign -> box head -> projector.

    Args:
        backbone: with a feature pyramid.
        head: the box head, `(R, C, 7, 7) -> (R, fc)`.
        projector: `(R, fc) -> (R, d)`, shared by all levels.
        pool: RoIAlign.
        canvas: for the image and dense embeddings.
        embeds: which of `image`, `instance`, `level`, `dense`, `offsets`, `stage`, `cell` to compute.
        levels: the k of the levels P_k that the level embedding pools.
        canonical_size: side in pixels of the box that belongs to P4, for the instance embedding.
        offsets: `(R, fc) -> (R, 4)`, of every box that is pooled (of the assigned level where none is), or None.
        box_stages: for the stage embedding.
        cell: `(N, C) -> (N, d)`, of each cell behind the convolutions of the box head, of every box that is pooled (of
            the assigned level where none is), or None.

    Example:
        >>> encoder = build_encoder(Backbone("resnet10t", 16), embeds=("level",), embedding=8)
        >>> boxes = torch.tensor([4.0, 4, 60, 50]).expand(4, 2, 4)  # for P2-P5, of two images
        >>> encoder(torch.randn(2, 3, 64, 64), boxes).level.shape
        torch.Size([4, 2, 8])
    """

    def __init__(
        self,
        backbone: Backbone,
        head: nn.Module,
        projector: nn.Module,
        pool: RoIPool,
        canvas: CanvasProjectors,
        embeds: Collection[str] = ("level",),
        levels: Sequence[int] = LEVELS,
        canonical_size: float = 224.0,
        offsets: nn.Module | None = None,
        box_stages: BoxProjectors | None = None,
        cell: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.backbone, self.box_head, self.projector, self.pool = backbone, head, projector, pool
        self.canvas, self.offsets, self.box_stages, self.cell = canvas, offsets, box_stages, cell
        self.embeds, self.levels, self.canonical_size = frozenset(embeds), tuple(levels), canonical_size

    def forward(self, images: Tensor, boxes: Tensor, groups: int = 1) -> Embeddings:
        """Embed one view.

        Args:
            images: `(B, 3, S, S)`, normalised.
            boxes: `(4, R, 4)`, the boxes that P2, P3, P4 and P5 pool, xyxy in pixels; image after image, equally many
                in each. The image and dense embeddings have a row an image, the others a row a box.
            groups: equal parts of the batch, each with BN statistics of its own.
        """
        with bn_in_groups(self, groups):
            return self._embed(images, boxes, groups)

    def _embed(self, images: Tensor, boxes: Tensor, groups: int) -> Embeddings:
        stages = self.backbone.stages(images)
        pyramid, pooled = list(self.backbone.pyramid(stages).values()), []
        if "level" in self.embeds:
            numbers = [LEVELS.index(k) for k in self.levels]
            pooled += [self.pool(pyramid[n], boxes[n], STRIDES[n]) for n in numbers]
        if "instance" in self.embeds or ({"offsets", "cell"} & self.embeds and not pooled):
            pooled.append(self.pool_assigned(pyramid, boxes))
        found = self.canvas(stages[-1], groups)
        if pooled:
            # One pass for all: the head's BN sees every level.
            features = by_group(pooled, groups)
            if self.cell is None:
                features = self.box_head(features)
            else:
                features, maps = head_and_cells(self.box_head, features)
                cells = self.cell(maps.permute(0, 2, 3, 1).flatten(0, 2)).float().unflatten(0, (len(maps), -1))
                found["cell"] = by_map(cells, len(pooled), groups).transpose(1, 2).flatten(0, 1)
            if {"instance", "level"} & self.embeds:
                embedded = by_map(self.projector(features).float(), len(pooled), groups)
                if "instance" in self.embeds:
                    found["instance"] = embedded[-1]
                if "level" in self.embeds:
                    found["level"] = embedded[: len(self.levels)]
            if self.offsets is not None:
                found["offsets"] = by_map(self.offsets(features).float(), len(pooled), groups)
            if {"offsets", "cell"} & self.embeds:
                found["boxes"] = self._pooled_boxes(boxes)
        if self.box_stages is not None:
            found["stage"] = self.box_stages(stages, boxes)
        return Embeddings(**found)

    def _pooled_boxes(self, boxes: Tensor) -> Tensor:
        """Look up which boxes are pooled, of `boxes` `(4, R, 4)`: `(P, R, 4)`."""
        found = [boxes[LEVELS.index(k)] for k in self.levels if "level" in self.embeds]
        if "instance" in self.embeds or not found:
            assigned = assign_levels(boxes[-1], self.canonical_size) - LEVELS[0]
            found.append(boxes[assigned, torch.arange(len(assigned), device=boxes.device)])
        return torch.stack(found)

    def pool_assigned(self, pyramid: Sequence[Tensor], boxes: Tensor, images: Tensor | None = None) -> Tensor:
        """Pool each box from the one level that a detector would assign it to: `(R, C, 7, 7)`.

        Args:
            pyramid: P2-P5.
            boxes: `(4, R, 4)`, the box that each level would pool; P5's decides which level it is.
            images: `(R,)` int64, the image of each box; by default each image has equally many, one after the other.
        """
        assigned = assign_levels(boxes[-1], self.canonical_size)
        if images is None:
            images = torch.arange(len(assigned), device=boxes.device) // (len(assigned) // len(pyramid[0]))
        pooled = pyramid[0].new_zeros(len(assigned), pyramid[0].shape[1], POOLED_SIZE, POOLED_SIZE, dtype=torch.float32)
        for row, (level, stride) in enumerate(zip(LEVELS, STRIDES, strict=True)):
            chosen = (assigned == level).nonzero()[:, 0]
            pooled = pooled.index_copy(0, chosen, self.pool(pyramid[row], boxes[row, chosen], stride, images[chosen]))
        return pooled


class StageEncoder(nn.Module):
    """The backbone alone, pooled over the whole canvas (the stage embedding: over the box): no alignment.

    Args:
        backbone: its stages are used, a pyramid is not.
        projectors: the k of a stage C_k -> projector `(B, C_k) -> (B, d)`, for the level embedding.
        canvas: for the image and dense embeddings.
        box_stages: for the stage embedding.

    Example:
        >>> encoder = build_encoder(Backbone("resnet10t", None), embeds=("image",), embedding=8)
        >>> encoder(torch.randn(2, 3, 64, 64), torch.zeros(4, 2, 4)).image.shape
        torch.Size([2, 8])
    """

    def __init__(
        self,
        backbone: Backbone,
        projectors: dict[int, nn.Module],
        canvas: CanvasProjectors,
        box_stages: BoxProjectors | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.stage_projectors = nn.ModuleDict({str(k): projector for k, projector in projectors.items()})
        self.canvas, self.box_stages = canvas, box_stages

    def forward(self, images: Tensor, boxes: Tensor, groups: int = 1) -> Embeddings:
        """Embed one view `(B, 3, S, S)` in BN groups; only the stage embedding looks at `boxes` `(4, B, 4)`."""
        with bn_in_groups(self, groups):
            stages = self.backbone.stages(images)
            level = [p(stages[LEVELS.index(int(k))].mean((2, 3))).float() for k, p in self.stage_projectors.items()]
            found = self.canvas(stages[-1], groups)
            if level:
                found["level"] = torch.stack(level)
            if self.box_stages is not None:
                found["stage"] = self.box_stages(stages, boxes)
            return Embeddings(**found)


def build_encoder(
    backbone: Backbone,
    *,
    embeds: Collection[str] = ("level",),
    levels: Sequence[int] = LEVELS,
    make_box_head: MakeBoxHead = box_head,
    box_head_fc: int = 1024,
    make_projector: MakeProjector = MLPProjector,
    projector_hidden: int = 1024,
    embedding: int = 128,
    pool: RoIPool | None = None,
    canonical_size: float = 224.0,
    stage_levels: Sequence[int] = LEVELS[-1:],
) -> AlignedEncoder | StageEncoder:
    """Build an encoder: an AlignedEncoder over a backbone with a pyramid, else a StageEncoder.

    Args:
        backbone: with or without pyramid.
        embeds: which of `image`, `instance`, `level`, `dense`, `offsets`, `stage`, `cell` to compute.
        levels: the k of the levels or stages that the level embedding has.
        make_box_head: makes the box head.
        box_head_fc: its width.
        make_projector: makes each projector.
        projector_hidden: hidden width of the projector behind the box head.
        embedding: d.
        pool: RoIAlign.
        canonical_size: see AlignedEncoder.
        stage_levels: the k of the stages C_k that the stage embedding has.

    Source:
        The projectors of pooled stages keep the stage's width, as MoCo v2's (2048 -> 2048 -> 128).

    Example:
        >>> type(build_encoder(Backbone("resnet10t", 16))).__name__
        'AlignedEncoder'
    """

    def stage_projector(k: int) -> nn.Module:
        channels = backbone.stage_channels[LEVELS.index(k)]
        return make_projector(channels, channels, embedding)

    # These are initialised behind the others, whose weights are the same with them and without.
    def box_projectors() -> BoxProjectors | None:
        return BoxProjectors({k: stage_projector(k) for k in stage_levels}, pooling) if "stage" in embeds else None

    def canvas_projectors() -> CanvasProjectors:
        return CanvasProjectors(
            stage_projector(LEVELS[-1]) if "image" in embeds else None,
            stage_projector(LEVELS[-1]) if "dense" in embeds else None,
        )

    pooling = pool or RoIPool()
    if backbone.fpn is None:
        if {"instance", "offsets", "cell"} & set(embeds):
            raise CodoError("a loss looks at the box, which needs alignment (it is pooled from the FPN)")
        whole = {k: stage_projector(k) for k in levels} if "level" in embeds else {}
        stages = box_projectors()
        return StageEncoder(backbone, whole, canvas_projectors(), stages)
    head = make_box_head(backbone.out_channels, box_head_fc)
    projector = make_projector(box_head_fc, projector_hidden, embedding)
    offsets = nn.Linear(box_head_fc, 4) if "offsets" in embeds else None
    stages = box_projectors()
    cell = None
    if "cell" in embeds:
        channels = cell_channels(head, backbone.out_channels)
        cell = make_projector(channels, channels, embedding)
    canvas = canvas_projectors()
    return AlignedEncoder(
        backbone, head, projector, pooling, canvas, embeds, levels, canonical_size, offsets, stages, cell
    )
