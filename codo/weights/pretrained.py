"""Pretrained weights in a file or a run folder, whoever wrote them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from torch import Tensor

from codo.config.load import differences
from codo.config.sections import ArchitectureSection
from codo.errors import CodoError
from codo.runs.weights_file import read_metadata
from codo.weights.layouts import recognise
from codo.weights.tensors import read_tensors


@dataclass(frozen=True)
class Pretrained:
    """Weights of a file, under an encoder's names.

    Attributes:
        name: of the run folder or file, without the path.
        kind: what the file is.
        state: tensors of the three groups, by the names of `GROUPS`.
        ignored: names of the other tensors: projectors, RPN, predictors, classifiers.
        metadata: what codo wrote with the weights; empty for other files.
        sha256: of the file, 16 hex digits.
    """

    name: str
    kind: str
    state: dict[str, Tensor]
    ignored: list[str]
    metadata: dict[str, str]
    sha256: str

    def describe(self) -> dict[str, Any]:
        """Say what was loaded, for summary.json and coverage.json."""
        run = {"run_fingerprint": self.metadata["fingerprint"]} if "fingerprint" in self.metadata else {}
        return {"source": self.name, "kind": self.kind, "sha256": self.sha256, **run}


def read_pretrained(weights: str, backbone: str | None = None) -> Pretrained:
    """Read pretrained weights.

    Args:
        weights: a run folder, a file of codo's, or one of another library's: a ResNet of torchvision or timm, a
            checkpoint of MoCo, lightly, solo-learn or mmselfsup, a detector of torchvision, detectron2 or mmdetection;
            as `.safetensors`, as torch's file, or as `.pkl`, a pickle of arrays.
        backbone: the timm model whose own names a plain state dict may have; ResNets are known without.

    Raises:
        CodoError: absent, not readable without running code, or no state dict.
    """
    path = weights_path(weights)
    raw, metadata = read_tensors(path)
    try:
        found = recognise(raw, "architecture" in metadata, backbone)
    except CodoError as error:
        raise CodoError(f"{error} ({path})") from error
    name = path.parent.name if Path(weights).is_dir() else path.name
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    return Pretrained(name or path.name, found.kind, found.state, found.ignored, metadata, digest)


def weights_path(weights: str) -> Path:
    """Find the weights file that a `--weights` names.

    Raises:
        CodoError: there is none.
    """
    path = Path(weights)
    if not path.exists():
        raise CodoError(f"weights: there is nothing at {weights}; name a run folder, a weights file, or none")
    if path.is_file():
        return path
    file = path.resolve() / "weights.safetensors"
    if not file.is_file() and (path / "model.safetensors").is_file():  # timm's hub layout
        file = path.resolve() / "model.safetensors"
    if not file.is_file():
        why = "did the run finish?" if (path / "config.yaml").is_file() else "is it a run folder?"
        raise CodoError(f"weights: {weights} has no weights.safetensors in it; {why}")
    return file


def read_architecture(weights: str) -> ArchitectureSection | None:
    """Read the architecture that codo's weights belong to, without the weights; None for other files.

    Raises:
        CodoError: no such file, or metadata that is not codo's.
    """
    path = weights_path(weights)
    if path.suffix != ".safetensors":
        return None
    metadata = read_metadata(path)
    text = metadata.get("architecture")
    if text is None:
        return None
    try:
        custom = json.loads(metadata.get("custom", "{}")).get("backbone") or ""
        nameable = not custom or ":" in custom
    except (ValueError, AttributeError, TypeError):
        raise CodoError(
            f"weights: {path} has metadata that are not codo's: custom = {metadata['custom'][:80]}"
        ) from None
    if not nameable:
        raise CodoError(
            f"weights: {path} has the backbone {custom}, handed over from Python; pretrain with its dotted path "
            "(model.backbone=module:Name), so that the detector can be built"
        )
    try:
        return ArchitectureSection.model_validate_json(text)
    except ValidationError as error:
        raise CodoError(f"weights: {path} has an architecture that this codo does not know: {error}") from error


def check_architecture(asked: ArchitectureSection, weights: str) -> None:
    """Refuse an architecture that is not the weights' own.

    Raises:
        CodoError: names the fields that differ.
    """
    own = read_architecture(weights)
    if own is None:
        return
    differing = [f"{key} {mine} (the weights: {theirs})" for key, (mine, theirs) in differences(asked, own).items()]
    if differing:
        raise CodoError(
            f"architecture: differs from that of {weights} in {', '.join(differing)}; leave these fields unset"
        )


def unknown_pixels(pretrained: Pretrained) -> list[str]:
    """Say which images and strides the weights may have been learnt with, where the file does not."""
    if not pretrained.kind.startswith("detectron2"):
        return []
    return [
        "detectron2's zoo models take BGR with PIXEL_STD 1 and have their strides in the 1x1 convolutions; the file "
        "does not say whether it is one of them, and codo gives RGB with ImageNet's mean and standard deviation and "
        "has its strides in the 3x3"
    ]
