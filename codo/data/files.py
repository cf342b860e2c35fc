"""Which images there are: files of a folder or members of tar shards, packed so that a million cost little memory."""

from __future__ import annotations

import hashlib
import os
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar, overload

import numpy as np

from codo.errors import CodoError

ABSENT = -1
"""Size and time of a file that is not there."""


@dataclass(frozen=True, slots=True)
class Member:
    """An image in a tar file, never extracted: bytes `offset` to `offset + size` of `shard`.

    Example:
        >>> str(Member(Path("shards/a.tar"), "cat/1.jpg", 512, 8000))
        'shards/a.tar:cat/1.jpg'
    """

    shard: Path
    member: str
    offset: int
    size: int

    @property
    def name(self) -> str:
        """The last part of its name."""
        return self.member.rpartition("/")[2]

    def read_bytes(self) -> bytes:
        """Read its content; raises `OSError`."""
        with open(self.shard, "rb") as file:
            file.seek(self.offset)
            return file.read(self.size)

    def __str__(self) -> str:
        return f"{self.shard}:{self.member}"


ImageSource = Path | Member
"""Where one image's bytes are."""

S = TypeVar("S", bound=ImageSource, covariant=True)


def read_source(source: ImageSource) -> bytes:
    """Read an image's bytes; raises `OSError`."""
    return source.read_bytes() if isinstance(source, Member) else Path(source).read_bytes()


def source_size(source: ImageSource) -> int:
    """Look up the number of an image's bytes; raises `OSError`."""
    return source.size if isinstance(source, Member) else os.path.getsize(source)


class ImageSet(Sequence[S], Generic[S]):
    """A sequence of images, packed: each costs the bytes of its name and some numbers, and no Python object.

    Forked loader workers share it whole: a list of a million paths would be copied to each of them, page by page, as
    the objects' reference counts change.

    Attributes:
        folder: that the names are relative to.
    """

    def __init__(self, folder: Path, names: Iterable[str]) -> None:
        self.folder = Path(folder)
        self._names = b"".join(name.encode("utf-8", "surrogateescape") + b"\0" for name in names)
        self._ends = np.flatnonzero(np.frombuffer(self._names, np.uint8) == 0)
        self._states: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self._ends)

    def name_of(self, index: int) -> str:
        """The posix path of an image relative to the folder; of a member, below its tar file's."""
        start = int(self._ends[index - 1]) + 1 if index else 0
        return self._names[start : int(self._ends[index])].decode("utf-8", "surrogateescape")

    def names(self) -> Iterator[str]:
        """All names, in order."""
        start = 0
        for end in self._ends.tolist():
            yield self._names[start:end].decode("utf-8", "surrogateescape")
            start = end + 1

    def states(self) -> np.ndarray:
        """Look up, once, every image's size in bytes and time of change in ns: `(N, 2) int64`, `ABSENT` if gone."""
        if self._states is None:
            self._states = np.array(list(self._look()), np.int64).reshape(-1, 2)
        return self._states

    @overload
    def __getitem__(self, index: int) -> S: ...
    @overload
    def __getitem__(self, index: slice) -> ImageSet[S]: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return self.take(range(*index.indices(len(self))))
        if not -len(self) <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        return self._make(index % len(self))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]  # a sequence that equals a list is no key either

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} images of {self.folder})"

    @abstractmethod
    def take(self, indices: Iterable[int] | np.ndarray) -> ImageSet[S]:
        """Make the set of some of the images, in the order of `indices`."""

    def positions(self) -> np.ndarray:
        """Each image's first byte in its tar file; empty where the images are files."""
        return np.empty(0, np.int64)

    @abstractmethod
    def pack(self) -> dict[str, np.ndarray]:
        """Give the arrays that `unpack` makes it of again, on this machine."""

    @abstractmethod
    def _make(self, index: int) -> ImageSource:
        """Make the image at an index."""

    @abstractmethod
    def _look(self) -> Iterator[tuple[int, int]]:
        """Look up each image's size and time."""


class ImageFiles(ImageSet[Path]):
    """Image files.

    Example:
        >>> files = ImageFiles(Path("photos"), ["a.jpg", "cats/b.jpg"])
        >>> len(files), files[1].as_posix(), files[:1].name_of(0)
        (2, 'photos/cats/b.jpg', 'a.jpg')
    """

    @classmethod
    def of(cls, paths: Sequence[Path]) -> ImageFiles:
        """Pack paths; what they have in common becomes the folder."""
        if isinstance(paths, ImageFiles):
            return paths
        texts = [os.fspath(path) for path in paths]
        try:
            folder = os.path.commonpath({os.path.dirname(text) for text in texts})
        except ValueError:  # none, or absolute and relative ones
            folder = ""
        start = len(os.path.join(folder, ""))
        return cls(Path(folder), (text[start:] for text in texts))

    def take(self, indices: Iterable[int] | np.ndarray) -> ImageFiles:
        """Make the set of some of the files, in the order of `indices`."""
        return ImageFiles(self.folder, (self.name_of(int(i)) for i in indices))

    def pack(self) -> dict[str, np.ndarray]:
        """Give the arrays that `unpack` makes it of again, on this machine."""
        return {"folder": _bytes(os.path.abspath(self.folder)), "names": np.frombuffer(self._names, np.uint8)}

    @staticmethod
    def unpack(arrays: Mapping[str, np.ndarray]) -> ImageFiles:
        """Make it of `pack`'s arrays."""
        names = _text(arrays["names"]).split("\0")[:-1]
        return ImageFiles(Path(_text(arrays["folder"])), names)

    def _make(self, index: int) -> Path:
        return self.folder / self.name_of(index)

    def _look(self) -> Iterator[tuple[int, int]]:
        home = os.path.join(os.path.abspath(self.folder), "")
        for name in self.names():
            try:
                status = os.stat(home + name)
                yield status.st_size, status.st_mtime_ns
            except OSError:
                yield ABSENT, ABSENT


