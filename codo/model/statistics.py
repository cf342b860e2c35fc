"""The running statistics of batch norms, taken anew; and modules put back into their modes."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


@contextmanager
def renewed(norms: Collection[_BatchNorm]) -> Iterator[None]:
    """Give batch norms the mean of the statistics of all batches that they see within, in training mode."""
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


@contextmanager
def modes_kept(module: nn.Module) -> Iterator[None]:
    """Put every module back into the mode that it was in, training or evaluation."""
    modes = [(child, child.training) for child in module.modules()]
    try:
        yield
    finally:
        for child, training in modes:
            child.training = training
