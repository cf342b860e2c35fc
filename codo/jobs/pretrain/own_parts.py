"""What a user's own parts, once made, and what they give are refused for: each in a line."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy

import torch
from torch import nn

from codo.errors import CodoError
from codo.heads.box import POOLED_SIZE
from codo.losses import Contrast


def called(name: str, given: Callable[..., object], *widths: int) -> object:
    """Call what was handed over from Python to make a part."""
    try:
        return given(*widths)
    except TypeError as error:
        raise CodoError(f"{name}: as a class or function of {len(widths)} widths it fails: {error}") from error


def checked_box_head(found: object, channels: int, fc: int) -> nn.Module:
    """Refuse a user's own box head that is no module, or gives another shape than `(R, fc)`."""
    head = _module("box_head", found)
    shape = _shape("box_head", head, f"pooled boxes (R, {channels}, 7, 7)", channels, POOLED_SIZE, POOLED_SIZE)
    if shape != (2, fc):
        raise CodoError(f"model.box_head: must give (R, {fc}), model.box_head_fc wide; of 2 boxes it gives {shape}")
    return head


def checked_projector(found: object, inputs: int, outputs: int) -> nn.Module:
    """Refuse a user's own projector that is no module, or gives another shape than `(R, embedding)`."""
    projector = _module("projector", found)
    shape = _shape("projector", projector, f"features (R, {inputs})", inputs)
    if shape != (2, outputs):
        raise CodoError(f"model.projector: must give (R, {outputs}), model.embedding wide; of 2 rows it gives {shape}")
    return projector


def checked_contrast(name: str, value: object) -> Contrast:
    """Refuse what a user's loss may return by mistake."""
    found = value if isinstance(value, Contrast) else Contrast(value)  # type: ignore[arg-type]  # looked at below
    loss: object = found.loss
    if not isinstance(loss, torch.Tensor):
        raise CodoError(f"loss {name}: must return a scalar tensor, not a {type(loss).__name__}")
    if loss.ndim != 0 or not loss.is_floating_point():
        raise CodoError(f"loss {name}: must return a scalar of floats, not {tuple(loss.shape)} of {loss.dtype}")
    return found


def _module(name: str, found: object) -> nn.Module:
    """Refuse a user's own part that is no module."""
    if not isinstance(found, nn.Module):
        raise CodoError(f"model.{name}: an nn.Module is expected, this is a {type(found).__name__}")
    return found


def _shape(name: str, module: nn.Module, of: str, *sides: int) -> object:
    """Give the shape of what a user's module makes of two samples; its type where that is no tensor."""
    try:
        with torch.no_grad():
            made = deepcopy(module).eval()(torch.zeros(2, *sides))
    except Exception as error:  # whatever a user's module does wrong
        line = " ".join(f"{type(error).__name__}: {error}".split())
        raise CodoError(f"model.{name}: fails on {of} ({line})") from error
    return tuple(made.shape) if isinstance(made, torch.Tensor) else type(made).__name__
