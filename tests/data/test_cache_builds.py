"""How a cache is made and kept: resumed, shared, in memory, checked, evicted."""

from __future__ import annotations

import errno
import fcntl
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from codo.cli.cache import cache_command
from codo.data import cache as module
from codo.data import pool_file
from codo.data.cache import ImagePool, memory_folder
from codo.data.cache_care import Entry, clear, entries, verify
from codo.data.images import ImageError, list_images
from codo.errors import CodoError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Twenty pictures, the third one broken; and a cache and memory of this test's own."""
    monkeypatch.setenv("CODO_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(20):
        Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(folder / f"{i:02d}.png")
    (folder / "02.png").write_bytes(b"broken")
    return folder


@pytest.fixture
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in the place of /dev/shm."""
    (tmp_path / "shm").mkdir()
    monkeypatch.setattr(module, "MEMORY", tmp_path / "shm")
    return memory_folder()


def build(folder: Path, **options: Any) -> ImagePool:
    return ImagePool.build(list_images(folder), **{"square": 16, "cache": "disk"} | options)


def files() -> list[str]:
    return sorted(entry.file.suffix for entry in entries())


def sums(pool: ImagePool) -> list[int]:
    return [int(image.sum()) for image in pool]


def test_what_will_be_taken_is_said_beforehand(folder: Path) -> None:
    told: list[Any] = []
    build(folder, say=told.append, progress=lambda done, total: told.append(done))
    assert told[0].startswith("20 images, 0.0 MiB on disk, ")
    assert told[1:] == list(range(1, 21))
    told.clear()
    build(folder, short_side=20, square=None, say=told.append)
    assert told[0].startswith("20 images, about 0.0 MiB on disk, ")


class Killed(BaseException):
    """As good as a signal: no handler for errors sees it."""


def stop_at(count: int) -> Any:
    def progress(done: int, total: int) -> None:
        if done == count:
            raise Killed

    return progress


@pytest.mark.parametrize("damage", ["none", "half a record", "a flipped bit", "not a cache"])
def test_a_killed_build_goes_on(folder: Path, damage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = sums(build(folder, cache="ram"))
    with pytest.raises(Killed):
        build(folder, progress=stop_at(12))
    (entry,) = entries()
    assert entry.file.suffix == ".partial"
    content = bytearray(entry.file.read_bytes())
    record = 4 + 4 + 4 + 8 + 16 + 4 + 16 * 16 * 3
    kept = {"none": 12, "half a record": 11, "a flipped bit": 10, "not a cache": 0}[damage]
    if damage == "half a record":
        del content[-50:]
    elif damage == "a flipped bit":
        content[-record - 5] ^= 1  # in the last but one
    elif damage == "not a cache":
        content[0] ^= 1
    entry.file.write_bytes(content)
    told: list[str] = []
    done: list[int] = []
    pool = build(folder, say=told.append, progress=lambda n, _: done.append(n))
    assert done == list(range(kept + 1, 21))
    assert (f"going on after {kept} images of an earlier build" in told) == (kept > 0)
    assert sums(pool) == wanted
    assert [path.name for path, _ in pool.broken] == ["02.png"]
    assert files() == [".pool"]
    assert verify(entries()[0].file)[0]


BUILDER = """
import sys, time
from pathlib import Path
from codo.data.cache import ImagePool
from codo.data.images import list_images
def progress(done, total):
    if done == 5:
        print("at 5", flush=True)
        time.sleep(float(sys.argv[2]))
print(len(ImagePool.build(list_images(Path(sys.argv[1])), square=16, cache="disk", progress=progress)), flush=True)
"""


@pytest.mark.parametrize("end", ["finishes", "is killed"])
def test_a_second_process_waits_for_the_first_or_takes_over(folder: Path, end: str) -> None:
    """The second decodes nothing if the first finishes, and the rest if it is killed while it is waited for."""
    pause = "1.5" if end == "finishes" else "60"
    with subprocess.Popen([sys.executable, "-c", BUILDER, str(folder), pause], stdout=subprocess.PIPE) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == b"at 5\n"
        told: list[str] = []

        def say(text: str) -> None:
            told.append(text)
            if "waiting" in text and end == "is killed":
                first.send_signal(signal.SIGKILL)

        done: list[int] = []
        pool = build(folder, say=say, progress=lambda n, _: done.append(n))
        assert "another process is building it; waiting for it" in told
        assert len(pool) == 19
        assert done == ([] if end == "finishes" else list(range(6, 21)))
        assert first.wait() == (0 if end == "finishes" else -signal.SIGKILL)
    assert files() == [".pool"]


def test_who_waits_is_not_kept_by_who_reads(folder: Path) -> None:
    """The finished file is the unfinished one renamed, and its builder at once holds it for as long as it runs."""
    partial = folder / "x.partial"
    told: list[str] = []
    with partial.open("w") as held, ThreadPoolExecutor(1) as pool:
        fcntl.flock(held, fcntl.LOCK_SH)
        waiting = pool.submit(pool_file.claim, partial, told.append)
        while not told:
            time.sleep(0.01)
        partial.rename(folder / "x.pool")
        try:
            assert waiting.result(timeout=20) is None
        finally:
            fcntl.flock(held, fcntl.LOCK_UN)


def test_what_cannot_be_read_now_stops_the_build_and_is_read_when_it_can_be(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be sound; as a broken image it would be left out for good."""
    real = module.read_content

    def fails(source: Any) -> bytes:
        if source.name == "07.png":
            raise ImageError(f"{source}: Stale file handle") from OSError(errno.ESTALE, "Stale file handle")
        return real(source)

    with monkeypatch.context() as patch:
        patch.setattr(module, "read_content", fails)
        with pytest.raises(CodoError, match=r"07\.png: Stale file handle; see that it can be read, or take it away"):
            build(folder)
    assert files() == [".partial"]
    told: list[str] = []
    assert len(build(folder, say=told.append)) == 19
    assert "going on after 7 images of an earlier build" in told


def test_what_fails_leaves_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pool_file.os, "fsync", full)
    with pytest.raises(CodoError, match="No space left on device; free some space"):
        build(folder)
    assert "No space left" in (build(folder, cache="auto").note or "")
    assert files() == []


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_memory_is_shared_with_workers(folder: Path, memory: Path, method: str) -> None:
    pool = build(folder, cache="ram")
    (file,) = memory.iterdir()
    assert pool.cached
    with ProcessPoolExecutor(1, multiprocessing.get_context(method)) as workers:
        assert workers.submit(sums, pool).result() == sums(pool)
    assert file.exists()  # a worker's end does not take it away
    assert build(folder, cache="ram", progress=stop_at(1)).paths == pool.paths  # nothing is decoded twice


