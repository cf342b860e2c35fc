"""Pretrained weights into a detector or an encoder: matched by name and shape, counted."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor, nn

from codo.errors import CodoError
from codo.weights.keys import GROUPS, box_head_convs, group_of
from codo.weights.pretrained import Pretrained

MIN_BACKBONE_SHARE = 0.95
"""Share of the backbone's tensors that a file must match."""

_DETECTOR_BOX_HEAD = "roi_heads.box_head."


@dataclass(frozen=True)
class GroupCoverage:
    """How one group of the model was filled; lists of tensor names.

    Attributes:
        matched: in the file, of the same shape: loaded.
        missing: not in the file: fresh.
        unexpected: in the file, not in the model: left out.
        reshaped: of another shape in the file: fresh.
        left_out: fresh because the group was not to be loaded, whatever the file holds.
    """

    matched: list[str]
    missing: list[str]
    unexpected: list[str]
    reshaped: list[str]
    left_out: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Whether every tensor of the group was loaded."""
        return bool(self.matched) and not (self.missing or self.reshaped)


@dataclass(frozen=True)
class Coverage:
    """How a model was filled: `backbone`, `fpn`, `box_head`.

    Counters of batch norms (`num_batches_tracked`) are loaded where they are, and not counted: no result depends on
    them, and many files lack them.

    Attributes:
        groups: name -> how it was filled.
        ignored: the file's tensors that belong to no group.
        other_widths: field of `architecture` -> the file's value, where what was to be loaded is of another one.
    """

    groups: dict[str, GroupCoverage]
    ignored: list[str]
    other_widths: dict[str, int] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Give counts and names, for coverage.json."""
        groups = {
            name: {
                "counts": {kind: len(tensors) for kind, tensors in asdict(group).items()},
                **asdict(group),
            }
            for name, group in self.groups.items()
        }
        return {"groups": groups, "ignored": self.ignored, "other_widths": self.other_widths}


def load_pretrained(model: nn.Module, pretrained: Pretrained, load: Collection[str] = tuple(GROUPS)) -> Coverage:
    """Fill the backbone, FPN and box head of a model from `pretrained`, tensor by tensor.

    What is behind them always stays fresh: RPN, predictors and mask head of a detector, projectors of an encoder.

    Args:
        model: a detector with torchvision's names, as `build_detector` gives it, or an encoder.
        pretrained: from `read_pretrained`.
        load: the groups to fill; the others stay fresh, and are counted as left out.

    Raises:
        CodoError: under 95% of the backbone's tensors match, or none of what is to be loaded is in the file; nothing
            has been loaded then.
    """
    own = model.state_dict()
    names = {_canonical(name): name for name in own}
    loaded: dict[str, Tensor] = {}
    groups: dict[str, GroupCoverage] = {}
    for group in GROUPS:
        ours = [name for name in names if group_of(name) == group]
        if group not in load:
            groups[group] = GroupCoverage([], [], [], [], _counted(ours))
            continue
        theirs = [name for name in pretrained.state if group_of(name) == group]
        fits = [
            name for name in ours if name in pretrained.state and pretrained.state[name].shape == own[names[name]].shape
        ]
        loaded |= {names[name]: pretrained.state[name] for name in fits}
        groups[group] = GroupCoverage(
            matched=_counted(fits),
            missing=_counted(name for name in ours if name not in pretrained.state),
            unexpected=_counted(name for name in theirs if name not in names),
            reshaped=_counted(name for name in ours if name in pretrained.state and name not in fits),
        )
    backbone = groups["backbone"]
    total = len(backbone.matched) + len(backbone.missing) + len(backbone.reshaped)
    if len(backbone.matched) < MIN_BACKBONE_SHARE * total:
        raise CodoError(
            f"weights: {pretrained.name} ({pretrained.kind}) matches {len(backbone.matched)} of the backbone's {total} "
            f"tensors; {_example(backbone, pretrained, own, names)}"
        )
    if not loaded:
        raise CodoError(
            f"load: {pretrained.name} ({pretrained.kind}) has nothing of {', '.join(load)} that fits the model"
        )
    model.load_state_dict(loaded, strict=False)
    detectors = _widths({encoders: own[name] for encoders, name in names.items()}, load)
    files = _widths(pretrained.state, load)
    other = {name: width for name, width in files.items() if detectors.get(name, width) != width}
    return Coverage(groups, pretrained.ignored, other)


