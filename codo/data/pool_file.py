"""The file of decoded images: checksummed records, an index, a tail; a build goes on where it was killed."""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import struct
import time
import weakref
import zlib
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple
from zipfile import BadZipFile

import numpy as np

from codo.data.files import ImageFiles, ImageSet, ImageSource, ShardImages
from codo.errors import CodoError

FORMAT = 2
"""Raise it when the file's layout or the meaning of its pixels changes."""

_RECORD = struct.Struct("<4sIIQ16s")  # magic, height, width, bytes that follow the checksum, hash of the source
_CRC = struct.Struct("<I")  # of the record's other parts
_TAIL = struct.Struct("<QQI8s")  # bytes of records, bytes of index, the index's checksum, magic: the file's end
_MAGIC, _TAIL_MAGIC = b"img\0", b"codopool"

Decoded = tuple[np.ndarray | str, bytes]
"""An image `(H, W, 3) uint8`, or what is wrong with it, and the hash of the bytes that it was decoded from."""


def content_hash(content: bytes) -> bytes:
    """Hash an image's encoded bytes: 16 bytes (blake2b)."""
    return hashlib.blake2b(content, digest_size=16).digest()


COLUMNS = ("source", "height", "width", "start", "broken_source", "broken_reason")
"""Of the index, as `PoolFile` has them."""

NO_HASH = bytes(16)
"""Of a source that cannot be read."""

_POLL = 0.1  # seconds between two looks at another process's build


class NotNow(CodoError):
    """A source that cannot be read, and may be another time: the build stops, and goes on from there."""


class Record(NamedTuple):
    """One source image as a file holds it: its pixels, or in their place the reason why there are none."""

    height: int
    width: int
    start: int
    size: int
    reason: str | None
    hash: bytes


@dataclass(frozen=True, eq=False)
class PoolFile:
    """A whole file, held against eviction as long as this object, or a forked copy of the process, is there.

    `source` counts in the list of images that the pool was built from.

    Attributes:
        file: where it is.
        bytes: of all records; they begin the file.
    """

    file: Path
    bytes: int
    source: np.ndarray  # (N,) int64
    height: np.ndarray  # (N,) int32
    width: np.ndarray  # (N,) int32
    start: np.ndarray  # (N,) int64, bytes
    broken_source: np.ndarray  # (M,) int64
    broken_reason: np.ndarray  # (M,) str

    @staticmethod
    def open(file: Path, sources: int, *, passing: bool = False) -> PoolFile | None:
        """Open and hold a file; None if it is absent or not whole, so that it is made (again).

        Args:
            file: to open.
            sources: how many images it was made of.
            passing: remove it when the last process that holds it lets go.
        """
        try:
            descriptor = os.open(file, os.O_RDONLY)
        except OSError:
            return None
        try:
            with suppress(OSError):  # a file system without locks: nobody can be kept from removing it
                fcntl.flock(descriptor, fcntl.LOCK_SH)
            content = read_index(file)
            if content is None or not is_at(descriptor, file):
                return None
            end, index = content
            found = PoolFile(file, end, *(index[column] for column in COLUMNS))
            if not len(found.source) or int(found.source.max()) >= sources:
                return None
            with suppress(OSError):  # somebody else's file
                os.utime(file)
            weakref.finalize(found, _leave, descriptor, file if passing else None, os.getpid())
            descriptor = -1
            return found
        finally:
            if descriptor >= 0:
                os.close(descriptor)

    def map_pixels(self) -> np.ndarray:
        """Map the records into memory, flat and read-only; raises `CodoError` if the file is gone."""
        try:
            return np.asarray(np.memmap(self.file, dtype=np.uint8, mode="r", shape=(self.bytes,)))
        except (OSError, ValueError) as error:
            raise CodoError(f"the image cache {self.file} went away or shrank during the run; run again") from error


def is_at(descriptor: int, file: Path) -> bool:
    """Tell whether an open file is still the one at a path."""
    try:
        there = os.stat(file)
    except OSError:
        return False
    own = os.fstat(descriptor)
    return (own.st_dev, own.st_ino) == (there.st_dev, there.st_ino)


def is_held(file: Path) -> bool:
    """Tell whether a process reads or builds a file, or uses a folder."""
    return not _alone(file, lambda: None)


def remove_unused(file: Path, lock: Path | None = None) -> bool:
    """Remove a file unless a process holds it, or `lock` (then, or if it is not ours, return False)."""
    return _alone(lock or file, file.unlink)


def _alone(file: Path, act: Callable[[], None]) -> bool:
    """Act on a file while no process holds it; return whether that was so and went well."""
    try:
        descriptor = os.open(file, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not is_at(descriptor, file):  # another has taken its name since
            return False
        act()
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)


def _leave(descriptor: int, passing: Path | None, process: int) -> None:
    """Let go of a file; the last one removes one that is only passing."""
    if os.getpid() != process:  # a forked worker: the descriptor is its parent's
        return
    os.close(descriptor)
    if passing is not None:
        remove_unused(passing)


def claim(partial: Path, say: Callable[[str], None]) -> BinaryIO | None:
    """Open an unfinished file for this process alone; another one that builds it is waited for.

    Returns:
        The file; None if meanwhile another process finished or removed it.

    Raises:
        OSError: it cannot be written or locked.
    """
    partial.parent.mkdir(parents=True, exist_ok=True)
    stream = os.fdopen(os.open(partial, os.O_RDWR | os.O_CREAT, 0o666), "r+b")
    waits = False
    try:
        # Asked again and again: to wait for the lock would be to wait for the readers of the file when it is finished.
        while is_at(stream.fileno(), partial):
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not waits:
                    say("another process is building it; waiting for it")
                waits = True
                time.sleep(_POLL)
            else:
                if is_at(stream.fileno(), partial):
                    return stream
    except BaseException:
        stream.close()
        raise
    stream.close()
    return None


