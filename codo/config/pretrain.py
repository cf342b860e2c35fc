"""The settings of pretraining. Defaults are CoDo at full scale; each names its source."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from codo.config.sections import ArchitectureSection, Part, RunSection, Section, sourced

Level = Literal[2, 3, 4, 5]
Probability = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]
ALL_LEVELS: tuple[Level, ...] = (2, 3, 4, 5)


class DataSection(Section):
    """Unlabelled images in. Both unset: the built-in sample data."""

    foregrounds: str | None = sourced(None, "run", min_length=1)
    """Folder of object-centric images, read with its sub-folders; or tar shards, `train-{0000..0099}.tar`, paths or
    URLs (extra `webdataset`)."""
    backgrounds: str | None = sourced(None, "run", min_length=1)
    """COCO-format data set (its training images), folder or shards: the downstream data, labels unused."""
    limit: int | None = sourced(None, "ours", ge=2)
    """Use at most this many foregrounds, drawn by the seed; a smaller draw is part of a larger one."""
    scaled_decode: bool = sourced(True, "ours")
    """Let the JPEG decoder give 1/2, 1/4 or 1/8 of a picture's size where that is large enough; faster, and nearly the
    same pixels. Off: every picture is decoded at full size."""


class PasteSection(Section):
    """Copy and paste: a crop of the foreground on a whole background."""

    source: Literal["downstream", "self", "mix"] = sourced("downstream", "CoDo abstract")
    """Where backgrounds come from: `downstream` (CoDo), `self` (the foregrounds: InsLoc), `mix`."""
    mix_probability: Probability = sourced(0.5, "ours")
    """Under `mix`: the share of downstream backgrounds."""
    crop_area: tuple[Positive, Positive] = sourced((0.2, 1.0), "InsLoc")
    """Area of the foreground crop as a share of the image."""
    crop_aspect: tuple[Positive, Positive] = sourced((0.5, 2.0), "InsLoc")
    """Width / height of the crop, log-uniform."""
    patch_side: tuple[Positive, Positive] = sourced((128.0, 254.0), "InsLoc")
    """Bounds of the pasted patch's sides in pixels of a 256 canvas, scaled by canvas / 256."""
    soft_edge: Annotated[float, Field(ge=0, le=0.5)] = sourced(0.0, "ours")
    """Share of the patch's shorter side over which it fades into the background, linearly; 0: hard edges (InsLoc)."""
    p: Probability = sourced(1.0, "ours")
    """Share of the views that are composites; the others are the crops of `crop` that fill the canvas."""
    warmup_epochs: Weight = sourced(0.0, "ours")
    """`p` rises linearly from 0 before this epoch, by whole epochs: epoch e of w has p x min(1, e / w)."""
    background_crop: Annotated[float, Field(gt=0, le=1)] | None = sourced(None, "ours")
    """The background is a crop of its image, of at least this share of the area and aspect 3/4 to 4/3; unset: the
    whole image, squeezed to a square. Backgrounds then take more room in the cache: 1 / this times, or more."""
    backgrounds_per_epoch: Annotated[int, Field(ge=1)] | None = sourced(None, "ours")
    """N: all composites of an epoch have one of N backgrounds, drawn anew for each epoch, so that of B keys of a batch
    about B / N have the query's own background; with `source: mix` N of either source; unset: any of all."""
    background_candidates: Annotated[int, Field(ge=1)] = sourced(1, "ours")
    """Of so many backgrounds that are drawn, a view has the one whose colours are most like its patch's (mean and
    standard deviation of each channel): hard backgrounds; 1: any."""


class CropSection(Section):
    """The random resized crop that fills the canvas when background invariance is off, or a view is no composite."""

    area: tuple[Positive, Positive] = sourced((0.2, 1.0), "MoCo v2")
    aspect: tuple[Positive, Positive] = sourced((0.75, 4 / 3), "MoCo v2")


class JitterSection(Section):
    """Box jitter of the query's boxes; the key pools the exact box."""

    mode: Literal["ratio", "anchor", "none"] = sourced("ratio", "ours")
    """`ratio`: SoCo's form; `anchor`: InsLoc's."""
    ratio: Annotated[float, Field(ge=0, lt=1)] = sourced(0.15, "ours")
    """Under `ratio`: how far the box shifts and how much it grows or shrinks at most, in shares of width and height."""
    p: Probability = sourced(1.0, "ours")
    """Under `ratio`: how often a box is jittered."""
    min_iou: Probability = sourced(0.5, "ours")
    """Under `ratio`: redraw below this IoU with the exact box (InsLoc's anchors use .5 too)."""
    levels: tuple[Level, ...] = sourced(ALL_LEVELS, "ours")
    """Levels that pool the jittered box; the others pool the exact one (InsLoc: P5 alone)."""
    custom: Part | None = sourced(None, "user")
    """A user's own jitter, in place of `mode`'s: `(rng, box, canvas) -> box`."""


