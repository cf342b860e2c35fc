"""Images decoded once: a pool of small uint8 pictures behind one memory-mapped file, on disk or in memory."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import stat
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import PIL

from codo.data.files import ImageSet, ImageSource, as_image_set
from codo.data.images import ImageError, decode_content, image_size, read_content, resize
from codo.data.pool_file import (
    FORMAT,
    NO_HASH,
    Decoded,
    NotNow,
    PoolFile,
    claim,
    content_hash,
    remove_unused,
    unfinished,
    write,
)
from codo.errors import CodoError
from codo.runs.caching import bytes_text, cache_root
from codo.runs.hardware import available_cores

AUTO_LIMIT = 4 * 2**30
"""Bytes up to which `cache="auto"` writes a cache."""

ENOUGH = 15 / 16
"""The share of a square's side that a scaled decode must give at least: half a COCO image (480 high) does for 256."""

MEMORY = Path("/dev/shm")
"""Where files are memory that processes share (Linux)."""

Cache = Literal["auto", "ram", "disk", "off"]

CGROUP = Path("/sys/fs/cgroup")

OF_THE_FILE = (errno.ENOENT, errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENOTDIR, errno.EISDIR)
"""Errors of reading that are the file's own: it is left out, and said. Others may pass."""

_SAMPLE = 64  # image headers read to predict the size of a pool


