"""The fused SGD: torch's own numbers, whatever the order of memory, and torch's own state."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from codo.errors import CodoError
from codo.runs.sgd import FusedSGD

SETTINGS: list[dict[str, Any]] = [
    {"momentum": 0.9, "nesterov": True, "weight_decay": 1e-2},
    {"momentum": 0.9, "weight_decay": 0.0},
    {"momentum": 0.0},
]


def parameters() -> list[nn.Parameter]:
    torch.manual_seed(0)
    last = torch.randn(5, 4, 3, 3).contiguous(memory_format=torch.channels_last)
    # One that never gets a gradient; one in an order that is neither.
    return [nn.Parameter(t) for t in (last, torch.randn(7, 4), torch.randn(3), torch.randn(4, 7).T)]


def gradients(step: int, order: torch.memory_format) -> list[Tensor | None]:
    torch.manual_seed(step)
    return [torch.randn(5, 4, 3, 3).contiguous(memory_format=order), torch.randn(7, 4), None, torch.randn(7, 4)]


def test_a_parameter_with_gaps_is_refused_and_not_lost() -> None:
    weight = nn.Parameter(torch.ones(4, 6)[:, ::2])
    weight.grad = torch.ones(4, 3)
    with pytest.raises(CodoError, match="gaps in memory"):
        FusedSGD([weight], lr=0.5).step()


def walk(optimizer: torch.optim.Optimizer, order: torch.memory_format, steps: range) -> list[Tensor]:
    own = optimizer.param_groups[0]["params"]
    for step in steps:
        for parameter, gradient in zip(own, gradients(step, order), strict=True):
            parameter.grad = gradient
        optimizer.step()
    return [p.detach().clone() for p in own]


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("order", [torch.channels_last, torch.contiguous_format])
def test_it_is_torchs_sgd(settings: dict[str, Any], order: torch.memory_format) -> None:
    plain = walk(torch.optim.SGD(parameters(), lr=0.1, foreach=False, **settings), order, range(4))
    fused = walk(FusedSGD(parameters(), lr=0.1, **settings), order, range(4))
    for expected, found in zip(plain, fused, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_the_state_goes_from_torchs_to_it_and_back() -> None:
    settings, order = SETTINGS[0] | {"lr": 0.1}, torch.channels_last
    expected = walk(FusedSGD(parameters(), **settings), order, range(6))
    own = parameters()
    optimizers: list[torch.optim.SGD] = [
        FusedSGD(own, **settings),
        torch.optim.SGD(own, **settings),
        FusedSGD(own, **settings),
    ]
    for i, optimizer in enumerate(optimizers):
        if i:
            optimizer.load_state_dict(copy.deepcopy(optimizers[i - 1].state_dict()))
            optimizer.param_groups[0]["fused"] = i != 1  # torch's own would go on with the fused kernel
        found = walk(optimizer, order, range(2 * i, 2 * i + 2))
    for a, b in zip(expected, found, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-6, atol=1e-6)


def test_a_momentum_that_lies_otherwise_is_put_in_order() -> None:
    settings, order = SETTINGS[0] | {"lr": 0.1}, torch.channels_last
    expected = walk(FusedSGD(parameters(), **settings), order, range(4))
    own = parameters()
    optimizer = FusedSGD(own, **settings)
    walk(optimizer, order, range(2))
    optimizer.state[own[0]]["momentum_buffer"] = optimizer.state[own[0]]["momentum_buffer"].contiguous()
    assert torch.equal(walk(optimizer, order, range(2, 4))[0], expected[0])


def test_nothing_is_copied_in_channels_last() -> None:
    optimizer = FusedSGD(parameters(), **SETTINGS[0], lr=0.1)
    walk(optimizer, torch.channels_last, range(2))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        optimizer.param_groups[0]["params"][3].grad = None
        optimizer.step()
    assert not {"aten::copy_", "aten::clone"} & {event.key for event in profile.key_averages()}
