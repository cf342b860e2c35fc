"""Who holds a run folder: one process at a time, to its end or death, and nothing is left there."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import signal
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from codo.runs.lock import Held, Lock, held, is_held


def names(folder: Path) -> list[str]:
    return [file.name for file in folder.iterdir()]


@pytest.mark.parametrize("fails", [False, True])
def test_a_run_folder_is_held_until_its_end_or_failure_and_no_file_is_left(tmp_path: Path, fails: bool) -> None:
    said = rf"^{tmp_path} is in use \(host .+, process {os.getpid()}, since 2.+\); wait for it, or name another folder$"
    with suppress(ZeroDivisionError), held(tmp_path):
        for _ in range(2):  # who is refused leaves it held
            with pytest.raises(Held, match=said), held(tmp_path):
                pass
            assert names(tmp_path) == ["lock"]
        assert not fails or 1 / 0
    assert names(tmp_path) == []


def test_a_process_that_writes_nothing_holds_nothing(tmp_path: Path) -> None:
    with held(None), held(tmp_path):
        pass


def test_what_a_killed_process_left_is_taken_over(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text('{"host": "gone", "pid": 1, "since": "then"}')
    with held(tmp_path), pytest.raises(Held, match=rf"process {os.getpid()}"):
        Lock(tmp_path)
    assert names(tmp_path) == []


def test_a_lock_file_that_is_removed_while_it_is_taken_is_taken_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As its holder does at its end, between another's opening and locking."""
    flock, calls = fcntl.flock, []

    def late(descriptor: int, operation: int) -> None:
        if not calls:
            (tmp_path / "lock").unlink()
        calls.append(descriptor)
        flock(descriptor, operation)

    monkeypatch.setattr("codo.runs.lock.fcntl.flock", late)
    with held(tmp_path):
        assert len(calls) == 2
        assert is_held(tmp_path)


def test_the_lock_of_a_folder_that_was_made_anew_is_not_removed(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with held(folder):
        shutil.rmtree(folder)
        other = Lock(folder)
    assert is_held(folder)
    other.leave()


def test_a_loader_worker_that_outlives_a_killed_run_does_not_hold_it(tmp_path: Path) -> None:
    run, ready = tmp_path / "run", tmp_path / "ready"
    pid = os.fork()
    if pid == 0:
        with held(run):
            worker = os.fork()
            if worker == 0:
                time.sleep(60)
                os._exit(0)
            (tmp_path / "pid").write_text(str(worker))
            ready.touch()
            time.sleep(60)
        os._exit(0)
    until = time.monotonic() + 30
    while not ready.exists():
        assert time.monotonic() < until
        time.sleep(0.01)
    worker = int((tmp_path / "pid").read_text())
    try:
        assert is_held(run)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.kill(worker, 0)  # it is there
        Lock(run).leave()
    finally:
        os.kill(worker, signal.SIGKILL)


def test_a_fork_that_leaves_the_block_takes_nothing_away(tmp_path: Path) -> None:
    with ExitStack() as block:
        block.enter_context(held(tmp_path))
        pid = os.fork()
        if pid == 0:
            block.close()
            os._exit(0)
        os.waitpid(pid, 0)
        assert is_held(tmp_path)


def test_without_locks_a_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("codo.runs.lock.fcntl.flock", none)
    with held(tmp_path), held(tmp_path):
        pass
    assert [*tmp_path.iterdir()] == []


def test_on_a_full_disk_it_is_held_without_a_note(tmp_path: Path, full_disk: Any) -> None:
    with full_disk(0), held(tmp_path), pytest.raises(Held, match=r"host unknown, process unknown"):
        Lock(tmp_path)
