"""Pretrained weights into a detector: read from any of the known files, matched by name and shape, counted."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from codo.config.load import differences
from codo.config.sections import ArchitectureSection
from codo.errors import CodoError
from codo.runs.weights_file import read_metadata, read_weights

GROUPS: dict[str, str] = {"backbone": "backbone.body.", "fpn": "backbone.fpn.", "box_head": "box_head."}
"""The parts that transfer, by the prefix of their tensors' names in an encoder."""

MIN_BACKBONE_SHARE = 0.95
"""Share of the backbone's tensors that a file must match."""

_DETECTOR_BOX_HEAD = "roi_heads.box_head."
_CLASSIFIERS = ("fc.", "classifier.", "head.")


@dataclass(frozen=True)
class Source:
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


@dataclass(frozen=True)
class GroupCoverage:
    """How one group of the detector was filled; lists of tensor names.

    Attributes:
        matched: in the file, of the same shape: loaded.
        missing: not in the file: fresh.
        unexpected: in the file, not in the detector: left out.
        reshaped: of another shape in the file: fresh.
    """

    matched: list[str]
    missing: list[str]
    unexpected: list[str]
    reshaped: list[str]

    @property
    def complete(self) -> bool:
        """Whether every tensor of the group was loaded."""
        return bool(self.matched) and not (self.missing or self.reshaped)


@dataclass(frozen=True)
class Coverage:
    """How a detector was filled: `backbone`, `fpn`, `box_head`.

    Counters of batch norms (`num_batches_tracked`) are loaded where they are, and not counted: no result depends on
    them, and many files lack them.
    """

    groups: dict[str, GroupCoverage]
    ignored: list[str]

    def as_dict(self) -> dict[str, Any]:
        """Give counts and names, for coverage.json."""
        groups = {
            name: {
                "counts": {kind: len(tensors) for kind, tensors in asdict(group).items()},
                **asdict(group),
            }
            for name, group in self.groups.items()
        }
        return {"groups": groups, "ignored": self.ignored}


