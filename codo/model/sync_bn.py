"""BN over the whole batch of several processes."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from timm.layers import BatchNormAct2d, convert_sync_batchnorm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from codo.runs.world import sum_over_processes


def synchronise_bn(module: nn.Module, device: torch.device) -> None:
    """Turn every BN inside `module` into one over all processes; names and weights stay.

    On GPUs torch's own SyncBatchNorm (by timm, whose norms carry activations); on processors, which it refuses, one
    that computes the same.
    """
    if device.type == "cuda":
        convert_sync_batchnorm(module)
        return
    for child in module.modules():
        if isinstance(child, BatchNormAct2d):
            child.__class__ = _ProcessorSyncBNAct  # type: ignore[assignment]  # the same attributes
        elif isinstance(child, _BatchNorm):
            child.__class__ = _ProcessorSyncBN


class _ProcessorSyncBN(_BatchNorm):
    def _check_input_dim(self, input: Any) -> None:
        pass

    def forward(self, input: Tensor) -> Tensor:
        """Normalise `(N, C, ...)` by the mean and variance of all processes' rows; a process may have none."""
        if not self.training:
            return super().forward(input)
        assert self.running_mean is not None
        assert self.running_var is not None
        axes = [0, *range(2, input.ndim)]
        shape = [1, -1, *[1] * (input.ndim - 2)]
        rows = torch.tensor(input.numel() // input.shape[1])
        dist.all_reduce(rows)  # padding and RoIs differ between processes
        count = max(1, int(rows))
        mean = sum_over_processes(input.float().sum(axes)) / count
        centred = input.float() - mean.view(shape)
        variance = sum_over_processes(centred.square().sum(axes)) / count
        with torch.no_grad():
            if rows:  # as torch's: no rows, no statistics
                rate = self.momentum or 0.0
                if self.num_batches_tracked is not None:
                    self.num_batches_tracked.add_(1)
                    rate = 1 / int(self.num_batches_tracked) if self.momentum is None else rate
                self.running_mean.lerp_(mean, rate)
                self.running_var.lerp_(variance * count / max(1, count - 1), rate)
        normal = centred * torch.rsqrt(variance + self.eps).view(shape)
        return normal * self.weight.view(shape) + self.bias.view(shape) if self.affine else normal


class _ProcessorSyncBNAct(_ProcessorSyncBN):
    def forward(self, input: Tensor) -> Tensor:
        """Normalise, and apply timm's activation."""
        drop, act = self.get_submodule("drop"), self.get_submodule("act")
        return act(drop(super().forward(input)))
