"""Who holds a folder: a file lock that a crash frees, with a note on who it is."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from codo.errors import CodoError

LOCK_FILE = "lock"
"""Of the file in the folder."""


class Lock:
    """A folder held by this process, and by the children that inherit `descriptor`, until the last of them ends.

    Args:
        folder: to hold; made if need be.

    Raises:
        Held: another process holds it.
        NoLocks: its file system has none.
        CodoError: it cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.file = folder / LOCK_FILE
        self.descriptor = _take(folder)
        while not self._is_there():  # it was removed between its opening and its locking
            self.leave()
            self.descriptor = _take(folder)
        self.note(os.getpid())

    def note(self, pid: int) -> None:
        """Write down who holds it: this host, process `pid`, since now."""
        told = {"host": socket.gethostname(), "pid": pid, "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        text = json.dumps(told | {"command": " ".join(sys.argv[1:])}).encode()
        with suppress(OSError):  # a full disk: it is held all the same
            os.ftruncate(self.descriptor, 0)
            os.pwrite(self.descriptor, text, 0)

    def leave(self) -> None:
        """Let go in this process alone: a child that inherited it holds it on."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
        self.descriptor = -1

    def remove(self) -> None:
        """Remove the file, while it is held, and let go; who has opened it by then finds that it is gone."""
        if self._is_there():
            with suppress(OSError):
                self.file.unlink()
        self.leave()

    def _is_there(self) -> bool:
        """Tell whether the open file is still the one at its path."""
        try:
            return os.path.samestat(os.fstat(self.descriptor), os.stat(self.file))
        except OSError:
            return False

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()


class Held(CodoError):
    """Another process holds the folder."""

    def __init__(self, folder: Path, holder: dict[str, str]) -> None:
        who = "host {host}, process {pid}, since {since}".format_map(
            {"host": "unknown", "pid": "unknown", "since": "unknown", **holder}
        )
        super().__init__(f"{folder} is in use ({who}); wait for it, or name another folder")


class NoLocks(CodoError):
    """The file system has no locks, as some network ones."""


@contextmanager
def held(folder: Path | None) -> Iterator[None]:
    """Hold a run folder while open, and leave no lock file; loader workers, which are forks, do not hold it on.

    Args:
        folder: of a run, held by one of its processes; None, in the others, is a no-op. Without locks, too.

    Raises:
        Held: another process holds it.
        CodoError: it cannot be written.

    Example:
        >>> with held(Path("runs/first")):  # doctest: +SKIP
        ...     RunFolder(Path("runs/first")).log({"step": 1})
    """
    try:
        lock = None if folder is None else Lock(folder)
    except NoLocks:
        lock = None
    if lock is None:
        yield
        return
    _of_runs.add(lock)
    try:
        yield
    finally:
        _of_runs.discard(lock)
        lock.remove()


_of_runs: set[Lock] = set()


def _leave_runs() -> None:
    """Let go of the run folders, in a fork: a loader worker may outlive a killed run by seconds."""
    while _of_runs:
        _of_runs.pop().leave()


os.register_at_fork(after_in_child=_leave_runs)


def is_held(folder: Path) -> bool:
    """Tell whether a process holds a folder."""
    try:
        Lock(folder).leave()
    except Held:
        return True
    return False


def _take(folder: Path) -> int:
    """Open and lock the file in a folder."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise CodoError(f"cannot write {folder}: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = _read(descriptor)
        os.close(descriptor)
        raise Held(folder, holder) from None
    except OSError as error:
        os.close(descriptor)
        (folder / LOCK_FILE).unlink(missing_ok=True)
        raise NoLocks(f"cannot lock {folder}: {error.strerror}; choose an --out on another disk") from error
    return descriptor


def _read(descriptor: int) -> dict[str, str]:
    try:
        return json.loads(os.pread(descriptor, 10_000, 0))
    except ValueError:  # its holder is just writing
        return {}
