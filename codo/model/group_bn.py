"""BN over groups of a batch, while the batch passes the network as a whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from codo.runs.world import World


@contextmanager
def bn_in_groups(module: nn.Module, groups: int) -> Iterator[None]:
    """While open, every BN inside `module` normalises `groups` equal parts of its rows one by one.

    The numbers are those of a pass for each part, running statistics too; the convolutions see one batch, which on two
    cores makes a step of the small presets a tenth faster.

    Args:
        module: in training mode, where `groups` is not 1.
        groups: divides the rows of each BN, which lie group after group; see `by_group`.

    Example:
        >>> norm, rows = nn.BatchNorm1d(1), torch.tensor([[1.0], [3.0], [5.0], [9.0]])
        >>> with bn_in_groups(norm, 2):
        ...     norm(rows).round().flatten().tolist()
        [-1.0, 1.0, -1.0, 1.0]
    """
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm)] if groups > 1 else []
    for norm in norms:
        object.__setattr__(norm, "_parts", groups)
        # Made of one function, always the same: a new one each time would have torch.compile begin anew.
        object.__setattr__(norm, "forward", MethodType(_in_parts, norm))
    try:
        yield
    finally:
        for norm in norms:
            object.__delattr__(norm, "forward")
            object.__delattr__(norm, "_parts")


def _in_parts(norm: Any, rows: Tensor) -> Tensor:
    return torch.cat([type(norm).forward(norm, part) for part in rows.chunk(norm._parts)])


@torch.no_grad()
def average_statistics(module: nn.Module, world: World) -> None:
    """Set the running statistics of every BN inside `module` to the mean over the processes.

    They are moving averages, so that, to rounding, it does not matter when, or how often, they are averaged.
    """
    if world.size == 1:
        return
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm)]
    found = [b for norm in norms for b in (norm.running_mean, norm.running_var) if b is not None]
    if not found:
        return
    mean = world.gather(torch.cat(found)[None]).mean(0)
    for buffer, part in zip(found, mean.split([len(buffer) for buffer in found]), strict=True):
        buffer.copy_(part)


def by_group(maps: Sequence[Tensor], groups: int) -> Tensor:
    """Join several maps `(B, ...)` of the same samples, group after group: `(groups x maps x B / groups, ...)`."""
    return torch.cat([part for parts in zip(*(m.chunk(groups) for m in maps), strict=True) for part in parts])


def by_map(rows: Tensor, maps: int, groups: int) -> Tensor:
    """Undo `by_group`: `(maps, B, ...)`."""
    return rows.unflatten(0, (groups, maps, -1)).transpose(0, 1).flatten(1, 2)