@dataclass(frozen=True)
class Target:
    """The size that a pool's images are brought to: a square, or a bound on the short side; in pixels.

    With `scaled_decode`, JPEGs may be decoded at a part of their size.
    """

    square: int | None
    short_side: int | None
    scaled_decode: bool = True

    def __post_init__(self) -> None:
        if (self.square is None) == (self.short_side is None):
            raise ValueError("exactly one of square and short_side must be given")
        if self.side < 1:
            raise ValueError(f"a side of {self.side} pixels; at least 1 is needed")

    def __str__(self) -> str:
        return f"{self.side} x {self.side} pixels" if self.square else f"short side up to {self.side} pixels"

    @property
    def side(self) -> int:
        """The one that is set."""
        return self.square or self.short_side or 0

    @property
    def decoded_side(self) -> int | None:
        """The short side that a scaled decode must give at least; None where none is wanted."""
        if not self.scaled_decode:
            return None
        return self.side if self.square is None else int(self.side * ENOUGH)

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Give the width and height that an image of `width` x `height` gets."""
        if self.square is not None:
            return self.side, self.side
        scale = min(1.0, self.side / min(width, height))
        return max(1, round(width * scale)), max(1, round(height * scale))

    def load(self, source: ImageSource, content: bytes | None = None) -> np.ndarray:
        """Decode (from `content`, where it has been read) and resize to `(H, W, 3) uint8`; raises `ImageError`."""
        content = read_content(source) if content is None else content
        image = decode_content(content, source, self.decoded_side)
        return resize(image, *self.size(image.shape[1], image.shape[0]))


class ImagePool:
    """A sequence of images as `(H, W, 3) uint8` arrays, decoded once into a memory-mapped file or on each access.

    Made by `ImagePool.build`. It pickles without its pixels, so data loader workers, forked or spawned, share one copy
    in the page cache.

    Attributes:
        paths: the usable images' files, one for each index. Not cached, broken ones are still among them.
        broken: file and reason of those that could not be decoded; empty if not cached.
        broken_names: their names in the set of images.
        predicted_bytes: expected size of the decoded pool (exact for squares).
        note: one line on why a cache was not written though one was wished for, or None.
    """

    def __init__(
        self,
        images: ImageSet[Any],
        target: Target,
        predicted_bytes: int,
        held: PoolFile | None,
        note: str | None = None,
    ) -> None:
        self.predicted_bytes = predicted_bytes
        self.note = note
        self._target = target
        self._held = held
        self._pixels: np.ndarray | None = None
        self.paths: ImageSet[Any] = images
        self.broken: list[tuple[ImageSource, str]] = []
        self.broken_names: list[str] = []
        if held is not None:
            if len(held.source) < len(images):
                self.paths = images.take(held.source)
            reasons = zip(held.broken_source, held.broken_reason, strict=True)
            self.broken = [(images[int(i)], str(reason)) for i, reason in reasons]
            self.broken_names = [images.name_of(int(i)) for i in held.broken_source]

    @classmethod
    def build(
        cls,
        images: Sequence[ImageSource],
        *,
        square: int | None = None,
        short_side: int | None = None,
        scaled_decode: bool = True,
        cache: Cache = "auto",
        cache_dir: Path | None = None,
        progress: Callable[[int, int], None] | None = None,
        say: Callable[[str], None] = lambda _: None,
    ) -> ImagePool:
        """Make a pool of images.

        A cache is named by a hash of the files' paths, sizes and times, the target size and Pillow's version: a later
        call with the same images opens it at once, a changed image makes a new one. Of several processes that want the
        same cache one builds it and the others wait; a build that was killed goes on where it was.

        Args:
            images: image files or members of tar files, at least one.
            square: resize to square x square pixels; the aspect ratio is not kept (backgrounds).
            short_side: shrink until the short side is at most this many pixels; nothing is enlarged (foregrounds).
            scaled_decode: let JPEGs be decoded at 1/2, 1/4 or 1/8 of their size where that is nearly the target's size
                or more.
            cache: "disk": decode all now, or reuse an earlier cache; broken images are found and left out. "ram": the
                same in memory, shared by the processes that use it and gone with the last of them. "off": decode on
                each access, a broken image raises `ImageError` there. "auto": disk, if the pool is expected to take
                less than 4 GiB and half of the free disk and can be written, else off.
            cache_dir: folder for the cache file on disk; `cache_root() / "images"` by default.
            progress: called with (done, total) after each decoded image; not called when a cache is reused.
            say: told, before images are decoded, how many there are, what they will take and where.

        Raises:
            ValueError: not exactly one of `square` and `short_side`, or below 1; an unknown `cache`.
            CodoError: no images; none can be decoded; one cannot be read (it is not left out: it may be sound); with
                "disk" and "ram", the cache cannot be written.
        """
        target = Target(square, short_side, scaled_decode)
        if cache not in ("auto", "ram", "disk", "off"):
            raise ValueError(f"cache={cache!r}; auto, ram, disk or off is expected")
        if not images:
            raise CodoError("an image pool needs at least one image; the list of paths is empty")
        found = as_image_set(images)
        predicted = _predict_bytes(found, target)
        if cache == "off":
            return cls(found, target, predicted, None)
        ram = cache == "ram"
        folder = _make_memory_folder() if ram else cache_root() / "images" if cache_dir is None else Path(cache_dir)
        file = folder / f"{pool_key(found, target)}.pool"
        if ram:
            _sweep(folder, file.stem)
        if ready := PoolFile.open(file, len(found), passing=ram):
            return cls(found, target, predicted, ready)
        if lacks := _lacks(predicted, folder, cache, file):
            if cache != "auto":
                raise CodoError(f"run.cache={cache}: {lacks}")
            return cls(found, target, predicted, None, f"images are decoded on each access: {lacks}")
        where = f"in memory, {file}" if ram else f"on disk, {file}"
        say(f"{len(found):,} images, {'' if square else 'about '}{bytes_text(predicted)} {where}")
        try:
            return cls(found, target, predicted, _make(file, found, target, progress, say, passing=ram))
        except OSError as error:
            text = f"cannot write {file}: {error.strerror or error}; free some space or use another run.cache"
            if cache != "auto":
                raise CodoError(text) from error
            return cls(found, target, predicted, None, f"images are decoded on each access: {text}")

    @property
    def cached(self) -> bool:
        """Whether the images come from a memory-mapped file, and not from a decoder."""
        return self._held is not None

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> np.ndarray:
        """Return image `index` as `(H, W, 3) uint8`, read-only; raises `ImageError` if not cached and broken."""
        if self._held is None:
            image = self._target.load(self.paths[index])
            image.flags.writeable = False
            return image
        if self._pixels is None:
            self._pixels = self._held.map_pixels()
        start, height, width = (int(c[index]) for c in (self._held.start, self._held.height, self._held.width))
        return self._pixels[start : start + height * width * 3].reshape(height, width, 3)

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[i] for i in range(len(self)))

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_pixels": None}  # a memory map would be pickled as its pixels


def _make(
    file: Path,
    images: ImageSet[Any],
    target: Target,
    progress: Callable[[int, int], None] | None,
    say: Callable[[str], None],
    *,
    passing: bool,
) -> PoolFile:
    """Build a cache, or wait for the process that does; raises `OSError` where it cannot be written."""
    about = asdict(target)
    for _ in range(10):  # a file may be evicted as soon as it is whole
        stream = claim(unfinished(file), say)
        if stream is not None:
            with stream:
                # The process that we have waited for may have made it.
                if (ready := PoolFile.open(file, len(images), passing=passing)) is not None:
                    unfinished(file).unlink(missing_ok=True)
                    return ready
                write(stream, file, images, lambda first: _decode_all(images, target, first), about, progress, say)
        if (ready := PoolFile.open(file, len(images), passing=passing)) is not None:
            return ready
    raise CodoError(f"the image cache {file} is changed as soon as it is written; use run.cache=off")


def _predict_bytes(images: ImageSet[Any], target: Target) -> int:
    """Predict the pool's size from the headers of some evenly spread images."""
    if target.square is not None:
        return len(images) * 3 * target.square**2
    areas = []
    for source in images[:: max(1, len(images) // _SAMPLE)]:
        with suppress(ImageError):
            width, height = target.size(*image_size(source))
            areas.append(width * height)
    return round(len(images) * 3 * sum(areas) / len(areas)) if areas else 0


def _lacks(predicted: int, folder: Path, cache: Cache, file: Path) -> str | None:
    """Say why a pool of `predicted` bytes is not to be written into a folder, or None."""
    free = shutil.disk_usage(next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())).free
    if cache == "ram":
        free = min(free, _available_memory())
    with suppress(OSError):  # what an earlier build has written is there
        free += unfinished(file).stat().st_size
    told = f"a cache would take {bytes_text(predicted)}, {bytes_text(free)} are free in {folder}"
    if predicted > free:
        way_out = "a container's /dev/shm grows by --shm-size" if cache == "ram" else "set CODO_CACHE to another disk"
        return f"{told}; {way_out}, or use {'disk or ' if cache == 'ram' else ''}off"
    if cache == "auto" and predicted >= AUTO_LIMIT:
        return f"{told}; over 4 GiB only run.cache=disk writes it"
    if cache == "auto" and predicted >= free / 2:
        return f"{told}; over half of the free disk only run.cache=disk writes it"
    return None


def _available_memory() -> int:
    """Look up the memory that processes may still take, in bytes: of the machine, and of the container (cgroup v2)."""
    bounds = [2**62]
    with suppress(OSError):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        bounds += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    with suppress(OSError, ValueError):  # no cgroup v2, or no limit ("max")
        limit, used = (int((CGROUP / name).read_text(encoding="ascii")) for name in ("memory.max", "memory.current"))
        bounds.append(max(0, limit - used))
    return min(bounds)


def memory_folder() -> Path:
    """Name this user's own folder of shared memory; it may not be there."""
    return MEMORY / f"codo-{os.getuid()}"


def _make_memory_folder() -> Path:
    """Make this user's own folder of shared memory."""
    folder = memory_folder()
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
    except OSError as error:
        raise CodoError(f"run.cache=ram: {folder}: {error.strerror}; it needs Linux's {MEMORY}, use disk") from error
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():  # anybody may write in /dev/shm
        raise CodoError(f"run.cache=ram: {folder} is not your own folder; remove it, or use disk")
    return folder


def _sweep(folder: Path, stem: str) -> None:
    """Remove what killed processes left in memory; not what this one is going to use."""
    for file in folder.iterdir():
        if file.stem != stem:
            remove_unused(file)


def pool_key(images: ImageSet[Any], target: Target) -> str:
    """Hash all that the cache's content depends on."""
    told = (FORMAT, PIL.__version__, target, os.path.abspath(images.folder))
    digest = hashlib.sha256(repr(told).encode("utf-8", "surrogateescape"))
    for name in images.names():
        digest.update(name.encode("utf-8", "surrogateescape") + b"\0")
    digest.update(images.states().tobytes())
    digest.update(images.positions().tobytes())
    return digest.hexdigest()[:32]


def _decode_all(images: ImageSet[Any], target: Target, first: int) -> Generator[Decoded, None, None]:
    """Decode in order, on one thread a core (Pillow and torch let go of the GIL), a few images ahead of the writer."""

    def load(source: ImageSource) -> Decoded:
        source_hash = NO_HASH
        try:
            content = read_content(source)
            source_hash = content_hash(content)
            return target.load(source, content), source_hash
        except ImageError as error:
            cause = error.__cause__
            passing = source_hash == NO_HASH and isinstance(cause, OSError) and cause.errno not in OF_THE_FILE
            if passing or isinstance(cause, MemoryError):  # kept, it would be a broken image for good
                raise NotNow(f"{error}; see that it can be read, or take it away, and run again") from error
            return str(error).removeprefix(f"{source}: "), source_hash

    threads = available_cores()
    pending: deque[Future[Decoded]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for index in range(first, len(images)):
                pending.append(pool.submit(load, images[index]))
                if len(pending) > 4 * threads:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
