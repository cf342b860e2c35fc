"""Packed lists of images behave as lists of paths, and cost little."""

from __future__ import annotations

import os
import pickle
import tracemalloc
from pathlib import Path

import pytest

from codo.data.files import ABSENT, ImageFiles, relative_names


def test_they_are_a_sequence_of_paths() -> None:
    files = ImageFiles(Path("photos"), ["a.jpg", "cats/b.jpg", "über.png", "c.jpg"])
    paths = [Path("photos") / name for name in ("a.jpg", "cats/b.jpg", "über.png", "c.jpg")]
    assert files == paths
    assert paths == files
    assert files != paths[:3]
    assert files[-1] == paths[-1]
    assert files[1:3] == paths[1:3]
    assert files[::-1] == paths[::-1]
    assert files.take([2, 0]) == [paths[2], paths[0]]
    assert pickle.loads(pickle.dumps(files)) == paths
    assert paths[1] in files
    for index in (4, -5):
        with pytest.raises(IndexError):
            files[index]
    assert not ImageFiles.of([])
    assert ImageFiles.of(paths) == paths
    assert ImageFiles.of([Path("/a/b.jpg"), Path("c.jpg")]) == [Path("/a/b.jpg"), Path("c.jpg")]
    assert ImageFiles.of([Path("b.jpg")]) == [Path("b.jpg")]
    assert ImageFiles.unpack(files.pack()) == [Path.cwd() / path for path in paths]


def test_names_that_are_no_text_survive(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.jpg")
    files = ImageFiles(tmp_path, [name])
    assert files[0] == tmp_path / name
    assert ImageFiles.unpack(files.pack()) == files


def test_states_are_looked_up_once(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"12345")
    os.utime(tmp_path / "a.jpg", ns=(7, 9))
    files = ImageFiles(tmp_path, ["a.jpg", "gone.jpg"])
    assert files.states().tolist() == [[5, 9], [ABSENT, ABSENT]]
    (tmp_path / "a.jpg").unlink()
    assert files.states().tolist()[0] == [5, 9]


def test_relative_names_are_of_the_deepest_folder() -> None:
    assert relative_names([Path("x/y/a.jpg"), Path("x/z/b.jpg")]) == ["y/a.jpg", "z/b.jpg"]
    assert relative_names(ImageFiles(Path("x"), ["y/a.jpg", "y/b.jpg"])) == ["a.jpg", "b.jpg"]
    assert relative_names([]) == []


def test_a_hundred_thousand_cost_a_few_mib() -> None:
    tracemalloc.start()
    files = ImageFiles(Path("imagenet"), (f"n{i // 1000:08d}/n{i // 1000:08d}_{i}.JPEG" for i in range(100_000)))
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 5 * 2**20  # paths would take 35
    assert files[99_999].name == "n00000099_99999.JPEG"
