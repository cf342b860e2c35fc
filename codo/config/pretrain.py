"""The settings of pretraining. Defaults are CoDo at full scale; docs and sources are in method.md's terms."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from codo.config.sections import ArchitectureSection, RunSection, Section

Level = Literal[2, 3, 4, 5]
Probability = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
ALL_LEVELS: tuple[Level, ...] = (2, 3, 4, 5)


class DataSection(Section):
    """Unlabelled images in. Both unset: the built-in sample data."""

    foregrounds: str | None = None
    """Folder of object-centric images, read with its sub-folders."""
    backgrounds: str | None = None
    """COCO-format data set (its training images) or folder: the downstream data, labels unused."""
    limit: int | None = Field(None, ge=2)
    """Use at most this many foregrounds, drawn by the seed; a smaller draw is part of a larger one (ours)."""


class PasteSection(Section):
    """Copy and paste: a crop of the foreground on a whole background (InsLoc)."""

    source: Literal["downstream", "self", "mix"] = "downstream"
    """Where backgrounds come from: `downstream` (CoDo), `self` (the foregrounds: InsLoc), `mix`."""
    mix_probability: Probability = 0.5
    """Under `mix`: the share of downstream backgrounds (ours)."""
    crop_area: tuple[Positive, Positive] = (0.2, 1.0)
    """Area of the foreground crop as a share of the image (InsLoc)."""
    crop_aspect: tuple[Positive, Positive] = (0.5, 2.0)
    """Width / height of the crop, log-uniform (InsLoc)."""
    patch_side: tuple[Positive, Positive] = (128.0, 254.0)
    """Bounds of the pasted patch's sides in pixels of a 256 canvas, scaled by canvas / 256 (InsLoc)."""


class CropSection(Section):
    """The random resized crop that fills the canvas when background invariance is off (MoCo v2)."""

    area: tuple[Positive, Positive] = (0.2, 1.0)
    aspect: tuple[Positive, Positive] = (0.75, 4 / 3)


class JitterSection(Section):
    """Box jitter of the query's boxes; the key pools the exact box."""

    mode: Literal["ratio", "anchor", "none"] = "ratio"
    """`ratio`: SoCo's form; `anchor`: InsLoc's."""
    ratio: Annotated[float, Field(ge=0, lt=1)] = 0.15
    """Under `ratio`: the r of method.md, in shares of the box's width and height (ours)."""
    p: Probability = 1.0
    """Under `ratio`: how often a box is jittered (ours)."""
    min_iou: Probability = 0.5
    """Under `ratio`: redraw below this IoU with the exact box (ours; InsLoc's anchors use .5 too)."""
    levels: tuple[Level, ...] = ALL_LEVELS
    """Levels that pool the jittered box; the others pool the exact one (InsLoc: P5 alone)."""


class ColourSection(Section):
    """Colour, flip and blur, on the composite (MoCo v2 / InsLoc)."""

    brightness: Annotated[float, Field(ge=0, le=1)] = 0.4
    contrast: Annotated[float, Field(ge=0, le=1)] = 0.4
    saturation: Annotated[float, Field(ge=0, le=1)] = 0.4
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.1
    p: Probability = 0.8
    grey_p: Probability = 0.2
    blur_p: Probability = 0.5
    blur_sigma: tuple[Positive, Positive] = (0.1, 2.0)
    """Pixels."""
    flip_p: Probability = 0.5


class ModelSection(ArchitectureSection):
    """The encoder: what transfers, and the projectors on top."""

    projector_hidden: int = Field(1024, ge=1)
    embedding: int = Field(128, ge=2)
    """Width of an embedding (MoCo v2)."""
    roi_sampling_ratio: int = Field(2, ge=0)
    """RoIAlign samples per cell and side, 0 is adaptive (torchvision's detectors: 2; InsLoc: 0)."""
    roi_aligned: bool = False
    """RoIAlign's half-cell shift (torchvision's detectors: no; InsLoc: yes)."""
    roi_canonical_size: Positive | None = None
    """Side of the box that belongs to P4; unset: 224 x canvas / 256."""
    key_momentum: Annotated[float, Field(ge=0, le=1)] = 0.999
    """m of the key encoder's moving average (MoCo v2)."""
    bn_groups: int = Field(8, ge=1)
    """On one device, sub-batches with BN statistics of their own, among which keys are shuffled (MoCo v2: 8 GPUs).
    1 turns shuffled BN off."""


class LossSection(Section):
    """Which embeddings are contrasted, and how. A weight left unset follows the three switches."""

    image: Annotated[float, Field(ge=0)] | None = None
    """The whole canvas, from the last stage. Unset: 1 without alignment and hierarchy, else 0."""
    instance: Annotated[float, Field(ge=0)] | None = None
    """The box, from the level a detector assigns. Unset: 1 with alignment and without hierarchy, else 0."""
    level: Annotated[float, Field(ge=0)] | None = None
    """The box at every pyramid level; without alignment the canvas at every stage. Unset: 1 with hierarchy."""
    levels: tuple[Level, ...] = ALL_LEVELS
    """The levels of the level loss."""
    level_weights: tuple[Annotated[float, Field(ge=0)], ...] | None = None
    """One weight for each of `levels`; unset: all 1 (InsLoc)."""
    temperature: Positive = 0.2
    negatives: Literal["queue", "batch", "both"] = "queue"
    """`queue` (MoCo), `batch` (the other keys of the step), `both`."""
    queue_size: int = Field(65536, ge=1)
    """Keys in each queue."""