def write(
    stream: BinaryIO,
    file: Path,
    images: ImageSet[Any],
    decode_from: Callable[[int], Generator[Decoded, None, None]],
    about: dict[str, Any],
    progress: Callable[[int, int], None] | None,
    say: Callable[[str], None],
) -> None:
    """Bring a claimed, unfinished file to its end, and rename it to `file`.

    Args:
        stream: from `claim`.
        file: its final name.
        images: the sources.
        decode_from: gives the images from a number on, in order.
        about: facts for `codo cache list`.
        progress: called with (done, total).
        say: is told that an earlier build goes on.

    Raises:
        OSError: the disk is full.
        CodoError: no image can be used, or one cannot be read now.
    """
    partial = unfinished(file)
    end = os.fstat(stream.fileno()).st_size
    records = list(read_records(stream, end))
    if records:
        say(f"going on after {len(records):,} images of an earlier build")
    stream.seek(_after(records))
    stream.truncate()
    try:
        with closing(decode_from(len(records))) as decoded:
            for image, source_hash in decoded:
                records.append(_append(stream, image, source_hash))
                if progress is not None:
                    progress(len(records), len(images))
        if all(record.reason is not None for record in records):
            first = f"{images[0]}: {records[0].reason}"
            raise CodoError(f"none of the {len(images)} images can be used; the first: {first}")
        _finish(stream, records, images, about)
        os.fsync(stream.fileno())
        os.replace(partial, file)
    except (OSError, CodoError) as error:
        if not isinstance(error, NotNow):
            partial.unlink(missing_ok=True)  # what a kill leaves is kept; what fails would fail again
        raise


def unfinished(file: Path) -> Path:
    """Name the unfinished form of a file."""
    return file.with_suffix(".partial")


def read_records(stream: BinaryIO, end: int) -> Iterator[Record]:
    """Read and check records from the beginning, up to the byte `end` or the first that is not whole."""
    stream.seek(0)
    position = 0
    while position + _RECORD.size + _CRC.size <= end:
        head = stream.read(_RECORD.size)
        (crc,) = _CRC.unpack(stream.read(_CRC.size))
        magic, height, width, size, source_hash = _RECORD.unpack(head)
        start = position + _RECORD.size + _CRC.size
        if magic != _MAGIC or start + size > end:
            return
        content = stream.read(size)
        if zlib.crc32(content, zlib.crc32(head)) != crc or (height and size != 3 * height * width):
            return
        reason = None if height else content.decode("utf-8", "replace")
        yield Record(height, width, start, size, reason, source_hash)
        position = start + size


def _append(stream: BinaryIO, image: np.ndarray | str, source_hash: bytes) -> Record:
    """Write one record, and hand it to the system, which keeps it if this process is killed."""
    reason: str | None = None
    content: bytes | memoryview
    if isinstance(image, str):
        reason, content, (height, width) = image, image.encode("utf-8", "replace"), (0, 0)
    else:
        content, (height, width) = image.reshape(-1).data, image.shape[:2]
    head = _RECORD.pack(_MAGIC, height, width, len(content), source_hash)
    start = stream.tell() + len(head) + _CRC.size
    stream.write(head + _CRC.pack(zlib.crc32(content, zlib.crc32(head))))
    stream.write(content)
    stream.flush()
    return Record(height, width, start, len(content), reason, source_hash)


def _after(records: Sequence[Record]) -> int:
    """Compute where the last of some records ends."""
    return records[-1].start + records[-1].size if records else 0


def index_of(records: Sequence[Record]) -> dict[str, np.ndarray]:
    """Compose the columns of a file's index from its records."""
    good = [i for i, record in enumerate(records) if record.reason is None]
    broken = [i for i, record in enumerate(records) if record.reason is not None]
    return {
        "source": np.array(good, np.int64),
        "height": np.array([records[i].height for i in good], np.int32),
        "width": np.array([records[i].width for i in good], np.int32),
        "start": np.array([records[i].start for i in good], np.int64),
        "broken_source": np.array(broken, np.int64),
        "broken_reason": np.array([records[i].reason for i in broken], np.str_),
    }


def _finish(stream: BinaryIO, records: Sequence[Record], images: ImageSet[Any], about: dict[str, Any]) -> None:
    packed = io.BytesIO()
    facts = np.frombuffer(json.dumps(about).encode(), np.uint8)
    columns: dict[str, Any] = {**index_of(records), **images.pack(), "about": facts}
    np.savez(packed, **columns)
    index = packed.getvalue()
    stream.write(index + _TAIL.pack(_after(records), len(index), zlib.crc32(index), _TAIL_MAGIC))
    stream.flush()


def read_index(file: Path) -> tuple[int, dict[str, np.ndarray]] | None:
    """Read where a file's records end, and its index; None where it is not whole."""
    try:
        size = file.stat().st_size
        with open(file, "rb") as content:
            content.seek(-_TAIL.size, os.SEEK_END)
            end, length, crc, magic = _TAIL.unpack(content.read())
            if magic != _TAIL_MAGIC or end + length + _TAIL.size != size:
                return None
            content.seek(end)
            index = content.read(length)
            if zlib.crc32(index) != crc:
                return None
            with np.load(io.BytesIO(index), allow_pickle=False) as columns:
                return end, dict(columns)
    except (OSError, ValueError, TypeError, EOFError, BadZipFile):
        return None


def sources_of(index: dict[str, np.ndarray]) -> ImageSet[ImageSource]:
    """Make the list of images that a file was built from."""
    return ShardImages.unpack(index) if "shards" in index else ImageFiles.unpack(index)