def fresh_coverage(detector: nn.Module) -> Coverage:
    """Say of a detector without pretrained weights what `load_pretrained` says of one with them."""
    names = [_canonical(name) for name in detector.state_dict()]
    missing = {group: _counted(name for name in names if group_of(name) == group) for group in GROUPS}
    return Coverage({group: GroupCoverage([], absent, [], []) for group, absent in missing.items()}, [])


def frozen_but_fresh(detector: nn.Module, coverage: Coverage) -> list[str]:
    """List the groups of which something is frozen that was not loaded: it stays random.

    Args:
        detector: as `build_detector` gives it.
        coverage: how it was filled.
    """
    frozen = {_module(_canonical(name)) for name, p in detector.named_parameters() if not p.requires_grad}
    return [name for name, group in coverage.as_dict()["groups"].items() if frozen & _fresh(group)]


def fresh_modules(detector: nn.Module, groups: Mapping[str, Mapping[str, Any]]) -> set[str]:
    """Name the modules of a detector of which something was not loaded.

    Args:
        detector: as `build_detector` gives it.
        groups: how it was filled, as coverage.json says.
    """
    fresh = {name for group in groups.values() for name in _fresh(group)}
    return {name for name, _ in detector.named_modules() if _canonical(name) in fresh}


def _fresh(group: Mapping[str, Any]) -> set[str]:
    return {_module(tensor) for kind in ("missing", "reshaped", "left_out") for tensor in group[kind]}


def _widths(state: Mapping[str, Tensor], load: Collection[str]) -> dict[str, int]:
    """Read fields of `architecture` off the tensors of FPN and box head, under an encoder's names."""
    found: dict[str, int] = {}
    laterals = [name for name in state if name.startswith("backbone.fpn.inner_blocks.") and name.endswith("0.weight")]
    if "fpn" in load and laterals:
        found["fpn_channels"] = len(state[laterals[0]])
    convs = box_head_convs(list(state))
    fc = f"box_head.{convs + 1}.weight"  # behind the convolutions and the flattening
    if "box_head" in load and convs and fc in state:
        found |= {"box_head_convs": convs, "box_head_channels": len(state["box_head.0.0.weight"])}
        found["box_head_fc"] = len(state[fc])
    return found


def _module(name: str) -> str:
    return name.rpartition(".")[0]


def _example(
    backbone: GroupCoverage, pretrained: Pretrained, own: Mapping[str, Tensor], names: Mapping[str, str]
) -> str:
    """Show one reason why a backbone does not match."""
    if backbone.reshaped:
        name = backbone.reshaped[0]
        theirs, ours = (tuple(t.shape) for t in (pretrained.state[name], own[names[name]]))
        field = "architecture.backbone (of a pretraining model.backbone)"
        return f"e.g. {name} is {theirs} in the file and {ours} here: is {field} right?"
    have = backbone.unexpected or pretrained.ignored
    there = f"the file has, e.g., {have[0]}" if have else "the file has no such names"
    return f"missing are, e.g., {', '.join(backbone.missing[:2])}; {there}"


def _canonical(name: str) -> str:
    """Turn a detector's name into the encoder's."""
    return name.removeprefix("roi_heads.") if name.startswith(_DETECTOR_BOX_HEAD) else name


def _counted(names: Iterable[str]) -> list[str]:
    return [name for name in names if not name.endswith("num_batches_tracked")]
