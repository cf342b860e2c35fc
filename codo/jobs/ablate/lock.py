"""Who holds a folder: a file lock that a crash frees, with a note on who it is."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import sys
import time
from pathlib import Path

from codo.errors import CodoError


class Lock:
    """A folder held by this process, and by the children that inherit `descriptor`, until the last of them ends.

    Args:
        folder: to hold; made if need be.

    Raises:
        Held: another process holds it.
        CodoError: it cannot be written, or its file system has no locks.
    """

    def __init__(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise CodoError(f"cannot write {folder}: {error.strerror}") from error
        try:
            fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _read(self.descriptor)
            os.close(self.descriptor)
            raise Held(folder, holder) from None
        except OSError as error:  # some network file systems have no locks
            os.close(self.descriptor)
            raise CodoError(f"cannot lock {folder}: {error.strerror}; choose an --out on another disk") from error
        self.note(os.getpid())

    def note(self, pid: int) -> None:
        """Write down who holds it: this host, process `pid`, since now."""
        told = {"host": socket.gethostname(), "pid": pid, "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        text = json.dumps(told | {"command": " ".join(sys.argv[1:])}).encode()
        os.ftruncate(self.descriptor, 0)
        os.pwrite(self.descriptor, text, 0)

    def leave(self) -> None:
        """Let go in this process alone: a child that inherited it holds it on."""
        os.close(self.descriptor)

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
        super().__init__(f"{folder} is in use ({who}); wait for it, or choose another --out")
        self.who = who


def is_held(folder: Path) -> bool:
    """Tell whether a process holds a folder."""
    try:
        Lock(folder).leave()
    except Held:
        return True
    return False


def _read(descriptor: int) -> dict[str, str]:
    try:
        return json.loads(os.pread(descriptor, 10_000, 0))
    except ValueError:  # its holder is just writing
        return {}
