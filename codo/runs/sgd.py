"""Torch's fused SGD, without its copies of channels-last gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from codo.errors import CodoError


class FusedSGD(torch.optim.SGD):
    """`torch.optim.SGD(fused=True)`: the same numbers, the same state.

    On a processor torch's kernel copies every gradient that is not in NCHW order, makes no use of the copy, and goes
    through parameter, gradient and momentum in the order of memory (torch 2.14: a gradient that lies in memory
    otherwise than its parameter is added in the wrong places). Here all three are shown to it in the order of memory:
    nothing is copied that need not be, and what lies otherwise is put right.

    Args:
        params: as `torch.optim.SGD` takes them, all on one device.
        **settings: `lr`, `momentum`, `weight_decay`, `nesterov`.

    Example:
        >>> weight = torch.nn.Parameter(torch.ones(2))
        >>> weight.grad = torch.ones(2)
        >>> FusedSGD([weight], lr=0.5).step()
        >>> weight.tolist()
        [0.5, 0.5]
    """

    def __init__(self, params: Any, **settings: Any) -> None:
        super().__init__(params, fused=True, **settings)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]  # torch's gives a loss
        """Take a step with the gradients that are there; no closure is called."""
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            buffers = [self._buffer(p) for p in parameters] if group["momentum"] else []
            if not parameters:
                continue
            views = [in_memory_order(p, p) for p in parameters]
            if any(view.data_ptr() != p.data_ptr() for view, p in zip(views, parameters, strict=True)):
                raise CodoError("a parameter has gaps in memory (a view of another tensor): make it contiguous()")
            torch._fused_sgd_(
                views,
                [in_memory_order(p.grad, p) for p in parameters],
                [in_memory_order(b, p) for b, p in zip(buffers, parameters, strict=False)],
                weight_decay=group["weight_decay"],
                momentum=group["momentum"],
                lr=group["lr"],
                dampening=group["dampening"],
                nesterov=group["nesterov"],
                maximize=group["maximize"],
                is_first_step=False,
                grad_scale=getattr(self, "grad_scale", None),  # both set by torch.amp.GradScaler
                found_inf=getattr(self, "found_inf", None),
            )

    def _buffer(self, parameter: Tensor) -> Tensor:
        """Look up the momentum, which lies in memory as the parameter does; it begins at 0."""
        state = self.state[parameter]
        before = state.get("momentum_buffer")
        if before is None:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        elif before.stride() != parameter.stride():
            state["momentum_buffer"] = torch.empty_like(parameter).copy_(before)
        return state["momentum_buffer"]


def in_memory_order(tensor: Tensor, like: Tensor) -> Tensor:
    """View `tensor` with its dimensions in the order in which those of `like` lie in memory, contiguous.

    Only what lies there in another order is copied: the kernel would take it for being in this one.
    """
    if like.is_contiguous():
        return tensor.contiguous()
    return tensor.permute(sorted(range(like.ndim), key=like.stride, reverse=True)).contiguous()
