"""Checkpoints: the same state back, nothing executed, an older one never harmed."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from codo.errors import CodoError
from codo.runs.checkpoint import load_checkpoint, save_checkpoint


def test_round_trip(tmp_path: Path) -> None:
    file = tmp_path / "checkpoint.pt"
    weights = torch.randn(3, 4, dtype=torch.float64).to(torch.bfloat16)
    save_checkpoint(file, {"step": 7, "lr": 0.1, "seen": ["a", "b"], "nested": {"w": weights, "none": None, 3: True}})
    state = load_checkpoint(file)
    assert torch.equal(state["nested"].pop("w"), weights)
    assert state == {"step": 7, "lr": 0.1, "seen": ["a", "b"], "nested": {"none": None, 3: True}}


def test_an_optimizer_goes_on_where_it_was(tmp_path: Path) -> None:
    def stepped(state: dict[str, Any] | None) -> tuple[torch.Tensor, dict[str, Any]]:
        weight = torch.nn.Parameter(torch.ones(2))
        optimizer = torch.optim.SGD([weight], 0.1, momentum=0.9)
        if state:
            optimizer.load_state_dict(state)
        weight.grad = torch.ones(2)
        optimizer.step()
        return weight.detach(), optimizer.state_dict()

    _, state = stepped(None)
    save_checkpoint(tmp_path / "c", {"optimizer": state})
    resumed = stepped(load_checkpoint(tmp_path / "c")["optimizer"])[0]
    assert torch.equal(resumed, stepped(state)[0])
    assert not torch.equal(resumed, stepped(None)[0])


def test_a_newer_checkpoint_replaces_the_older(tmp_path: Path) -> None:
    for step in (1, 2):
        save_checkpoint(tmp_path / "c", {"step": step})
    assert load_checkpoint(tmp_path / "c") == {"step": 2}
    assert list(tmp_path.iterdir()) == [tmp_path / "c"]


@pytest.mark.parametrize("limit", [0, 1000, 300_000])
def test_a_full_disk_is_an_error_and_the_older_checkpoint_stays(tmp_path: Path, full_disk: Any, limit: int) -> None:
    file = tmp_path / "checkpoint.pt"
    save_checkpoint(file, {"step": 1})
    with (
        full_disk(limit),
        pytest.raises(CodoError, match=r"cannot write .*checkpoint\.pt: File too large; free some space") as raised,
    ):
        save_checkpoint(file, {"step": 2, "w": torch.zeros(100_000)})
    assert "\n" not in str(raised.value)
    assert load_checkpoint(file) == {"step": 1}
    assert list(tmp_path.iterdir()) == [file]


def test_an_absent_one_says_why(tmp_path: Path) -> None:
    with pytest.raises(CodoError, match=r"no checkpoint at .*absent\.pt: without it the run cannot go on"):
        load_checkpoint(tmp_path / "absent.pt")


@pytest.mark.parametrize("keep", [0.0, 0.02, 0.5, 0.99])
def test_a_truncated_one_is_named(tmp_path: Path, keep: float) -> None:
    file = tmp_path / "checkpoint.pt"
    save_checkpoint(file, {"w": torch.ones(1000)})
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * keep)])
    with pytest.raises(
        CodoError, match=r"cannot read the checkpoint .*checkpoint\.pt: it is cut off or not a checkpoint$"
    ) as raised:
        load_checkpoint(file)
    assert "\n" not in str(raised.value)


def test_another_kind_of_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "c").write_text("weights: none\n")
    with pytest.raises(CodoError, match="cannot read the checkpoint"):
        load_checkpoint(tmp_path / "c")
    with pytest.raises(CodoError, match=r"cannot read the checkpoint .*: Is a directory"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("value", [[1, 2], torch.ones(3), None])
def test_what_is_no_dict_is_no_checkpoint(tmp_path: Path, value: Any) -> None:
    torch.save(value, tmp_path / "c")
    with pytest.raises(CodoError, match="is not a codo checkpoint"):
        load_checkpoint(tmp_path / "c")


@pytest.mark.parametrize("writer", ["torch", "pickle"])
def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path: Path, writer: str) -> None:
    file, ran = tmp_path / "checkpoint.pt", tmp_path / "ran"
    bomb = type("Bomb", (), {"__reduce__": lambda _: (os.mkdir, (str(ran),))})()
    if writer == "torch":
        torch.save({"step": 1, "bomb": bomb}, file)
    else:
        file.write_bytes(pickle.dumps({"step": 1, "bomb": bomb}, protocol=2))
    with pytest.raises(CodoError, match="cannot read the checkpoint"):
        load_checkpoint(file)
    assert not ran.exists()
    torch.load(file, weights_only=False) if writer == "torch" else pickle.loads(file.read_bytes())
    assert ran.exists()  # the bomb is a real one


def test_a_broken_checkpoint_is_told_without_advice_to_run_what_is_in_it(tmp_path):
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(b"garbage")
    with pytest.raises(CodoError, match="cut off or not a checkpoint") as raised:
        load_checkpoint(path)
    assert "weights_only" not in str(raised.value)
