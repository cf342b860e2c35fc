"""Files that are whole or absent: write beside, then rename."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from codo.errors import CodoError


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` when the block ends well.

    If the block fails, or the disk fills up, the temporary file is removed and what stood at `path` stays.

    Args:
        path: the file to be. Its folder is created.

    Raises:
        CodoError: the file cannot be written (disk full, no permission); says which.
    """
    path = Path(path)
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp gives 0600; a run folder is shared like any other file
        os.replace(temporary, path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def cannot_write(path: Path, error: OSError) -> CodoError:
    """Say why `path` cannot be written, and what helps."""
    if file := blocking_file(path):
        return CodoError(f"cannot write {path}: {file} is a file; choose another folder")
    return CodoError(f"cannot write {path}: {error.strerror or error}; free some space or choose another folder")


def blocking_file(path: Path) -> Path | None:
    """Find a file where `path` needs a folder above it."""
    # By os.path: pathlib's own raise where a name is too long.
    return next((above for above in path.parents if os.path.exists(above) and not os.path.isdir(above)), None)


def check_place(path: str | Path) -> None:
    """Refuse a file that cannot be written, before the work whose result it is to hold; nothing is left there.

    Raises:
        CodoError: no file can be made there, or a folder is there.
    """
    path = Path(path)
    if os.path.isdir(path):
        raise CodoError(f"cannot write {path}: it is a folder; name a file")
    try:
        there = next(above for above in path.parents if os.path.exists(above))
        with tempfile.NamedTemporaryFile(prefix=f".{path.name}.", suffix=".tmp", dir=there):
            pass
    except OSError as error:
        raise cannot_write(path, error) from error


def write_text(path: str | Path, text: str) -> None:
    """Write `text` as UTF-8, atomically; a file name's bytes that are no text (lone surrogates) as `\\udcff`."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically; `\\udcff` is JSON's own way, and comes back as it was."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")
