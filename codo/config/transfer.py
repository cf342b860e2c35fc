"""The settings of transfer. Defaults are full scale: Faster R-CNN, ResNet-50-FPN, 1x (90,000 iterations)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from codo.config.schedules import REFERENCE_LR, SCHEDULE_WARMUP, SCHEDULES
from codo.config.sections import ArchitectureSection, RunSection, Section

Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


DETECTORS = ("faster_rcnn", "mask_rcnn", "retinanet", "fcos")

ONE_STAGE = ("retinanet", "fcos")
"""Those with neither RPN nor box head, on P3 to P7."""

Norm = Literal["bn", "sync_bn", "frozen_bn", "gn"]
FrozenNorm = Literal["population", "batch"]
Group = Literal["backbone", "fpn", "box_head"]

GROUPS: tuple[Group, ...] = ("backbone", "fpn", "box_head")
"""What can be loaded from pretrained weights, and frozen."""


class TransferDataSection(Section):
    """The labelled data set, in COCO format. All unset: the built-in sample data."""

    root: str | None = None
    """Folder in the simple (`images/`, `instances_train.json`) or the official COCO layout, found by itself."""
    train_json: str | None = None
    """Training annotations, in place of `root`'s."""
    val_json: str | None = None
    """Annotations to evaluate on, in place of `root`'s."""
    images: str | None = None
    """Folder of the training images, in place of `root`'s."""
    val_images: str | None = None
    """Folder of the images to evaluate on; unset: `images`, or else `root`'s."""
    fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the training images, drawn with the seed; a smaller share is part of a larger one."""


class DetectionSection(Section):
    """Sizes of images and of proposal lists. Left as it is: torchvision's settings at 640-800 px."""

    min_size: tuple[Count, ...] = (640, 672, 704, 736, 768, 800)
    """Short sides in pixels: training draws one an image, evaluation uses the last."""
    max_size: Count = 1333
    """Bound of the long side in pixels."""
    rpn_pre_nms_train: Count = 2000
    """Proposals a level before NMS."""
    rpn_pre_nms_test: Count = 1000
    rpn_post_nms_train: Count = 2000
    """Proposals an image after NMS."""
    rpn_post_nms_test: Count = 1000
    roi_batch_size: Count = 512
    """Boxes an image on which the box head is trained."""
    detections_per_image: Count = 100
    score_threshold: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Detections below it are dropped."""

    @model_validator(mode="after")
    def _sizes(self) -> DetectionSection:
        if not self.min_size or list(self.min_size) != sorted(self.min_size):
            raise ValueError("detection.min_size: one or more short sides, ascending")
        if self.min_size[-1] > self.max_size:
            raise ValueError(f"detection.max_size: {self.max_size} is below the short side {self.min_size[-1]}")
        return self

    @property
    def sides(self) -> tuple[int, int]:
        """The largest short side and the bound of the long side: the size at which images are read."""
        return self.min_size[-1], self.max_size


class TransferOptimSection(Section):
    """SGD with a linear warm-up and steps down by 10 (detectron2's 1x at batch 16)."""

    epochs: Count | None = None
    """Length in passes over the training images; set either this or `iterations`."""
    iterations: Count | None = None
    """Length in steps; 1x is 90,000."""
    batch_size: Count = 16
    lr: Positive = REFERENCE_LR
    """For a batch of 16; scaled by batch_size / 16."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    milestones: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = SCHEDULES["1x"].milestones
    """Where lr falls to a tenth, in shares of the schedule (1x: 60k and 80k of 90k)."""
    warmup_iterations: Annotated[int, Field(ge=0)] = SCHEDULE_WARMUP
    """Steps over which lr rises linearly from a thousandth."""
    flip_p: Annotated[float, Field(ge=0, le=1)] = 0.5
    """How often a training image is mirrored."""
    accumulate: Count = 1
    """Parts of a batch whose gradients are added up: less memory. Batch norms that are not frozen see each part alone,
    and torchvision pads, samples and averages within it."""
    eval_every: Positive = 1
    """Epochs between two evaluations, rounded to steps; the end of training is always evaluated."""

    @model_validator(mode="after")
    def _one_length(self) -> TransferOptimSection:
        if (self.epochs is None) == (self.iterations is None):
            both = "both are set" if self.epochs is not None else "neither is set"
            raise ValueError(
                f"optim.epochs, optim.iterations: {both}; set one, and the other to null (--set optim.epochs=null)"
            )
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError("optim.milestones: shares of the schedule, ascending, each once")
        if self.accumulate > self.batch_size:
            raise ValueError(f"optim.accumulate: {self.accumulate} parts of a batch of {self.batch_size}")
        return self


class TransferRunSection(RunSection):
    """How and where transfer executes."""

    feature_cache: Annotated[float, Field(ge=0)] = 8.0
    """GiB on disk ($CODO_CACHE) that a frozen trunk's features may take, to be computed once; 0: compute them each
    time. What needs more is not cached."""


class TransferConfig(Section):
    """Everything that a transfer run is.

    Example:
        >>> TransferConfig(detector="fcos").optim.iterations  # 1x
        90000
    """

    seed: int = Field(0, ge=0)
    detector: str = "faster_rcnn"
    """`faster_rcnn`, `mask_rcnn`, `retinanet`, `fcos`, or a user's own by dotted path: called with
    `(backbone, classes, detection)`, it gives what behaves as torchvision's detectors do. Where it has
    `kinds = ("bbox", "segm")`, it is given masks too."""
    weights: str = Field("none", min_length=1)
    """`none`, a pretraining run's folder, or a weights file."""
    load: tuple[Group, ...] = Field(GROUPS, min_length=1)
    """Which parts are loaded from the weights; the others stay fresh."""
    norm: Norm = "bn"
    """The batch norms: `bn` trains them, `sync_bn` over all processes' images too (on one process the same),
    `frozen_bn` keeps the backbone's as loaded and trains those of FPN and box head, `gn` puts GroupNorm in the place
    of all of them. Weights learnt with BN do not fit GN: `gn` goes with weights=none or a detector trained with it."""
    freeze: tuple[Group, ...] = ()
    """Parts that are not trained, in any order. What of them was not loaded stays random, which is said."""
    freeze_stages: Annotated[int, Field(ge=0, le=5)] = 0
    """Stages of the backbone that are not trained, from below: 1 is the stem, 2 the stem and C2, ... 5 all
    (detectron2's `FREEZE_AT`)."""
    frozen_norm: FrozenNorm = "population"
    """What batch norms of frozen parts normalise by: the statistics they came with, or each batch's own, which the
    statistics kept for evaluation then follow. Their scale and shift are frozen either way."""
    data: TransferDataSection = TransferDataSection()
    architecture: ArchitectureSection = ArchitectureSection()
    """Of the detector; a pretraining run brings its own."""
    detection: DetectionSection = DetectionSection()
    optim: TransferOptimSection = TransferOptimSection(iterations=SCHEDULES["1x"].iterations)
    run: TransferRunSection = TransferRunSection()

    @field_validator("freeze", mode="after")
    @classmethod
    def _in_order(cls, value: tuple[Group, ...]) -> tuple[Group, ...]:
        return tuple(group for group in GROUPS if group in value)

    @model_validator(mode="before")
    @classmethod
    def _full_schedule(cls, tree: Any) -> Any:
        """Fill in 1x where a partly given `optim` names no length."""
        optim = tree.get("optim") if isinstance(tree, dict) else None
        if isinstance(optim, dict) and not {"epochs", "iterations"} & {
            key for key, value in optim.items() if value is not None
        }:
            return {**tree, "optim": {**optim, "iterations": SCHEDULES["1x"].iterations}}
        return tree

    @property
    def protocol(self) -> str:
        """What is measured: `probe` where all of `GROUPS` is frozen, else `finetune`, with what is frozen."""
        stages = [f"stages 1-{self.freeze_stages}"] if self.freeze_stages else []
        mode = [] if self.frozen_norm == "population" else ["batch statistics"]
        if self.freeze == GROUPS:
            return ", ".join(["probe", *mode])
        frozen = [*self.freeze, *stages]
        return ", ".join(["finetune", *([f"{' + '.join(frozen)} frozen"] if frozen else []), *mode])

    @model_validator(mode="after")
    def _consistent(self) -> TransferConfig:
        if self.detector not in DETECTORS and ":" not in self.detector:
            raise ValueError(f"detector: one of {', '.join(DETECTORS)}, or your own as module:Name")
        if self.norm == "frozen_bn" and self.weights == "none":
            raise ValueError("norm: frozen_bn keeps statistics that nothing has learnt; with weights=none use bn")
        if len(set(self.load)) != len(self.load):
            raise ValueError("load: names a part twice")
        if self.weights == "none" and set(self.load) != set(GROUPS):
            raise ValueError("load: chooses among the parts of weights; with weights=none there are none")
        if self.norm == "frozen_bn" and "backbone" not in self.load:
            raise ValueError("norm: frozen_bn keeps statistics that nothing has learnt; load the backbone, or use bn")
        if self.freeze_stages and "backbone" in self.freeze:
            raise ValueError("freeze_stages: the backbone is frozen as a whole; leave it at 0")
        if self.frozen_norm == "batch":
            if not self.freeze and not self.freeze_stages:
                raise ValueError("frozen_norm: nothing is frozen; set freeze or freeze_stages")
            if self.norm in ("frozen_bn", "gn"):
                raise ValueError(f"frozen_norm: batch statistics contradict norm={self.norm}; use norm=bn")
        paths = self.data.model_dump(exclude={"root", "fraction"})
        if self.data.root is None and any(paths.values()):
            absent = [f"data.{name}" for name in ("train_json", "val_json", "images") if not paths[name]]
            if absent:
                raise ValueError(f"{absent[0]}: needed where data.root is unset and other data fields are set")
        return self
