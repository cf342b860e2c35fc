"""What is in the image cache: listing it, checking it, making room."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from codo.data.cache import Target, memory_folder, pool_key
from codo.data.images import ImageError, read_content
from codo.data.pool_file import (
    COLUMNS,
    content_hash,
    index_of,
    is_held,
    read_index,
    read_records,
    remove_unused,
    sources_of,
)
from codo.runs.caching import cache_root


@dataclass(frozen=True)
class Entry:
    """A file of the cache.

    Attributes:
        file: where it is.
        bytes: its size.
        used: when it was last opened, seconds since the epoch.
        held: whether a process uses or builds it.
        content: what it holds, in words.
    """

    file: Path
    bytes: int
    used: float
    held: bool
    content: str

    @property
    def idle_days(self) -> float:
        """Days since it was last opened."""
        return (time.time() - self.used) / 86400


def entries() -> list[Entry]:
    """List the cache: decoded images on disk and in memory, unfinished ones, downloaded shards; the latest first."""
    found = []
    for folder in (cache_root() / "images", memory_folder(), cache_root() / "shards"):
        for file in folder.iterdir() if folder.is_dir() else ():
            with suppress(FileNotFoundError):  # renamed or removed by a run meanwhile
                status = file.stat()
                held = is_held(_lock_of(file))
                used = max(status.st_mtime, status.st_atime) if folder.name == "shards" else status.st_mtime
                found.append(Entry(file, status.st_size, used, held, _content(file)))
    return sorted(found, key=lambda entry: -entry.used)


def clear(
    kept: Iterable[Entry], *, older_than: float | None = None, keep_bytes: int | None = None
) -> tuple[list[Entry], list[Entry]]:
    """Remove files that no process uses.

    Args:
        kept: the files in question.
        older_than: only those not opened for so many days.
        keep_bytes: only the longest unused, until the rest takes at most this many bytes.

    Returns:
        Those removed, and those that should have been and are in use.
    """
    removed, used = [], []
    left = sum(entry.bytes for entry in kept)
    for entry in sorted(kept, key=lambda entry: entry.used):
        if older_than is not None and entry.idle_days < older_than:
            continue
        if keep_bytes is not None and left <= keep_bytes:
            break
        if remove_unused(entry.file, _lock_of(entry.file)):
            removed.append(entry)
            left -= entry.bytes
        else:
            used.append(entry)
    return removed, used


def verify(file: Path, progress: Callable[[int, int], None] | None = None) -> tuple[bool, str]:
    """Check a cache of decoded images: its own checksums, and its sources' hashes.

    Args:
        file: a `.pool`.
        progress: called with (done, total) sources.

    Returns:
        Whether it may be used, and a line on what was found.
    """
    content = read_index(file)
    if content is None:
        return False, "the index is damaged, or of another version of codo"
    end, index = content
    try:
        with open(file, "rb") as stream:
            records = list(read_records(stream, end))
    except FileNotFoundError:
        return True, "gone meanwhile"
    after = records[-1].start + records[-1].size if records else 0
    if after != end:
        return False, f"image {len(records)} is damaged"
    if not all(np.array_equal(index[name], index_of(records)[name]) for name in COLUMNS):
        return False, "the index does not agree with the images"
    sources, target = sources_of(index), _target(index)
    if pool_key(sources, target) != file.stem:
        return True, f"{len(records):,} images whole; its sources have changed or moved since, no run will use it"
    wrong = []
    for number, record in enumerate(records):
        try:
            same = content_hash(read_content(sources[number])) == record.hash
        except ImageError:
            same = record.reason is not None
        if not same:
            wrong.append(number)
        if progress is not None:
            progress(number + 1, len(records))
    if wrong:
        first = sources[wrong[0]]
        return False, f"{len(wrong)} sources have other content at the same size and time, the first: {first}"
    return True, f"{len(records):,} images whole, and equal to their sources"


def _target(index: dict[str, np.ndarray]) -> Target:
    return Target(**json.loads(index["about"].tobytes()))


def _lock_of(file: Path) -> Path:
    """Name what a process locks that uses a file: itself, or the folder of shards, which may be thousands."""
    return file if file.suffix in (".pool", ".partial") else file.parent


def _content(file: Path) -> str:
    """Say what a file holds."""
    if file.suffix == ".partial":
        return "unfinished; the next run that wants it goes on"
    if file.suffix == ".index":
        return "index of shards"
    if file.suffix != ".pool":
        return "downloaded shard"
    content = read_index(file)
    if content is None:
        return "damaged, or of another version of codo"
    _, index = content
    count = len(index["source"])
    return f"{count:,} images, {_target(index)}, of {sources_of(index).folder}"
