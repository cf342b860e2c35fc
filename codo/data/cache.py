"""Images decoded once: a pool of small uint8 pictures behind one memory-mapped file."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import struct
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple
from zipfile import BadZipFile

import numpy as np
import PIL

from codo.data.images import ImageError, decode, image_size, resize
from codo.errors import CodoError
from codo.runs.caching import cache_root
from codo.runs.files import atomic_path

AUTO_LIMIT = 4 * 2**30
"""Bytes up to which `cache="auto"` writes a cache."""

_FORMAT = 1  # raise it when the file's layout or the meaning of its pixels changes
_MAGIC = b"codopool"
_TAIL = struct.Struct("<QQ8s")  # bytes of pixels, bytes of index, magic: the file's end
_SAMPLE = 64  # image headers read to predict the size of a pool


@dataclass(frozen=True)
class Target:
    """The size that a pool's images are brought to: a square, or a bound on the short side; in pixels."""

    square: int | None
    short_side: int | None

    def __post_init__(self) -> None:
        if (self.square is None) == (self.short_side is None):
            raise ValueError("exactly one of square and short_side must be given")
        if self.side < 1:
            raise ValueError(f"a side of {self.side} pixels; at least 1 is needed")

    @property
    def side(self) -> int:
        """The one that is set."""
        return self.square or self.short_side or 0

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Give the width and height that an image of `width` x `height` gets."""
        if self.square is not None:
            return self.side, self.side
        scale = min(1.0, self.side / min(width, height))
        return max(1, round(width * scale)), max(1, round(height * scale))

    def load(self, path: Path) -> np.ndarray:
        """Decode and resize one file to `(H, W, 3) uint8`; raises `ImageError`."""
        image = decode(path, min_side=self.side)
        return resize(image, *self.size(image.shape[1], image.shape[0]))


class _Cache(NamedTuple):
    """A whole cache file and its index; `source` counts in the list of paths that the pool was built from."""

    file: Path
    bytes: int  # of all pixels; they begin the file
    source: np.ndarray  # (N,) int64
    height: np.ndarray  # (N,) int64
    width: np.ndarray  # (N,) int64
    start: np.ndarray  # (N,) int64, bytes
    broken_source: np.ndarray  # (M,) int64
    broken_reason: np.ndarray  # (M,) str

    def map_pixels(self) -> np.ndarray:
        """Map the pixels into memory, flat and read-only; raises `CodoError` if the file is gone."""
        try:
            return np.asarray(np.memmap(self.file, dtype=np.uint8, mode="r", shape=(self.bytes,)))
        except (OSError, ValueError) as error:
            raise CodoError(f"the image cache {self.file} went away or shrank during the run; run again") from error


class ImagePool:
    """A sequence of images as `(H, W, 3) uint8` arrays, decoded once into a memory-mapped file or on each access.

    Made by `ImagePool.build`. It pickles without its pixels, so data loader workers, forked or spawned, share one copy
    in the page cache.

    Attributes:
        paths: the usable images' files, one for each index. Not cached, broken ones are still among them.
        broken: file and reason of those that could not be decoded; empty if not cached.
        predicted_bytes: expected size of the decoded pool (exact for squares).
        note: one line on why a cache was not written though one was wished for, or None.
    """

    def __init__(
        self, paths: list[Path], target: Target, predicted_bytes: int, cache: _Cache | None, note: str | None = None
    ) -> None:
        self.predicted_bytes = predicted_bytes
        self.note = note
        self._target = target
        self._cache = cache
        self._pixels: np.ndarray | None = None
        self.paths = list(paths) if cache is None else [paths[i] for i in cache.source]
        self.broken: list[tuple[Path, str]] = []
        if cache is not None:
            reasons = zip(cache.broken_source, cache.broken_reason, strict=True)
            self.broken = [(paths[i], str(reason)) for i, reason in reasons]

    @classmethod
    def build(
        cls,
        paths: Sequence[Path],
        *,
        square: int | None = None,
        short_side: int | None = None,
        cache: Literal["auto", "disk", "off"] = "auto",
        cache_dir: Path | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> ImagePool:
        """Make a pool of the images `paths`.

        A cache is named by a hash of the files' paths, sizes and times, the target size and Pillow's version: a later
        call with the same images opens it at once, a changed image makes a new one.

        Args:
            paths: image files, at least one.
            square: resize to square x square pixels; the aspect ratio is not kept (backgrounds).
            short_side: shrink until the short side is at most this many pixels; nothing is enlarged (foregrounds).
            cache: "disk": decode all now, or reuse an earlier cache; broken images are found and left out. "off":
                decode on each access, a broken image raises `ImageError` there. "auto": disk, if the pool is expected
                to take less than 4 GiB and half of the free disk and can be written, else off.
            cache_dir: folder for the cache file; `cache_root() / "images"` by default.
            progress: called with (done, total) after each decoded image; not called when a cache is reused.

        Raises:
            ValueError: not exactly one of `square` and `short_side`, or below 1; an unknown `cache`.
            CodoError: no paths; no image can be decoded; with "disk", the cache cannot be written.
        """
        target = Target(square, short_side)
        if cache not in ("auto", "disk", "off"):
            raise ValueError(f"cache={cache!r}; auto, disk or off is expected")
        if not paths:
            raise CodoError("an image pool needs at least one image; the list of paths is empty")
        paths = [Path(path) for path in paths]
        predicted = _predict_bytes(paths, target)
        if cache == "off":
            return cls(paths, target, predicted, None)
        folder = cache_root() / "images" if cache_dir is None else Path(cache_dir)
        file = folder / f"{_key(paths, target)}.pool"
        if ready := _open(file, len(paths)):
            return cls(paths, target, predicted, ready)
        if cache == "auto" and (note := _no_room(predicted, folder)):
            return cls(paths, target, predicted, None, note)
        try:
            _write(file, paths, target, progress)
        except CodoError as error:
            if cache == "disk" or not isinstance(error.__cause__, OSError):
                raise
            return cls(paths, target, predicted, None, f"images are decoded on each access: {error}")
        ready = _open(file, len(paths))
        if ready is None:
            raise CodoError(f"the image cache {file} was changed while it was written; try again, or use cache=off")
        return cls(paths, target, predicted, ready)

    @property
    def cached(self) -> bool:
        """Whether the images come from a memory-mapped file, and not from a decoder."""
        return self._cache is not None

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> np.ndarray:
        """Return image `index` as `(H, W, 3) uint8`, read-only; raises `ImageError` if not cached and broken."""
        if self._cache is None:
            image = self._target.load(self.paths[index])
            image.flags.writeable = False
            return image
        if self._pixels is None:
            self._pixels = self._cache.map_pixels()
        start, height, width = (int(c[index]) for c in (self._cache.start, self._cache.height, self._cache.width))
        return self._pixels[start : start + height * width * 3].reshape(height, width, 3)

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[i] for i in range(len(self)))

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_pixels": None}  # a memory map would be pickled as its pixels


def _predict_bytes(paths: list[Path], target: Target) -> int:
    """Predict the pool's size from the headers of some evenly spread images."""
    if target.square is not None:
        return len(paths) * 3 * target.square**2
    areas = []
    for path in paths[:: max(1, len(paths) // _SAMPLE)]:
        with suppress(ImageError):
            width, height = target.size(*image_size(path))
            areas.append(width * height)
    return round(len(paths) * 3 * sum(areas) / len(areas)) if areas else 0


def _no_room(predicted: int, folder: Path) -> str | None:
    """Say why a pool of `predicted` bytes is not to be written into `folder`, or None."""
    free = shutil.disk_usage(next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())).free
    if predicted < min(AUTO_LIMIT, free / 2):
        return None
    limit = "4 GiB" if predicted >= AUTO_LIMIT else f"half of the free disk ({free / 2**30:.1f} GiB free)"
    return f"images are decoded on each access: a cache would take {predicted / 2**30:.1f} GiB, over {limit}"


def _key(paths: list[Path], target: Target) -> str:
    """Hash all that the cache's content depends on."""
    digest = hashlib.sha256(repr((_FORMAT, PIL.__version__, target)).encode())
    for path in paths:
        try:
            status = os.stat(path)
            state = (status.st_size, status.st_mtime_ns)
        except OSError:
            state = (-1, -1)  # absent: decoding will say so
        digest.update(f"{os.path.abspath(path)}\0{state}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:32]


def _write(file: Path, paths: list[Path], target: Target, progress: Callable[[int, int], None] | None) -> None:
    """Decode all images into `file`: pixels one after the other, then the index (npz), then the tail.

    One file, renamed when whole: if two processes build the same cache at once, the later one wins with equal pixels.
    """
    good: list[tuple[int, int, int, int]] = []
    broken: list[tuple[int, str]] = []
    start = 0
    results = _decode_all(paths, target)
    with atomic_path(file) as temporary, open(temporary, "wb") as out, closing(results):
        for i, result in enumerate(results):
            if isinstance(result, ImageError):
                broken.append((i, str(result).removeprefix(f"{paths[i]}: ")))
            else:
                out.write(result.data)
                good.append((i, result.shape[0], result.shape[1], start))
                start += result.nbytes
            if progress is not None:
                progress(i + 1, len(paths))
        if not good:
            raise CodoError(f"none of the {len(paths)} images can be used; the first: {paths[0]}: {broken[0][1]}")
        packed = io.BytesIO()
        np.savez(
            packed,
            **dict(zip(("source", "height", "width", "start"), np.array(good, dtype=np.int64).T, strict=True)),
            broken_source=np.array([i for i, _ in broken], dtype=np.int64),
            broken_reason=np.array([reason for _, reason in broken], dtype=np.str_),
        )
        out.write(packed.getvalue() + _TAIL.pack(start, len(packed.getvalue()), _MAGIC))


def _open(file: Path, sources: int) -> _Cache | None:
    """Read a cache file's index; None if the file is absent or not whole, so that it is made (again)."""
    try:
        size = file.stat().st_size
        with open(file, "rb") as content:
            content.seek(-_TAIL.size, os.SEEK_END)
            pixels, length, magic = _TAIL.unpack(content.read())
            if magic != _MAGIC or pixels + length + _TAIL.size != size:
                return None
            content.seek(pixels)
            with np.load(io.BytesIO(content.read(length)), allow_pickle=False) as index:
                cache = _Cache(file, pixels, **index)
    except (OSError, ValueError, TypeError, EOFError, BadZipFile):
        return None
    ends = cache.start + 3 * cache.height * cache.width
    whole = len(cache.source) > 0 and int(ends.max()) == pixels and int(cache.source.max()) < sources
    return cache if whole else None


def _decode_all(paths: list[Path], target: Target) -> Generator[np.ndarray | ImageError, None, None]:
    """Decode in order, on one thread a core (Pillow and torch let go of the GIL), a few images ahead of the writer."""

    def load(path: Path) -> np.ndarray | ImageError:
        try:
            return target.load(path)
        except ImageError as error:
            return error

    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    pending: deque[Future[np.ndarray | ImageError]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for path in paths:
                pending.append(pool.submit(load, path))
                if len(pending) > 4 * threads:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
