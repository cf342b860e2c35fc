"""Folders that are whole or absent, and where the cache is."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from codo.errors import CodoError
from codo.runs.caching import atomic_folder, cache_root


def write(path: Path | str, text: str = "new") -> None:
    with atomic_folder(path) as temporary:
        (temporary / "sub").mkdir()
        (temporary / "sub" / "a.txt").write_text(text)


def test_own_variable_wins_over_xdg_and_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("CODO_CACHE", "~/own")
    assert cache_root() == tmp_path / "own"
    monkeypatch.setenv("CODO_CACHE", "")  # set to nothing is not set
    assert cache_root() == tmp_path / "xdg" / "codo"
    monkeypatch.setenv("XDG_CACHE_HOME", "not/absolute")
    assert cache_root() == tmp_path / ".cache" / "codo"
    assert list(tmp_path.iterdir()) == []  # asking makes nothing


def test_no_home_says_which_variable_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("CODO_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(CodoError, match="set CODO_CACHE"):
        cache_root()


def test_the_home_of_nobody_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CODO_CACHE", "~no-such-user-here/cache")
    with pytest.raises(CodoError, match="set CODO_CACHE"):
        cache_root()


def test_a_folder_appears_whole_at_the_end_and_its_parents_are_made(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b"
    with atomic_folder(str(target)) as temporary:
        assert list(temporary.iterdir()) == []
        (temporary / "x").write_text("x")
        assert temporary.parent == target.parent  # a rename across file systems is not atomic
        assert not target.exists()
    assert list(target.parent.iterdir()) == [target]
    assert (target / "x").read_text() == "x"


def test_an_empty_folder_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    write(tmp_path / "a")
    assert list(tmp_path.iterdir()) == [tmp_path / "a"]
    assert (tmp_path / "a" / "sub" / "a.txt").read_text() == "new"


def test_a_link_to_an_empty_folder_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "sub" / "a.txt").read_text() == "new"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failure_midway_leaves_what_was_there_and_nothing_else(tmp_path: Path, error: type[BaseException]) -> None:
    (tmp_path / "empty").mkdir()

    def fail(name: str) -> None:
        with atomic_folder(tmp_path / name) as temporary:
            (temporary / "sub").mkdir()
            (temporary / "sub" / "half").write_text("half")
            raise error("why")

    for name in ("absent", "empty"):
        with pytest.raises(error, match=r"^why$"):
            fail(name)
    assert list(tmp_path.iterdir()) == [tmp_path / "empty"]
    assert list((tmp_path / "empty").iterdir()) == []


def test_a_full_disk_is_said_with_the_path(tmp_path: Path, full_disk: Any) -> None:
    with full_disk(1000), pytest.raises(CodoError, match=r"^cannot write .*set: File too large; free some space"):
        write(tmp_path / "set", "x" * 2000)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_holds_something_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "precious").write_text("old")
    with pytest.raises(CodoError, match="is not empty"), atomic_folder(tmp_path / "a"):
        pytest.fail("the work began")
    assert list(tmp_path.iterdir()) == [tmp_path / "a"]
    assert (tmp_path / "a" / "precious").read_text() == "old"


def test_a_folder_filled_meanwhile_by_another_is_not_overwritten(tmp_path: Path) -> None:
    target = tmp_path / "a"

    def race() -> None:
        with atomic_folder(target) as temporary:
            (temporary / "mine").touch()
            target.mkdir()
            (target / "theirs").write_text("first")

    with pytest.raises(CodoError, match="cannot write"):
        race()
    assert list(tmp_path.rglob("*")) == [target, target / "theirs"]


def test_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    with pytest.raises(CodoError, match="is a file"):
        write(tmp_path / "a")
    assert (tmp_path / "a").read_text() == "old"


def test_the_working_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CodoError, match="the folder you are in"):
        write(".")
    write("below")
    assert (tmp_path / "below" / "sub" / "a.txt").is_file()


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o755), (0o007, 0o770)])
def test_folders_are_as_open_as_the_umask_says(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        write(tmp_path / "a")
        assert os.umask(umask) == umask  # reading the umask sets it; it is put back
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == mode