class ShardImages(ImageSet[Member]):
    """Images in tar files.

    Args:
        shards: the tar files.
        shard: of each image, the number of its tar file.
        names: of each image, within its tar file.
        offsets: of each image's first byte.
        sizes: in bytes.
    """

    def __init__(
        self,
        shards: Sequence[Path],
        shard: Sequence[int] | np.ndarray,
        names: Sequence[str],
        offsets: Sequence[int] | np.ndarray,
        sizes: Sequence[int] | np.ndarray,
    ) -> None:
        self.shards = ImageFiles.of(shards)
        self._shard = np.asarray(shard, np.int32)
        self._offsets, self._sizes = np.asarray(offsets, np.int64), np.asarray(sizes, np.int64)
        tars = list(self.shards.names())
        pairs = zip(self._shard.tolist(), names, strict=True)
        super().__init__(self.shards.folder, (f"{tars[number]}/{name}" for number, name in pairs))

    def take(self, indices: Iterable[int] | np.ndarray) -> ShardImages:
        """Make the set of some of the images, in the order of `indices`."""
        rows = np.fromiter((int(i) for i in indices), np.int64)
        members = [self[int(i)].member for i in rows]
        return ShardImages(self.shards, self._shard[rows], members, self._offsets[rows], self._sizes[rows])

    def pack(self) -> dict[str, np.ndarray]:
        """Give the arrays that `unpack` makes it of again, on this machine."""
        shards = self.shards.pack()
        members = "".join(self[i].member + "\0" for i in range(len(self)))
        packed = {"folder": shards["folder"], "shards": shards["names"], "names": _bytes(members)}
        return packed | {"shard": self._shard, "offsets": self._offsets, "sizes": self._sizes}

    @staticmethod
    def unpack(arrays: Mapping[str, np.ndarray]) -> ShardImages:
        """Make it of `pack`'s arrays."""
        shards = ImageFiles.unpack({"folder": arrays["folder"], "names": arrays["shards"]})
        names = _text(arrays["names"]).split("\0")[:-1]
        return ShardImages(shards, arrays["shard"], names, arrays["offsets"], arrays["sizes"])

    def _make(self, index: int) -> Member:
        shard = int(self._shard[index])
        name = self.name_of(index)[len(self.shards.name_of(shard)) + 1 :]
        return Member(self.shards[shard], name, int(self._offsets[index]), int(self._sizes[index]))

    def _look(self) -> Iterator[tuple[int, int]]:
        times = self.shards.states()[:, 1]
        for shard, size in zip(self._shard, self._sizes, strict=True):
            yield (int(size), int(times[shard])) if times[shard] != ABSENT else (ABSENT, ABSENT)

    def positions(self) -> np.ndarray:
        """Each image's first byte in its tar file: `(N,) int64`."""
        return self._offsets


def _bytes(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-8", "surrogateescape"), np.uint8)


def _text(array: np.ndarray) -> str:
    return array.tobytes().decode("utf-8", "surrogateescape")


def data_fingerprint(images: Sequence[ImageSource]) -> str:
    """Fingerprint a set of images by their names and sizes.

    Names are relative to the files' common folder and times are left out, so that a copy elsewhere keeps its
    fingerprint. The content is not read: a change that keeps a file's name and length goes unnoticed.

    Returns:
        64 hexadecimal digits (sha256); independent of the order of `images`.

    Raises:
        CodoError: a file is missing.
    """
    found = as_image_set(images)
    sizes = found.states()[:, 0]
    if (gone := np.flatnonzero(sizes == ABSENT)).size:
        raise CodoError(f"{found[int(gone[0])]}: No such file; the data set changed while it was read")
    lines = [f"{name}\0{size}\n" for name, size in zip(relative_names(found), sizes.tolist(), strict=True)]
    lines.sort()
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def as_image_set(images: Sequence[Any]) -> ImageSet[Any]:
    """Pack a sequence of paths, unless it is packed."""
    return images if isinstance(images, ImageSet) else ImageFiles.of(images)


def relative_names(images: Sequence[ImageSource]) -> list[str]:
    """Name images by their posix paths relative to the deepest folder that holds them all."""
    if not images:
        return []
    found = as_image_set(images)
    home = os.path.join(os.path.abspath(found.folder), "")
    texts = [os.path.normpath(home + name) if ".." in name else home + name for name in found.names()]
    start = len(os.path.join(os.path.commonpath({os.path.dirname(text) for text in texts}), ""))
    return [text[start:].replace(os.sep, "/") for text in texts]