class ColourSection(Section):
    """Colour, flip and blur, on the composite."""

    brightness: Annotated[float, Field(ge=0, le=1)] = sourced(0.4, "MoCo v2 / InsLoc")
    contrast: Annotated[float, Field(ge=0, le=1)] = sourced(0.4, "MoCo v2 / InsLoc")
    saturation: Annotated[float, Field(ge=0, le=1)] = sourced(0.4, "MoCo v2 / InsLoc")
    hue: Annotated[float, Field(ge=0, le=0.5)] = sourced(0.1, "MoCo v2 / InsLoc")
    p: Probability = sourced(0.8, "MoCo v2 / InsLoc")
    grey_p: Probability = sourced(0.2, "MoCo v2 / InsLoc")
    blur_p: Probability = sourced(0.5, "MoCo v2 / InsLoc")
    blur_sigma: tuple[Positive, Positive] = sourced((0.1, 2.0), "MoCo v2 / InsLoc")
    """Pixels."""
    flip_p: Probability = sourced(0.5, "InsLoc")
    exact: bool = sourced(False, "ours")
    """Torchvision's operations one after the other, clamped in between and the hue by HSV; slower. Off: one affine map
    of RGB a view."""


class ModelSection(ArchitectureSection):
    """The encoder: what transfers, and the projectors on top."""

    init: str | None = sourced(None, "run", min_length=1)
    """What backbone, FPN and box head begin as: a run folder or a file, of codo's or another library's, as `codo
    transfer --weights` takes; what it lacks, and the projectors, begin at random. Unset: all do (the paper)."""
    projector_hidden: int = sourced(1024, "InsLoc", ge=1)
    """Hidden width of the projector behind the box head; those of pooled stages keep the stage's width (MoCo v2)."""
    projector_bn: bool = sourced(False, "MoCo v2")
    """BN in the projectors' hidden layer (BYOL, SoCo)."""
    embedding: int = sourced(128, "MoCo v2", ge=2)
    """Width of an embedding."""
    projector: Part | None = sourced(None, "user")
    """A user's own projectors: called with the widths `(input, hidden, embedding)`, gives `(N, input) -> (N, d)`."""
    box_head: Part | None = sourced(None, "user")
    """A user's own box head: called with `(FPN channels, box_head_fc)`, gives `(R, C, 7, 7) -> (R, box_head_fc)`."""
    roi_sampling_ratio: int = sourced(2, "torchvision", ge=0)
    """RoIAlign samples per cell and side, 0 is adaptive (torchvision's detectors: 2; InsLoc: 0)."""
    roi_aligned: bool = sourced(False, "torchvision")
    """RoIAlign's half-cell shift (torchvision's detectors: no; InsLoc: yes)."""
    roi_canonical_size: Positive | None = sourced(None, "FPN")
    """Side of the box that belongs to P4; unset: 224 x canvas / 256."""
    key_momentum: Probability = sourced(0.999, "MoCo v2")
    """m of the key encoder's moving average."""
    key_momentum_end: Probability | None = sourced(None, "MoCo v2")
    """Where m ends, along a half cosine (BYOL, SoCo: 1); unset: m stays."""
    bn_groups: int = sourced(8, "MoCo v2: 8 GPUs", ge=1)
    """Groups of the batch with BN statistics of their own, among which keys are shuffled; spread over the processes.
    1 normalises over the whole batch, across processes too (SyncBN), and shuffles nothing."""


class LossPart(Part):
    """A user's own loss."""

    weight: Annotated[float, Field(gt=0)] = sourced(1.0, "user")


