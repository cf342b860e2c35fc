"""What a run has to give to other libraries."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
import torchvision
from torch import Tensor

from codo.config.sections import ArchitectureSection
from codo.config.transfer import ONE_STAGE, DetectionSection
from codo.errors import CodoError
from codo.runs.weights_file import read_weights
from codo.weights import read_architecture, weights_path
from codo.weights.keys import GROUPS, box_head_convs
from codo.weights.layouts import recognise


@dataclass(frozen=True)
class ResNet:
    """A ResNet as detectron2's and mmdetection's configs describe it."""

    depth: int
    groups: int = 1
    width: int = 64


RESNETS = {
    **{f"resnet{depth}": ResNet(depth) for depth in (18, 34, 50, 101, 152)},
    "resnext50_32x4d": ResNet(50, 32, 4),
    "resnext101_32x8d": ResNet(101, 32, 8),
    "resnext101_64x4d": ResNet(101, 64, 4),
    "wide_resnet50_2": ResNet(50, 1, 128),
    "wide_resnet101_2": ResNet(101, 1, 128),
}
"""The backbones that torchvision, detectron2 and mmdetection have too, by the name of torchvision and timm."""


@dataclass(frozen=True)
class Contents:
    """The tensors of a run and what belongs to them.

    Attributes:
        file: that the tensors are of.
        state: backbone, FPN and box head, by an encoder's names (`codo.weights.keys`).
        rest: the others, by the run's own names: projectors; RPN and predictors of a detector.
        architecture: of the three parts.
        detector: `faster_rcnn`, ...; None for a pretraining run.
        classes: their names, in the order of the labels 1..K; None for a pretraining run.
        detection: sizes, thresholds and lists that the detector was evaluated with; None for a pretraining run.
        mean: of the images' channels RGB, in 0..1.
        std: of the channels RGB.
        sampling_ratio: of the RoIAlign that the box head was trained behind.
        aligned: of that RoIAlign.
        fingerprint: of the run.
        version: of the codo that ran.
        own_box_head: dotted path of a user's own box head.
    """

    file: Path
    state: dict[str, Tensor]
    rest: dict[str, Tensor]
    architecture: ArchitectureSection
    detector: str | None
    classes: list[str] | None
    detection: DetectionSection | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    sampling_ratio: int
    aligned: bool
    fingerprint: str
    version: str
    own_box_head: str | None

    @property
    def has_fpn(self) -> bool:
        """Whether there is a pyramid: not without alignment."""
        return any(name.startswith("backbone.fpn.") for name in self.state)

    @property
    def stage_channels(self) -> list[int]:
        """Channels of a ResNet's C2-C5."""
        last = 512 if self.architecture.backbone in ("resnet18", "resnet34") else 2048
        return [last // 8, last // 4, last // 2, last]

    @property
    def lacking(self) -> list[str]:
        """Name the parts that the run has not, or not in a form that others have."""
        found = [] if self.has_fpn else ["FPN"]
        if self.has_fpn and self.detector in ONE_STAGE:
            found.append("P2")
        if self.own_box_head is not None or not any(name.startswith(GROUPS["box_head"]) for name in self.state):
            found.append("box head")
        return found

    @property
    def convs(self) -> int:
        """How many convolutions the box head has."""
        return box_head_convs(list(self.state)) or self.architecture.box_head_convs

    def resnet(self, library: str) -> ResNet:
        """Describe the backbone as a ResNet.

        Raises:
            CodoError: it is none that `library` has names for.
        """
        name = self.architecture.backbone
        if name in RESNETS:
            with torch.device("meta"):
                reference = torchvision.models.get_model(name, weights=None).state_dict()
            expected = {f"backbone.body.{k}": v.shape for k, v in reference.items() if not k.startswith("fc.")}
            if expected == {k: v.shape for k, v in self.state.items() if k.startswith("backbone.body.")}:
                return RESNETS[name]
        raise CodoError(
            f"export: {library} has no names for the backbone {name}, only for {', '.join(RESNETS)}; "
            "--format timm takes any timm model"
        )


def read_contents(run: str, best: bool = False) -> Contents:
    """Read a run.

    Args:
        run: the folder of a pretraining or transfer run, or its weights.safetensors.
        best: take the folder's best.safetensors, where it has one.

    Raises:
        CodoError: there is none, it did not finish, or codo did not write it.
    """
    file = weights_path(run)
    if best and Path(run).is_dir() and (file.parent / "best.safetensors").is_file():
        file = file.parent / "best.safetensors"
    if read_architecture(str(file)) is None:
        raise CodoError(f"export: {file} was not written by codo pretrain or codo transfer; name the folder of a run")
    raw, metadata = read_weights(file)
    found = recognise(raw, codo=True, backbone=None)
    if metadata.get("norm") == "gn":
        raise CodoError(f"export: {file} has GroupNorm, which no format has names for; load it as codo's safetensors")
    architecture = ArchitectureSection.model_validate_json(metadata["architecture"])
    detection = metadata.get("detection")
    try:
        roi = json.loads(metadata.get("roi", "{}"))
        custom = json.loads(metadata.get("custom", "{}"))
        categories = json.loads(metadata["categories"]) if "categories" in metadata else None
        return Contents(
            file=file,
            state=found.state,
            rest={name: raw[name] for name in found.ignored},
            architecture=architecture,
            detector=metadata.get("detector"),
            classes=[str(name) for _, name in categories] if categories is not None else None,
            detection=DetectionSection.model_validate_json(detection) if detection is not None else None,
            mean=tuple(float(v) for v in json.loads(metadata["mean"])),
            std=tuple(float(v) for v in json.loads(metadata["std"])),
            sampling_ratio=int(roi.get("sampling_ratio", 2)),
            aligned=bool(roi.get("aligned", False)),
            fingerprint=metadata["fingerprint"],
            version=metadata["codo_version"],
            own_box_head=custom.get("box_head"),
        )
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise CodoError(f"export: the metadata of {file} is not what codo writes: {error!r:.80}") from error