def test_memory_is_freed_with_the_last_user(folder: Path, memory: Path) -> None:
    first = build(folder, cache="ram")
    second = build(folder, cache="ram")
    other = build(folder, cache="ram", square=8)
    assert len(list(memory.iterdir())) == 2
    del first
    assert len(list(memory.iterdir())) == 2
    assert len(sums(second)) == 19
    del second, other
    assert list(memory.iterdir()) == []


def test_memory_of_killed_processes_is_swept(folder: Path, memory: Path) -> None:
    with pytest.raises(Killed):
        build(folder, cache="ram", square=8, progress=stop_at(3))
    (memory / "left.pool").write_bytes(b"x")
    held = build(folder, cache="ram", square=12)
    pool = build(folder, cache="ram")
    assert len(list(memory.iterdir())) == 2
    assert len(pool) == len(held) == 19


def test_memory_that_does_not_suffice_is_said(
    folder: Path, memory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_available_memory", lambda: 1000)
    with pytest.raises(CodoError, match=r"run\.cache=ram: a cache would take .* are free in .*--shm-size, or use disk"):
        build(folder, cache="ram")
    shutil.rmtree(memory)
    memory.symlink_to(tmp_path)
    with pytest.raises(CodoError, match="is not your own folder"):
        build(folder, cache="ram")
    monkeypatch.setattr(module, "MEMORY", tmp_path / "absent")
    with pytest.raises(CodoError, match=r"run\.cache=ram: .*: No such file.*use disk"):
        build(folder, cache="ram")


def test_disk_that_does_not_suffice_is_said_at_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = module.shutil.disk_usage(folder)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage._replace(free=5000))
    with pytest.raises(CodoError, match=r"run\.cache=disk: .* are free in .*; set CODO_CACHE to another disk"):
        build(folder, progress=stop_at(1))


