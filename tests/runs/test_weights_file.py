"""Weights files: the same tensors and strings back; a bad file is named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from codo.errors import CodoError
from codo.runs.weights_file import read_metadata, read_weights, save_weights


def test_round_trip_with_metadata(tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    state = {
        "w": torch.randn(2, 3),
        "half": torch.randn(4).to(torch.bfloat16),
        "count": torch.tensor(7),
        "empty": torch.zeros(0, 3),
        "grad": torch.nn.Parameter(torch.randn(2)),
    }
    save_weights(file, state, {"backbone": "resnet10t", "note": "größe"})
    back, metadata = read_weights(file)
    assert metadata == read_metadata(file) == {"backbone": "resnet10t", "note": "größe"}
    assert set(back) == set(state)
    for name, tensor in state.items():
        assert back[name].dtype == tensor.dtype
        assert torch.equal(back[name], tensor)
        assert not back[name].requires_grad
    assert set(load_file(file)) == set(state)  # other tools read it too
    assert list(tmp_path.iterdir()) == [file]


def test_strided_and_shared_memory_are_written_as_they_look(tmp_path: Path) -> None:
    base = torch.arange(120.0).reshape(2, 3, 4, 5)
    state = {
        "last": base.to(memory_format=torch.channels_last),
        "transposed": base[0, 0].T,
        "slice": base[:, 1],
        "shared": base,
        "again": base,
    }
    save_weights(tmp_path / "w", state, {})
    back, _ = read_weights(tmp_path / "w")
    assert set(back) == set(state)
    assert all(torch.equal(back[name], tensor) for name, tensor in state.items())


def test_saving_leaves_the_network_as_it_was(tmp_path: Path) -> None:
    network = torch.nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    save_weights(tmp_path / "w", network.state_dict(keep_vars=True), {})
    assert network.weight.requires_grad
    assert network.weight.is_contiguous(memory_format=torch.channels_last)


def test_a_file_of_another_tool_has_no_metadata(tmp_path: Path) -> None:
    save_file({"w": torch.ones(2)}, tmp_path / "w")
    back, metadata = read_weights(tmp_path / "w")
    assert metadata == read_metadata(tmp_path / "w") == {}
    assert torch.equal(back["w"], torch.ones(2))


@pytest.mark.parametrize("limit", [0, 1000])
def test_a_full_disk_is_an_error_and_the_older_file_stays(tmp_path: Path, full_disk: Any, limit: int) -> None:
    file = tmp_path / "weights.safetensors"
    save_weights(file, {"w": torch.ones(2)}, {"version": "old"})
    with full_disk(limit), pytest.raises(CodoError, match=r"cannot write .*weights\.safetensors: .*free some space"):
        save_weights(file, {"w": torch.zeros(100_000)}, {"version": "new"})
    assert read_metadata(file) == {"version": "old"}
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("read", [read_weights, read_metadata])
def test_an_absent_one_is_named(tmp_path: Path, read: Callable[[Path], Any]) -> None:
    with pytest.raises(CodoError, match=r"no weights file at .*absent\.safetensors"):
        read(tmp_path / "absent.safetensors")
    with pytest.raises(CodoError, match="no weights file at"):
        read(tmp_path)


@pytest.mark.parametrize("read", [read_weights, read_metadata])
@pytest.mark.parametrize("damage", ["empty", "header cut", "tensors cut", "one byte short", "text", "torch"])
def test_a_bad_one_is_named(tmp_path: Path, read: Callable[[Path], Any], damage: str) -> None:
    file = tmp_path / "weights.safetensors"
    save_weights(file, {"w": torch.ones(1000)}, {"a": "b"})
    content = file.read_bytes()
    torch.save({"w": torch.ones(1000)}, tmp_path / "torch.pt")
    file.write_bytes(
        {
            "empty": b"",
            "header cut": content[:20],
            "tensors cut": content[:2000],
            "one byte short": content[:-1],
            "text": b"no weights, but a text that is long enough\n" * 9,
            "torch": (tmp_path / "torch.pt").read_bytes(),
        }[damage]
    )
    with pytest.raises(CodoError, match=r"weights\.safetensors is not a whole safetensors file: ."):
        read(file)
