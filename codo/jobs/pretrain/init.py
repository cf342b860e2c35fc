"""The weights that a run begins with, in place of random ones."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from torch import nn

from codo.config.pretrain import PretrainConfig
from codo.errors import CodoError
from codo.weights import GROUPS, Pretrained, read_pretrained
from codo.weights.coverage import load_pretrained


@dataclass(frozen=True)
class Init:
    """Weights that an encoder can begin with.

    Attributes:
        weights: as they were read.
        groups: those that the encoder has.
    """

    weights: Pretrained
    groups: tuple[str, ...]

    def fill(self, encoder: nn.Module) -> dict[str, Any]:
        """Fill an encoder's backbone, and its FPN and box head where it has them.

        Returns:
            What a run records: `source`, `kind`, `sha256`; `tensors`, of each group how many were loaded, how many it
            has, and how many of the file's have no place; `other_widths`, field of `model` -> the file's.

        Raises:
            CodoError: the weights are of another backbone.
        """
        try:
            coverage = load_pretrained(encoder, self.weights, self.groups)
        except CodoError as error:
            raise _named(error) from error
        tensors = {
            name: [len(group.matched), len([*group.matched, *group.missing, *group.reshaped]), len(group.unexpected)]
            for name, group in coverage.groups.items()
            if name in self.groups
        }
        return {**self.weights.describe(), "tensors": tensors, "other_widths": coverage.other_widths}


def read_init(config: PretrainConfig) -> Init | None:
    """Read the weights that a run of this config begins with; None where all are random.

    Raises:
        CodoError: there are none, they cannot be read, or are of another backbone or norm.
    """
    if config.model.init is None:
        return None
    try:
        weights = read_pretrained(config.model.init, config.model.backbone)
    except CodoError as error:
        raise _named(error) from error
    backbone, own = _backbone(weights), config.model.backbone
    if backbone is not None and backbone != own:
        raise CodoError(f"model.init: {weights.name} is of {backbone}, and model.backbone is {own}; set that")
    if weights.metadata.get("norm") == "gn":
        raise CodoError(
            f"model.init: {weights.name} was learnt with GroupNorm; its scale and shift mean nothing to the "
            "batch norms of a pretraining"
        )
    return Init(weights, tuple(GROUPS) if config.alignment else ("backbone",))


def told(begun_as: dict[str, Any]) -> str:
    """Say in words what `Init.fill` gave.

    Example:
        >>> filled = {"source": "a.pth", "kind": "torchvision", "other_widths": {}}
        >>> told({**filled, "tensors": {"backbone": [100, 100, 0], "fpn": [0, 16, 0]}})
        'model.init: a.pth (torchvision): backbone 100 of 100 tensors, fpn 0 of 16; the others begin at random'
    """
    counts = [f"{name} {own} of {of}" for name, (own, of, _) in begun_as["tensors"].items()]
    text = ", ".join([f"{counts[0]} tensors", *counts[1:]])
    if any(own < of for own, of, _ in begun_as["tensors"].values()):
        text += "; the others begin at random"
    if spare := {name: count for name, (*_, count) in begun_as["tensors"].items() if count}:
        names = ", ".join(f"{count} of the {name}" for name, count in spare.items())
        text += f"; the file has {names} that have no place here"
    if widths := begun_as["other_widths"]:
        text += f"; more would fit with {' '.join(f'--set model.{name}={width}' for name, width in widths.items())}"
    elif spare:
        text += ": is it the same network?"
    return f"model.init: {begun_as['source']} ({begun_as['kind']}): {text}"


def _backbone(weights: Pretrained) -> str | None:
    """Read which backbone codo's weights say that they are of."""
    try:
        return json.loads(weights.metadata.get("architecture", "{}")).get("backbone")
    except (ValueError, AttributeError):
        return None


def _named(error: CodoError) -> CodoError:
    """Say an error of weights as one of the field that names them, which has no value `none`."""
    return CodoError(f"model.init: {str(error).removeprefix('weights: ').removesuffix(', or none')}")