@pytest.mark.parametrize("where", ["pixels", "index", "tail"])
def test_verify_notices_a_flipped_bit(folder: Path, where: str) -> None:
    build(folder)
    (entry,) = entries()
    assert verify(entry.file) == (True, "20 images whole, and equal to their sources")
    content = bytearray(entry.file.read_bytes())
    end, _ = pool_file.read_index(entry.file)  # type: ignore[misc]
    content[{"pixels": 1000, "index": end + 300, "tail": -9}[where]] ^= 1
    entry.file.write_bytes(content)
    good, text = verify(entry.file)
    assert not good
    assert "damaged" in text


def test_verify_notices_other_sources(folder: Path) -> None:
    build(folder)
    (entry,) = entries()
    picture, before = folder / "05.png", os.stat(folder / "05.png")
    content = bytearray(picture.read_bytes())
    content[-20] ^= 1
    picture.write_bytes(content)
    os.utime(picture, ns=(before.st_atime_ns, before.st_mtime_ns))  # as a copy tool that keeps times does
    good, text = verify(entry.file)
    assert not good
    assert text.startswith("1 sources have other content")
    assert text.endswith("05.png")
    picture.unlink()
    assert verify(entry.file)[0]
    assert "no run will use it" in verify(entry.file)[1]


def age(entry: Entry, days: float) -> None:
    then = time.time() - 86400 * days
    os.utime(entry.file, (then, then))


@pytest.fixture
def three(folder: Path) -> Path:
    """Caches of 8, 16 and 32 pixels a side, last used 0, 5 and 10 days ago; none is held."""
    for side in (8, 16, 32):
        build(folder, square=side)
    for entry, days in zip(sorted(entries(), key=lambda e: e.bytes), (0, 5, 10), strict=True):
        age(entry, days)
    return folder


def run(*arguments: str) -> str:
    result = CliRunner().invoke(cache_command, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


def test_list_and_clear(three: Path) -> None:
    lines = run("list").splitlines()
    assert len(lines) == 4
    assert "used today" in lines[0]
    assert f"19 images, 8 x 8 pixels, of {three}" in lines[0]
    assert "used 10 days ago" in lines[2]
    assert lines[3].startswith("3 files")
    assert "removed 1 files" in run("clear", "--older-than", "7")
    assert "removed 0 files" in run("clear", "--older-than", "7")
    held = build(three, square=16)  # and so the latest used
    assert "in use" in run("list").splitlines()[0]
    assert "removed 1 files" in run("clear", "--keep-bytes", f"{entries()[0].bytes / 1024:.3f}k")
    assert run("clear").startswith("kept, a run uses it: ")
    assert files() == [".pool"]
    assert len(held) == 19
    del held
    assert "removed 1 files" in run("clear")
    assert run("list").startswith("0 files")


def test_the_longest_unused_go_first(three: Path) -> None:
    sizes = sorted(entry.bytes for entry in entries())
    removed, used = clear(entries(), keep_bytes=sizes[0] + sizes[1])
    assert ([entry.bytes for entry in removed], used) == ([sizes[2]], [])
    assert [round(entry.idle_days) for entry in entries()] == [0, 5]


def test_verify_command(three: Path) -> None:
    assert run("verify").count("ok ") == 3
    file = entries()[0].file
    content = bytearray(file.read_bytes())
    content[100] ^= 1
    file.write_bytes(content)
    with pytest.raises(CodoError, match="1 caches are damaged; remove them with: codo cache verify --remove"):
        CliRunner().invoke(cache_command, ["verify"], catch_exceptions=False)
    assert "removed 1 files" in run("verify", "--remove")
    assert run("verify").count("ok ") == 2


def test_sizes_are_refused_in_words(three: Path) -> None:
    result = CliRunner().invoke(cache_command, ["clear", "--keep-bytes", "ten"])
    assert result.exit_code == 2
    assert "write bytes, or e.g. 500M or 1.5G" in result.output