class OptimSection(Section):
    """SGD with Nesterov momentum and a cosine to zero (InsLoc)."""

    epochs: int = Field(200, ge=1)
    batch_size: int = Field(256, ge=2)
    """Samples a step; a sample is V query views and one key view."""
    lr: Positive = 0.03
    """For a batch of 256; scaled by batch_size / 256."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4


class PretrainRunSection(RunSection):
    """How and where pretraining executes."""

    cache: Literal["auto", "disk", "off"] = "auto"
    """Decoded images as one memory-mapped file: `auto` while it is small (4 GiB), `off` decodes each time."""

    @field_validator("cache", mode="before")
    @classmethod
    def _yaml_off(cls, value: object) -> object:
        return "off" if value is False else value  # YAML 1.1 reads a bare off as false


class PretrainConfig(Section):
    """Everything that a pretraining run is."""

    seed: int = Field(0, ge=0)
    background: bool = True
    """Background invariance: paste instances on backgrounds. Off: MoCo v2's crop fills the canvas."""
    alignment: bool = True
    """The detector's FPN and box head are pretrained too. Off: pooled backbone features."""
    hierarchy: bool = True
    """Contrast at every pyramid level (or backbone stage). Off: one embedding a view."""
    views: int = Field(2, ge=1)
    """V, the query views of a sample (ours; InsLoc: 1)."""
    canvas: int = Field(256, ge=64, multiple_of=32)
    """Side of a view in pixels."""
    data: DataSection = DataSection()
    paste: PasteSection = PasteSection()
    crop: CropSection = CropSection()
    jitter: JitterSection = JitterSection()
    colour: ColourSection = ColourSection()
    model: ModelSection = ModelSection()
    loss: LossSection = LossSection()
    optim: OptimSection = OptimSection()
    run: PretrainRunSection = PretrainRunSection()

    @property
    def loss_weights(self) -> dict[str, float]:
        """The weight of each loss that is on: what is set, else what the switches say."""
        follows = {
            "image": not self.alignment and not self.hierarchy,
            "instance": self.alignment and not self.hierarchy,
            "level": self.hierarchy,
        }
        weights = {name: getattr(self.loss, name) for name in follows}
        resolved = {name: float(on) if weights[name] is None else weights[name] for name, on in follows.items()}
        return {name: weight for name, weight in resolved.items() if weight > 0}

    @property
    def level_weights(self) -> tuple[float, ...]:
        """The weight of each of `loss.levels`."""
        return self.loss.level_weights if self.loss.level_weights is not None else (1.0,) * len(self.loss.levels)

    @property
    def uses_backgrounds(self) -> bool:
        """Whether any view is pasted on a downstream background."""
        return self.background and self.paste.source != "self"

    @property
    def roi_canonical_size(self) -> float:
        """Side in pixels of the box that belongs to P4 on this canvas."""
        return self.model.roi_canonical_size or 224.0 * self.canvas / 256

    @model_validator(mode="after")
    def _check(self) -> PretrainConfig:
        for name, (low, high) in {
            "paste.crop_area": self.paste.crop_area,
            "paste.crop_aspect": self.paste.crop_aspect,
            "paste.patch_side": self.paste.patch_side,
            "crop.area": self.crop.area,
            "crop.aspect": self.crop.aspect,
            "colour.blur_sigma": self.colour.blur_sigma,
        }.items():
            if low > high:
                raise ValueError(f"{name}: the lower bound {low} is above the upper bound {high}")
        for name, share in {
            "paste.crop_area": self.paste.crop_area[1],
            "crop.area": self.crop.area[1],
        }.items():
            if share > 1:
                raise ValueError(f"{name}: a share of the image, at most 1")
        if self.paste.patch_side[1] > 256:
            raise ValueError("paste.patch_side: in pixels of a 256 canvas, at most 256")
        if self.loss.instance and not self.alignment:
            raise ValueError("loss.instance: needs alignment (the box is pooled from the FPN); set alignment=true")
        if self.loss.level and not self.hierarchy:
            raise ValueError("loss.level: hierarchy is off; set hierarchy=true, or leave loss.level unset")
        if self.loss.level == 0 and self.hierarchy:
            raise ValueError("loss.level: 0 with hierarchy on; set hierarchy=false instead")
        if not self.loss_weights:
            raise ValueError("loss: every weight is 0, nothing would be learnt")
        for name, levels in {"loss.levels": self.loss.levels, "jitter.levels": self.jitter.levels}.items():
            if not levels or list(levels) != sorted(set(levels)):
                raise ValueError(f"{name}: one or more of 2, 3, 4, 5, ascending, each once")
        if len(self.level_weights) != len(self.loss.levels):
            raise ValueError(
                f"loss.level_weights: {len(self.level_weights)} weights for {len(self.loss.levels)} levels"
            )
        if self.optim.batch_size % self.model.bn_groups or self.optim.batch_size < 2 * self.model.bn_groups:
            raise ValueError(
                f"model.bn_groups: {self.model.bn_groups} must divide the batch of {self.optim.batch_size} "
                "into groups of 2 or more"
            )
        return self
