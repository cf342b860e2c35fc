"""Folders that are whole or absent, and where codo keeps what it can make again."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from codo.errors import CodoError
from codo.runs.files import cannot_write


def cache_root() -> Path:
    """Return the cache folder: `$CODO_CACHE`, else `$XDG_CACHE_HOME/codo`, else `~/.cache/codo`. It may not exist yet.

    Raises:
        CodoError: none of the three can be known (no home folder).
    """
    own = os.environ.get("CODO_CACHE")
    shared = os.environ.get("XDG_CACHE_HOME", "")
    try:
        if own:
            return Path(own).expanduser()
        if os.path.isabs(shared):  # the XDG specification says to ignore a relative path
            return Path(shared) / "codo"
        return Path.home() / ".cache" / "codo"
    except RuntimeError as error:
        raise CodoError("no home folder for the cache: set CODO_CACHE to a folder that can be written") from error


def bytes_text(count: float) -> str:
    """Write a number of bytes as people read it.

    Example:
        >>> bytes_text(3 * 2**20), bytes_text(1.5 * 2**30)
        ('3.0 MiB', '1.50 GiB')
    """
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield an empty temporary folder beside `path`; rename it to `path` when the block ends well.

    If the block fails, the temporary folder is removed and `path` stays as it was.

    Args:
        path: the folder to be: absent or empty. Its parent is created.

    Raises:
        CodoError: `path` is a file, holds something, is the working folder, or cannot be written (disk full,
            no permission).
    """
    path = Path(path)
    temporary: Path | None = None
    try:
        target = path.resolve()
        if target.exists():
            if not target.is_dir():
                raise CodoError(f"{path} is a file; name a new or an empty folder")
            if any(target.iterdir()):
                raise CodoError(f"{path} is not empty; name a new or an empty folder")
            if target == Path.cwd():  # renaming over it would leave the shell in a folder that is gone
                raise CodoError(f"{path} is the folder you are in; name a folder below it")
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent))
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o777 & ~umask)  # mkdtemp gives 0700; the folder is shared like any other
        if target.exists():
            target.rmdir()  # only ever an empty folder: what is not empty makes this fail
        os.replace(temporary, target)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
