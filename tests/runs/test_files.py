"""Files: whole or absent, and the old one stays until the new one is whole."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from codo.errors import CodoError
from codo.runs.files import atomic_path, check_place, write_json, write_text


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "a.txt"
    file.write_text("old")
    return file


def only(file: Path, text: str) -> bool:
    return [*file.parent.iterdir()] == [file] and file.read_text() == text


def test_the_old_file_stands_until_the_block_ends(file: Path) -> None:
    with atomic_path(file) as temporary:
        assert temporary.parent == file.parent  # a rename across file systems is not atomic
        temporary.write_text("new")
        assert file.read_text() == "old"
        node = temporary.stat().st_ino
    assert only(file, "new")
    assert file.stat().st_ino == node  # renamed: a copy would be half there for a moment


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, CodoError])
def test_a_failure_midway_leaves_the_old_file_alone_and_is_not_disguised(
    file: Path, error: type[BaseException]
) -> None:
    def fail() -> None:
        with atomic_path(file) as temporary:
            temporary.write_text("half")
            raise error("why")

    with pytest.raises(error, match=r"^why$"):
        fail()
    assert only(file, "old")


def test_a_failure_midway_makes_no_file(tmp_path: Path) -> None:
    def fail() -> None:
        with atomic_path(tmp_path / "new.txt") as temporary:
            temporary.write_text("half")
            raise ValueError

    with pytest.raises(ValueError, match=r"^$"):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_said_in_one_line_with_the_path(file: Path, full_disk: Any) -> None:
    with full_disk(1000), pytest.raises(CodoError, match=r"^cannot write .*a\.txt: File too large; free some space"):
        write_text(file, "x" * 2000)
    assert only(file, "old")


def test_a_disk_that_fills_up_at_the_sync_leaves_the_old_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(CodoError, match="No space left on device"):
        write_text(file, "new")
    assert only(file, "old")


def test_the_content_is_synced_before_the_rename(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, int]] = []
    sync = os.fsync

    def spy(handle: int) -> None:
        seen.append((file.read_text(), os.fstat(handle).st_size))
        sync(handle)

    monkeypatch.setattr(os, "fsync", spy)
    write_text(file, "new text")
    assert seen == [("old", 8)]


def test_folders_on_the_way_are_made(tmp_path: Path) -> None:
    write_text(str(tmp_path / "a" / "b" / "c.txt"), "x")
    assert (tmp_path / "a" / "b" / "c.txt").read_text() == "x"


def test_a_file_where_a_folder_should_be_is_an_error(file: Path) -> None:
    for below in (file / "below.txt", file / "a" / "below.txt"):
        for write in (lambda path: write_text(path, "x"), check_place):
            with pytest.raises(CodoError, match=rf"^cannot write {below}: {file} is a file; choose another folder$"):
                write(below)


def test_a_place_is_checked_before_the_work(file: Path) -> None:
    check_place(file)
    check_place(file.parent / "new" / "b.txt")
    assert only(file, "old")
    with pytest.raises(CodoError, match="is a folder; name a file"):
        check_place(file.parent)
    with pytest.raises(CodoError, match="File name too long; free some space or choose another folder"):
        check_place(file.parent / ("x" * 300))


def test_a_folder_at_the_path_is_an_error_and_stays(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(CodoError, match="cannot write"):
        write_text(tmp_path / "a", "x")
    assert list(tmp_path.iterdir()) == [tmp_path / "a"]
    assert (tmp_path / "a").is_dir()


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o007, 0o660)])
def test_files_are_as_readable_as_the_umask_says(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        write_text(tmp_path / "a", "x")
        assert os.umask(umask) == umask  # reading the umask sets it; it is put back
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == mode


def test_text_is_utf8_whatever_the_locale(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "Größe 像")
    assert (tmp_path / "a").read_bytes() == "Größe 像".encode()


def test_bytes_of_a_file_name_that_are_no_text_come_back(tmp_path: Path) -> None:
    name = b"caf\xe9 \xc3\xa9.jpg".decode("utf-8", "surrogateescape")
    write_json(tmp_path / "a", {"unreadable": [name], name: 1})
    assert json.loads((tmp_path / "a").read_text(encoding="utf-8")) == {"unreadable": [name], name: 1}
    write_text(tmp_path / "a", name)
    assert (tmp_path / "a").read_bytes() == b"caf\\udce9 \xc3\xa9.jpg"


def test_json_is_readable_by_people_and_by_json(tmp_path: Path) -> None:
    write_json(tmp_path / "a", {"b": [1, None], "a": "é"})
    text = (tmp_path / "a").read_text(encoding="utf-8")
    assert text == '{\n  "b": [\n    1,\n    null\n  ],\n  "a": "é"\n}\n'
    assert json.loads(text) == {"b": [1, None], "a": "é"}


def test_what_json_cannot_say_leaves_the_old_file(file: Path) -> None:
    with pytest.raises(TypeError):
        write_json(file, {"a": 1, "b": object()})
    assert only(file, "old")
