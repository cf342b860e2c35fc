"""WebDataset's tar shards as images: indexed once, read by offset, never extracted; remote ones are downloaded."""

from __future__ import annotations

import fcntl
import hashlib
import os
import tarfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit
from zipfile import BadZipFile

import numpy as np

from codo.data.files import ABSENT, ImageFiles, ShardImages
from codo.data.images import SUFFIXES
from codo.errors import CodoError
from codo.runs.caching import cache_root
from codo.runs.files import atomic_path

SCHEMES = ("http", "https", "ftps", "sftp", "scp", "gs", "hf", "ais")
"""What is downloaded, each by the program that webdataset has for it (curl, gsutil, ais)."""

FORMAT = 1  # of an index; raise it when it lists other members

DOWNLOADS = 4
"""At once."""

_locks: dict[Path, int] = {}  # folder of downloads -> descriptor: held to the end of the process


def is_shards(place: str) -> bool:
    """Tell whether a setting names shards (a `.tar`, a URL) rather than a folder.

    Example:
        >>> is_shards("train-{000..099}.tar"), is_shards("https://host/a.tar?key=1"), is_shards("photos")
        (True, True, False)
    """
    return not os.path.isdir(place) and (place.lower().endswith(".tar") or "://" in place or place.startswith("pipe:"))


class Shards(NamedTuple):
    """Tar shards in the place of a folder: paths or URLs in webdataset's notation."""

    place: str

    @property
    def name(self) -> str:
        """The last part of it, without a URL's query."""
        return self.place.partition("?")[0].rpartition("/")[2]


def place_of(text: str) -> Path | Shards:
    """Tell a folder from shards."""
    return Shards(text) if is_shards(text) else Path(text)


def list_shards(place: str, progress: Callable[[int, int], None] | None = None) -> ShardImages:
    """List the images in shards, in the shards' order.

    A member counts as an image by its name's ending, as files do. Links and other special members are passed over.

    Args:
        place: paths or URLs in webdataset's notation: `{0000..0099}` counts, `::` joins.
        progress: called with (done, total): shards that are there, and shards that have been read through.

    Raises:
        CodoError: webdataset is not installed; a `pipe:`; a shard that is missing, compressed or broken; no images.
    """
    urls = _urls(place)
    show = progress or (lambda done, total: None)
    paths: list[Path] = []
    with ThreadPoolExecutor(DOWNLOADS) as pool:
        for path in pool.map(_local, urls):
            paths.append(path)
            show(len(paths), 2 * len(urls))
    shards = ImageFiles.of(paths)
    states = shards.states()
    if (gone := np.flatnonzero(states[:, 0] == ABSENT)).size:
        raise CodoError(f"shard {paths[int(gone[0])]} does not exist")
    told = repr((FORMAT, SUFFIXES, [os.path.abspath(path) for path in paths])).encode("utf-8", "surrogateescape")
    index = cache_root() / "shards" / f"{hashlib.sha256(told + states.tobytes()).hexdigest()[:32]}.index"
    for path in paths:  # the time of use, for `codo cache clear`; not the time of change, which is part of the name
        if path.parent == index.parent:
            with suppress(OSError):  # somebody else's file
                os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))
    if (images := _known(index)) is None:
        rows: list[tuple[int, str, int, int]] = []
        for number, path in enumerate(paths):
            rows += ((number, *member) for member in _members(path))
            show(len(urls) + number + 1, 2 * len(urls))
        if not rows:
            raise CodoError(f"no images in {place}: no member's name ends in {' '.join(s[1:] for s in SUFFIXES)}")
        images = ShardImages(shards, *zip(*rows, strict=True))
        columns: dict[str, Any] = images.pack()
        with suppress(CodoError), atomic_path(index) as temporary, open(temporary, "wb") as file:
            np.savez(file, **columns)
    show(2 * len(urls), 2 * len(urls))
    return images


def _urls(place: str) -> list[str]:
    """Expand a place; refuse what cannot, or must not, be opened."""
    try:
        from webdataset.shardlists import expand_urls
    except ImportError as error:
        raise CodoError(f"{place}: tar shards are read through webdataset: pip install 'codo[webdataset]'") from error
    try:
        urls = expand_urls(place)
    except (
        ValueError,
        AssertionError,
    ) as error:  # a brace that is not closed; ${NAME}, of which only WDS_... are known
        raise CodoError(f"{place}: no notation of shards: {error}; write train-{{0000..0099}}.tar") from error
    for url in urls:
        scheme = urlsplit(url).scheme
        if scheme == "pipe":  # config files are passed on, and --resume reads them: they must not run commands
            raise CodoError(f"{place}: pipe: would run a command in a shell; download the shards first")
        if scheme and scheme not in (*SCHEMES, "file"):
            raise CodoError(f"{place}: no way to download {scheme}:; there are {', '.join(SCHEMES)}, or paths")
    return urls


def _known(index: Path) -> ShardImages | None:
    """Read an index written before; reading tar files through takes a minute for a million images."""
    try:
        with np.load(index, allow_pickle=False) as arrays:
            return ShardImages.unpack(dict(arrays))
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        return None


def _members(shard: Path) -> Iterator[tuple[str, int, int]]:
    """List a shard's images: name, offset and size."""
    try:
        last = ""
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                base = member.name.rpartition("/")[2]
                if member.isreg() and not member.issparse() and not base.startswith(".") and _is_image(base):
                    yield member.name.replace("\0", "?"), member.offset_data, member.size
                last = member.name
            tar.fileobj.seek(tar.offset)
            if tar.fileobj.read(512).strip(b"\0"):
                raise tarfile.ReadError(f"it is damaged after {last!r}")
            if tar.offset >= shard.stat().st_size:
                raise tarfile.ReadError(f"it ends after {last!r}, without a tar file's end: cut off?")
    except tarfile.ReadError as error:
        raise CodoError(f"shard {shard} cannot be read: {error}; a whole, uncompressed tar file is needed") from error
    except (OSError, tarfile.TarError) as error:
        raise CodoError(f"shard {shard} cannot be read: {error}") from error


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def _local(url: str) -> Path:
    """Give the path of a shard; a remote one is downloaded unless it has been."""
    parts = urlsplit(url)
    if parts.scheme in ("", "file"):
        return Path(parts.path if parts.scheme else url)
    from webdataset.cache import FileCache

    folder = cache_root() / "shards"
    name = f"{hashlib.sha256(url.encode()).hexdigest()[:16]}-{Path(parts.path).name or 'shard.tar'}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _hold(folder)
        return Path(FileCache(str(folder), url_to_name=lambda _: name).get_file(url))
    except (OSError, ValueError, AssertionError) as error:
        (folder / f"{name}.temp{os.getpid()}").unlink(missing_ok=True)
        where = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"  # without passwords and keys
        raise CodoError(f"shard {where} cannot be downloaded: {_reason(error, url)}") from error


def _reason(error: Exception, url: str) -> str:
    text = str(error)
    if "exit 22" in text:  # curl's
        return "the server refused it (does it exist?)"
    found = text.rpartition("exit ")[2].partition(" ")[0] if "exit " in text else ""
    return f"exit code {found}" if found else text.replace(url, "the URL")


def _hold(folder: Path) -> None:
    """Keep `codo cache clear` from the downloads as long as this process runs."""
    if folder not in _locks:
        _locks[folder] = os.open(folder, os.O_RDONLY)
        with suppress(OSError):  # a file system without locks
            fcntl.flock(_locks[folder], fcntl.LOCK_SH)