def read_source(weights: str) -> Source:
    """Read pretrained weights.

    Args:
        weights: a run folder; a codo safetensors file; a ResNet's state dict as torchvision and timm have it, or a
            torchvision detector's, as `.safetensors`, `.pt` or `.pth`.

    Raises:
        CodoError: absent, not readable without running code, or no state dict.
    """
    path = weights_path(weights)
    metadata: dict[str, str] = {}
    if path.suffix == ".safetensors":
        raw, metadata = read_weights(path)
    else:
        raw = _torch_state(path)
    raw = _unwrapped(raw)
    broken = [name for name, tensor in raw.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if broken:
        raise CodoError(f"weights: {path} has values that are not finite, e.g. in {broken[0]}")
    kind, state, ignored = _renamed(raw, "architecture" in metadata)
    name = path.parent.name if Path(weights).is_dir() else path.name
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    return Source(name or path.name, kind, state, ignored, metadata, digest)


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
    custom = json.loads(metadata.get("custom", "{}")).get("backbone")
    if custom is not None and ":" not in custom:
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


def load_into_detector(detector: nn.Module, source: Source) -> Coverage:
    """Fill a detector's backbone, FPN and box head from `source`, tensor by tensor.

    RPN and predictors stay fresh (method.md, section 5).

    Args:
        detector: with torchvision's names, as `build_detector` gives it.
        source: from `read_source`.

    Raises:
        CodoError: under 95% of the backbone's tensors match; nothing has been loaded then.
    """
    own = detector.state_dict()
    names = {_canonical(name): name for name in own}
    loaded: dict[str, Tensor] = {}
    groups: dict[str, GroupCoverage] = {}
    for group, prefix in GROUPS.items():
        # P6 and P7 of the one-stage detectors are no part of the pretrained pyramid.
        ours = [name for name in names if name.startswith(prefix) and ".extra_blocks." not in name]
        theirs = [name for name in source.state if name.startswith(prefix)]
        fits = [name for name in ours if name in source.state and source.state[name].shape == own[names[name]].shape]
        loaded |= {names[name]: source.state[name] for name in fits}
        groups[group] = GroupCoverage(
            matched=_counted(fits),
            missing=_counted(name for name in ours if name not in source.state),
            unexpected=_counted(name for name in theirs if name not in names),
            reshaped=_counted(name for name in ours if name in source.state and name not in fits),
        )
    backbone = groups["backbone"]
    total = len(backbone.matched) + len(backbone.missing) + len(backbone.reshaped)
    if len(backbone.matched) < MIN_BACKBONE_SHARE * total:
        raise CodoError(
            f"weights: {source.name} ({source.kind}) matches {len(backbone.matched)} of the backbone's {total} "
            f"tensors; {_example(backbone, source, own, names)}"
        )
    detector.load_state_dict(loaded, strict=False)
    return Coverage(groups, source.ignored)


def fresh_coverage(detector: nn.Module) -> Coverage:
    """Say of a detector without pretrained weights what `load_into_detector` says of one with them."""
    names = [_canonical(name) for name in detector.state_dict()]
    groups = {
        group: GroupCoverage([], _counted(n for n in names if n.startswith(prefix)), [], [])
        for group, prefix in GROUPS.items()
    }
    return Coverage(groups, [])


def _example(backbone: GroupCoverage, source: Source, own: Mapping[str, Tensor], names: Mapping[str, str]) -> str:
    """Show one reason why a backbone does not match."""
    if backbone.reshaped:
        name = backbone.reshaped[0]
        theirs, ours = (tuple(t.shape) for t in (source.state[name], own[names[name]]))
        return f"e.g. {name} is {theirs} in the file and {ours} in the detector: is architecture.backbone right?"
    there = f"the file has, e.g., {backbone.unexpected[0]}" if backbone.unexpected else "the file has no such names"
    return f"missing are, e.g., {', '.join(backbone.missing[:2])}; {there}"


def _canonical(name: str) -> str:
    """Turn a detector's name into the encoder's."""
    return name.removeprefix("roi_heads.") if name.startswith(_DETECTOR_BOX_HEAD) else name


def _counted(names: Any) -> list[str]:
    return [name for name in names if not name.endswith("num_batches_tracked")]


def _torch_state(path: Path) -> dict[str, Any]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip and torch each raise their own
        line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CodoError(f"weights: {path} is not a file of plain tensors (weights_only): {line}") from error
    if not isinstance(state, dict):
        raise CodoError(f"weights: {path} holds a {type(state).__name__}; a state dict is expected")
    return state


def _unwrapped(state: dict[str, Any]) -> dict[str, Tensor]:
    """Take the tensors out of the wrappings that training scripts put around them."""
    for key in ("model", "state_dict"):
        if isinstance(state.get(key), dict):
            state = state[key]
    tensors = {str(name): value for name, value in state.items() if isinstance(value, Tensor)}
    if tensors and all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): value for name, value in tensors.items()}
    return tensors


def _renamed(raw: dict[str, Tensor], codo: bool) -> tuple[str, dict[str, Tensor], list[str]]:
    """Sort tensors into the three groups, and those of none."""
    if codo or any(name.startswith("backbone.") for name in raw):
        state = {_canonical(name): value for name, value in raw.items()}
        kept = {name: value for name, value in state.items() if name.startswith(tuple(GROUPS.values()))}
        detector = any(name.startswith("rpn.") for name in raw)
        kind = ("codo " if codo else "") + ("detector" if detector else "encoder")
        return kind, kept, sorted(state.keys() - kept.keys())
    kept = {f"backbone.body.{name}": value for name, value in raw.items() if not name.startswith(_CLASSIFIERS)}
    return "backbone", kept, sorted(name for name in raw if name.startswith(_CLASSIFIERS))