class LossSection(Section):
    """Which embeddings are contrasted, and how. A weight left unset follows the three switches."""

    image: Weight | None = sourced(None, "switches")
    """The whole canvas, from the last stage. Unset: 1 without alignment and hierarchy, else 0."""
    instance: Weight | None = sourced(None, "switches")
    """The box, from the level a detector assigns. Unset: 1 with alignment and without hierarchy, else 0."""
    level: Weight | None = sourced(None, "switches")
    """The box at every pyramid level; without alignment the canvas at every stage. Unset: 1 with hierarchy."""
    dense: Weight = sourced(0.0, "ours")
    """Every cell of the last stage with the cell of the key that resembles it most (DenseCL)."""
    box: Weight = sourced(0.0, "ours")
    """A detector's box regression: from the features of the jittered box to the patch's box."""
    cell: Weight = sourced(0.0, "ours")
    """Every cell of the pooled box, behind the box head's convolutions, with the part of the key's box that shows the
    same: meant to keep where things are. Needs alignment."""
    stage: Weight = sourced(0.0, "ours")
    """The box from backbone stages directly, before the pyramid: deep supervision of the backbone, also without
    alignment. A stage C_k pools the box of its level P_k, jittered or exact."""
    custom: tuple[LossPart, ...] = sourced((), "user")
    """A user's own losses, added to the sum."""
    levels: tuple[Level, ...] = sourced(ALL_LEVELS, "InsLoc")
    """The levels of the level loss."""
    level_weights: tuple[Weight, ...] | None = sourced(None, "InsLoc")
    """w_l, one for each of `levels`; unset: all 1."""
    stage_levels: tuple[Level, ...] = sourced((5,), "ours")
    """The k of the stages C_k of the stage loss, each with a projector and a queue of its own; weights all 1."""
    form: Literal["info_nce", "cosine"] = sourced("info_nce", "MoCo v2 / InsLoc")
    """`cosine`: BYOL's, a predictor on the query and no negatives; of all losses but dense, box and cell."""
    symmetric: bool = sourced(False, "MoCo v2 / InsLoc")
    """Also contrast the key view, as a query, with each query view as its key (BYOL, SoCo)."""
    predictor_hidden: int = sourced(4096, "BYOL, from memory of the paper", ge=1)
    """Under `cosine`: hidden width of the predictor."""
    temperature: Positive = sourced(0.2, "MoCo v2 / InsLoc")
    negatives: Literal["queue", "batch", "both"] = sourced("queue", "MoCo v2 / InsLoc")
    """`queue` (the literature), `batch` (the other keys of the step, over all processes), `both`."""
    queue_size: int = sourced(65536, "MoCo v2 / InsLoc", ge=1)
    """Keys in each queue."""


class OptimSection(Section):
    """Optimizer and schedule."""

    epochs: int = sourced(200, "InsLoc", ge=1)
    batch_size: int = sourced(256, "InsLoc", ge=2)
    """Samples a step, over all processes; a sample is V query views and one key view."""
    name: Literal["sgd", "lars", "adamw"] = sourced("sgd", "InsLoc")
    """`lars` and `adamw` leave norms and biases out of the weight decay (BYOL; timm), `sgd` does not (MoCo v2)."""
    lr: Positive = sourced(0.03, "MoCo v2 / InsLoc")
    """For a batch of 256; scaled by batch_size / 256."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = sourced(0.9, "MoCo v2 / InsLoc")
    """Of AdamW: its first beta."""
    nesterov: bool = sourced(True, "InsLoc")
    """Of SGD and LARS."""
    weight_decay: Weight = sourced(1e-4, "MoCo v2 / InsLoc")
    schedule: Literal["iteration", "epoch"] = sourced("iteration", "InsLoc")
    """How often the cosine to zero takes a new value."""
    warmup_epochs: Weight = sourced(0.0, "InsLoc")
    """Linear from 0 before the cosine begins."""
    clip_norm: Positive | None = sourced(None, "InsLoc")
    """Bound of the gradient's norm over all parameters; unset: no bound."""
    accumulate: int = sourced(1, "ours", ge=1)
    """Sub-batches whose gradients are accumulated: less memory, one more forward pass, the same numbers (it divides
    `model.bn_groups`)."""


class PretrainRunSection(RunSection):
    """How and where pretraining executes."""

    cache: Literal["auto", "ram", "disk", "off"] = sourced("auto", "run")
    """Decoded images as one memory-mapped file: `disk` keeps it ($CODO_CACHE), `ram` holds it in memory for this run,
    `auto` is disk while it is small (4 GiB, half of the free disk), `off` decodes each time."""
    checkpoint_every: int | None = sourced(None, "run", ge=1)
    """Steps between two checkpoints; unset: once an epoch."""
    probe_every: int = sourced(0, "run", ge=0)
    """Epochs between two probes (`codo probe`) of the encoder, logged as `probe/...`; 0: none."""
    compile: bool = sourced(False, "run")
    """torch.compile the encoders."""
    tensorboard: bool = sourced(False, "run")
    """Write TensorBoard events too (extra `tensorboard`)."""

    @field_validator("cache", mode="before")
    @classmethod
    def _yaml_off(cls, value: object) -> object:
        return "off" if value is False else value  # YAML 1.1 reads a bare off as false


