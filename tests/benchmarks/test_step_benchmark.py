"""benchmarks.step and benchmarks.memory: the sides do the same work, and the parts of a step are all of it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from benchmarks import memory, step


def test_codo_and_the_plain_step_compute_the_same() -> None:
    config = step.config_of(small=True)
    pairs = step.check_same_arithmetic(config, step.made_up_views(config))
    assert len({round(loss, 3) for loss, _ in pairs}) == len(pairs)  # the weights move
    assert pairs[0][0] == pytest.approx(pairs[0][1], rel=1e-5)


def test_the_same_arithmetic_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    config = step.config_of(small=True)
    views = step.made_up_views(config)
    monkeypatch.setattr(step.Plain, "update_key", lambda self: [p.zero_() for p in self.key.parameters()])
    with pytest.raises(AssertionError, match="the losses differ"):
        step.check_same_arithmetic(config, views)


def test_operations_are_counted_forward_and_backward() -> None:
    layer, rows = nn.Linear(8, 4, bias=False), torch.ones(3, 8)
    # Backward: the gradient of the weight; the rows want none.
    assert step.operations(lambda: layer(rows).sum().backward()) == 2 * (2 * 3 * 8 * 4)


def test_the_parts_of_a_step_are_all_of_it() -> None:
    config = step.config_of(small=True)
    codo = step.Codo(config, step.made_up_views(config), "fp32")
    before = torch.Tensor.backward
    parts = step.Parts(codo).measure(2)
    assert torch.Tensor.backward is before
    whole = parts.pop("step")
    assert min(parts.values()) > 0
    assert {"moving average", "loss", "queue", "SGD"} < parts.keys()
    assert 0.5 * whole < sum(parts.values()) < whole


def test_the_small_form_prints_every_row(capsys: pytest.CaptureFixture[str]) -> None:
    step.main(["--small", "--threads", "1"])
    printed = capsys.readouterr().out
    for work in ("train step", "lightly in bf16", "bf16 peak", "moving average"):
        assert work in printed


def test_every_preset_has_a_run_whose_memory_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert memory.fields_of("codo", 8, small=False)["optim.batch_size"] == memory.FULL_SCALE_BATCH
    assert memory.fields_of("codo-small", 8, small=False)["data.limit"] == 8 * 32
    found = memory.measure("codo-small", 2, small=True)
    assert 200 < found["predicted_mib"] < 4000
    assert found["ratio"] == pytest.approx(1, abs=0.1)
    assert "codo-small" in capsys.readouterr().out
