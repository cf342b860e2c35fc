"""The weights that a run begins with, in place of random ones."""

from __future__ import annotations

from typing import Any

from torch import nn

from codo.config.pretrain import PretrainConfig
from codo.errors import CodoError
from codo.weights import GROUPS, Pretrained, read_pretrained
from codo.weights.coverage import Coverage, load_pretrained


def read_init(config: PretrainConfig) -> Pretrained | None:
    """Read the weights that a run of this config begins with; None where all are random.

    Raises:
        CodoError: there are none, or they cannot be read.
    """
    if config.model.init is None:
        return None
    try:
        return read_pretrained(config.model.init, config.model.backbone)
    except CodoError as error:
        raise _named(error) from error


def fill(encoder: nn.Module, config: PretrainConfig, init: Pretrained) -> Coverage:
    """Fill an encoder's backbone, and its FPN and box head where it has them.

    Raises:
        CodoError: the weights are of another backbone.
    """
    try:
        return load_pretrained(encoder, init, tuple(GROUPS) if config.alignment else ("backbone",))
    except CodoError as error:
        raise _named(error) from error


def filled(init: Pretrained, coverage: Coverage) -> dict[str, Any]:
    """Describe what filled an encoder: source, kind, sha256, and of each group the tensors loaded, and all."""
    return {**init.describe(), "tensors": coverage.shares()}


def told(begun_as: dict[str, Any]) -> str:
    """Say in words what `filled` describes.

    Example:
        >>> told({"source": "a.pth", "kind": "torchvision", "tensors": {"backbone": [100, 100], "fpn": [0, 16]}})
        'model.init: a.pth (torchvision): backbone 100 of 100 tensors, fpn 0 of 16; the others begin at random'
    """
    counts = [f"{name} {own} of {of}" for name, (own, of) in begun_as["tensors"].items()]
    whole = all(own == of for own, of in begun_as["tensors"].values())
    words = ", ".join([f"{counts[0]} tensors", *counts[1:]]) + ("" if whole else "; the others begin at random")
    return f"model.init: {begun_as['source']} ({begun_as['kind']}): {words}"


def _named(error: CodoError) -> CodoError:
    """Say an error of weights as one of the field that names them."""
    return CodoError(f"model.init: {str(error).removeprefix('weights: ')}")