class PretrainConfig(Section):
    """Everything that a pretraining run is.

    Example:
        >>> PretrainConfig(hierarchy=False).loss_weights
        {'instance': 1.0}
    """

    seed: int = sourced(0, "run", ge=0)
    background: bool = sourced(True, "CoDo abstract")
    """Background invariance: paste instances on backgrounds. Off: MoCo v2's crop fills the canvas."""
    alignment: bool = sourced(True, "CoDo abstract")
    """The detector's FPN and box head are pretrained too. Off: pooled backbone features."""
    hierarchy: bool = sourced(True, "CoDo abstract")
    """Contrast at every pyramid level (or backbone stage). Off: one embedding a view."""
    views: int = sourced(2, "ours", ge=1)
    """V, the query views of a sample (InsLoc: 1)."""
    canvas: int = sourced(256, "InsLoc", ge=64, multiple_of=32)
    """Side of a view in pixels."""
    mosaic: int = sourced(1, "ours, after YOLOv4", ge=1)
    """m: the encoder sees m x m views of different samples side by side on one image of m x canvas pixels, grouped anew
    in each view, and pools each one's box."""
    augment: tuple[Part, ...] = sourced((), "user")
    """A user's own augmenters, on each view before its colour: `(rng, image, box, foregrounds) -> (image, box)`."""
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
        """The weight of each of codo's losses that is on: what is set, else what the switches say."""
        follows = {
            "image": not self.alignment and not self.hierarchy,
            "instance": self.alignment and not self.hierarchy,
            "level": self.hierarchy,
        }
        weights = {name: getattr(self.loss, name) for name in follows}
        resolved = {name: float(on) if weights[name] is None else weights[name] for name, on in follows.items()}
        resolved |= {name: getattr(self.loss, name) for name in ("dense", "box", "stage", "cell")}
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
    def mixes_views(self) -> bool:
        """Whether some views are composites and others crops that fill the canvas."""
        return self.background and (self.paste.p < 1 or self.paste.warmup_epochs > 0)

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
        if self.paste.p == 0 and self.background:
            raise ValueError("paste.p: 0 pastes nothing; set background=false instead")
        if self.loss.box:
            if not (self.alignment and self.background):
                raise ValueError("loss.box: needs alignment and background (a patch to find); set both, or loss.box=0")
            if self.jitter.mode == "none" and self.jitter.custom is None:
                raise ValueError("loss.box: needs jittered boxes; set jitter.mode, or loss.box=0")
        if self.mosaic > 1 and not self.alignment:
            raise ValueError("mosaic: needs alignment (boxes are pooled); set alignment=true, or leave it at 1")
        if self.mosaic > 1 and {"image", "dense"} & set(self.loss_weights):
            raise ValueError("mosaic: the image and dense losses see whole images of one sample; leave it at 1")
        for name in ("instance", "cell"):
            if getattr(self.loss, name) and not self.alignment:
                raise ValueError(f"loss.{name}: needs alignment (the box is pooled from the FPN); set alignment=true")
        if self.loss.level and not self.hierarchy:
            raise ValueError("loss.level: hierarchy is off; set hierarchy=true, or leave loss.level unset")
        for name, levels in {
            "loss.levels": self.loss.levels,
            "loss.stage_levels": self.loss.stage_levels,
            "jitter.levels": self.jitter.levels,
        }.items():
            if not levels or list(levels) != sorted(set(levels)):
                raise ValueError(f"{name}: one or more of 2, 3, 4, 5, ascending, each once")
        if len(self.level_weights) != len(self.loss.levels):
            raise ValueError(
                f"loss.level_weights: {len(self.level_weights)} weights for {len(self.loss.levels)} levels"
            )
        if "level" in self.loss_weights and not any(self.level_weights):
            raise ValueError(
                "loss.level_weights: every weight is 0, nothing would be learnt; set hierarchy=false instead"
            )
        if self.optim.batch_size % self.model.bn_groups or self.optim.batch_size < 2 * self.model.bn_groups:
            raise ValueError(
                f"model.bn_groups: {self.model.bn_groups} must divide the batch of {self.optim.batch_size} "
                "into groups of 2 or more"
            )
        images_a_group, rest = divmod(self.optim.batch_size, self.mosaic**2 * self.model.bn_groups)
        if rest:
            raise ValueError(
                f"mosaic: {self.mosaic} x {self.mosaic} views an image do not divide the batch of "
                f"{self.optim.batch_size} in {self.model.bn_groups} BN groups (model.bn_groups)"
            )
        if images_a_group == 1 and self.mosaic > 1 and self.model.bn_groups > 1:
            raise ValueError(
                f"mosaic: each of the {self.model.bn_groups} BN groups (model.bn_groups) is one image of "
                f"{self.mosaic} x {self.mosaic} views, of the same samples for query and key, which BN would give "
                f"away; take optim.batch_size={2 * self.optim.batch_size}, or fewer groups"
            )
        if self.model.bn_groups % self.optim.accumulate:
            raise ValueError(
                f"optim.accumulate: {self.optim.accumulate} must divide model.bn_groups ({self.model.bn_groups}), so "
                "that BN sees the groups that it sees without accumulation"
            )
        for name, warmup in {"optim": self.optim.warmup_epochs, "paste": self.paste.warmup_epochs}.items():
            if warmup >= self.optim.epochs:
                raise ValueError(f"{name}.warmup_epochs: {warmup:g} is not below optim.epochs")
        return self
