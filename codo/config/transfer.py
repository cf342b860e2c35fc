"""The settings of transfer. Defaults are full scale: Faster R-CNN, ResNet-50-FPN, 1x (method.md, section 5)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from codo.config.sections import ArchitectureSection, RunSection, Section

Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


DETECTORS = ("faster_rcnn", "mask_rcnn", "retinanet", "fcos")

SCHEDULES = {"1x": 90_000, "2x": 180_000}
"""Name of a schedule -> its iterations at batch 16 (detectron2)."""


Group = Literal["backbone", "fpn", "box_head"]

GROUPS: tuple[Group, ...] = ("backbone", "fpn", "box_head")
"""What can be loaded from pretrained weights."""


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


class TransferOptimSection(Section):
    """SGD with a linear warm-up and steps down by 10 (detectron2's 1x at batch 16)."""

    epochs: Count | None = None
    """Length in passes over the training images; set either this or `iterations`."""
    iterations: Count | None = None
    """Length in steps; 1x is 90,000."""
    batch_size: Count = 16
    lr: Positive = 0.02
    """For a batch of 16; scaled by batch_size / 16."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    milestones: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = (2 / 3, 8 / 9)
    """Where lr falls to a tenth, in shares of the schedule (1x: 60k and 80k of 90k)."""
    warmup_iterations: Annotated[int, Field(ge=0)] = 1000
    """Steps over which lr rises linearly from a thousandth."""
    flip_p: Annotated[float, Field(ge=0, le=1)] = 0.5
    """How often a training image is mirrored."""
    eval_every: Count = 1
    """Epochs between two evaluations; the end of training is always evaluated."""

    @model_validator(mode="after")
    def _one_length(self) -> TransferOptimSection:
        if (self.epochs is None) == (self.iterations is None):
            both = "both are set" if self.epochs is not None else "neither is set"
            raise ValueError(
                f"optim.epochs, optim.iterations: {both}; set one, and the other to null (--set optim.epochs=null)"
            )
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError("optim.milestones: shares of the schedule, ascending, each once")
        return self


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
    norm: Literal["bn", "sync_bn", "frozen_bn"] = "bn"
    """The batch norms: `bn` trains them, `sync_bn` over all processes' images too (method.md; on one process the same),
    `frozen_bn` keeps the backbone's as loaded and trains those of FPN and box head."""
    data: TransferDataSection = TransferDataSection()
    architecture: ArchitectureSection = ArchitectureSection()
    """Of the detector; a pretraining run brings its own."""
    detection: DetectionSection = DetectionSection()
    optim: TransferOptimSection = TransferOptimSection(iterations=SCHEDULES["1x"])
    run: RunSection = RunSection()

    @model_validator(mode="before")
    @classmethod
    def _full_schedule(cls, tree: Any) -> Any:
        """Fill in 1x where a partly given `optim` names no length."""
        optim = tree.get("optim") if isinstance(tree, dict) else None
        if isinstance(optim, dict) and not {"epochs", "iterations"} & {
            key for key, value in optim.items() if value is not None
        }:
            return {**tree, "optim": {**optim, "iterations": SCHEDULES["1x"]}}
        return tree

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
        paths = self.data.model_dump(exclude={"root", "fraction"})
        if self.data.root is None and any(paths.values()):
            absent = [f"data.{name}" for name in ("train_json", "val_json", "images") if not paths[name]]
            if absent:
                raise ValueError(f"{absent[0]}: needed where data.root is unset and other data fields are set")
        return self
