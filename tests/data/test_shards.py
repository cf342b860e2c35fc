"""Tar shards: the same images as their files, local and downloaded; refused where that would be unsafe or wrong."""

from __future__ import annotations

import gzip
import io
import pickle
import shutil
import sys
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from webdataset import ShardWriter

from codo.data import shards as module
from codo.data.cache import ImagePool
from codo.data.cache_care import clear, entries, verify
from codo.data.files import Member, ShardImages, data_fingerprint
from codo.data.images import ImageError, decode, image_size
from codo.data.shards import Shards, is_shards, list_shards, place_of
from codo.errors import CodoError

COUNT = 7


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Encoded images, the fourth broken; the cache is this test's own."""
    monkeypatch.setenv("CODO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "_locks", {})
    rng = np.random.default_rng(0)
    found = []
    for i in range(COUNT):
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (20 + i, 30, 3), dtype=np.uint8)).save(file, "PNG")
        found.append(file.getvalue())
    found[3] = b"broken"
    return found


@pytest.fixture
def place(tmp_path: Path, pictures: list[bytes]) -> str:
    """Three shards as webdataset writes them, with labels beside the images."""
    (tmp_path / "shards").mkdir()
    with ShardWriter(str(tmp_path / "shards" / "train-%04d.tar"), maxcount=3, verbose=0) as writer:
        for i, content in enumerate(pictures):
            writer.write({"__key__": f"photos/{i:06d}", "png": content, "cls": i})
    return str(tmp_path / "shards" / "train-{0000..0002}.tar")


def test_shards_are_told_from_folders(tmp_path: Path) -> None:
    (tmp_path / "folder.tar").mkdir()
    assert not is_shards(str(tmp_path / "folder.tar"))
    assert place_of("photos/train") == Path("photos/train")
    assert place_of("s/train-{00..10}.tar") == Shards("s/train-{00..10}.tar")
    assert Shards("https://host/a/train-{00..10}.tar?key=secret").name == "train-{00..10}.tar"
    assert is_shards("pipe:cat x")
    assert is_shards("::".join(f"{'a' * 100}-{n}.tar" for n in range(9)))  # no name of a file is so long


def test_members_are_the_images(place: str, pictures: list[bytes], tmp_path: Path) -> None:
    images = list_shards(place)
    assert len(images) == COUNT
    assert [image.read_bytes() for image in images] == pictures
    first = images[0]
    assert isinstance(first, Member)
    assert (first.name, first.member) == ("000000.png", "photos/000000.png")
    assert str(images[4]) == f"{tmp_path / 'shards' / 'train-0001.tar'}:photos/000004.png"
    assert image_size(images[4]) == (30, 24)
    assert decode(images[4]).shape == (24, 30, 3)
    with pytest.raises(ImageError, match=r"train-0001\.tar:photos/000003\.png: not an image"):
        decode(images[3])
    some = images.take([5, 1])
    assert [image.name for image in some] == ["000005.png", "000001.png"]
    assert [image.read_bytes() for image in pickle.loads(pickle.dumps(some))] == [pictures[5], pictures[1]]
    assert list(ShardImages.unpack(images.pack())) == list(images)


def test_the_fingerprint_is_of_names_and_sizes(place: str, tmp_path: Path) -> None:
    first = data_fingerprint(list_shards(place))
    shutil.copytree(tmp_path / "shards", tmp_path / "elsewhere")
    assert data_fingerprint(list_shards(place.replace("shards", "elsewhere"))) == first
    assert data_fingerprint(list_shards(place.replace("0002", "0001"))) != first


def test_shards_are_read_through_once(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, int]] = []
    images = list_shards(place, lambda *step: told.append(step))
    assert told[-1] == (6, 6)
    with monkeypatch.context() as patch:
        patch.setattr(module, "_members", None)
        assert list_shards(place) == images
    (index,) = (tmp_path / "cache" / "shards").iterdir()
    index.write_bytes(index.read_bytes()[:100])
    assert list_shards(place) == images  # a damaged index is made again
    with ShardWriter(str(tmp_path / "shards" / "train-%04d.tar"), maxcount=3, verbose=0) as writer:
        writer.write({"__key__": "other", "png": b"x"})
    assert list_shards(place)[0].member == "other.png"  # a changed shard is read anew


def test_downloads_of_another_user_are_read(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise PermissionError

    shared = tmp_path / "cache" / "shards"
    shutil.copytree(tmp_path / "shards", shared)
    monkeypatch.setattr(module.os, "utime", refused)
    assert len(list_shards(str(shared / "train-{0000..0002}.tar"))) == COUNT


@pytest.mark.parametrize("cache", ["disk", "ram", "off"])
def test_a_pool_of_members(place: str, pictures: list[bytes], cache: Any) -> None:
    pool = ImagePool.build(list_shards(place), square=16, cache=cache)
    if cache == "off":
        with pytest.raises(ImageError, match="not an image"):
            pool[3]
        pool = ImagePool.build(list_shards(place).take([0, 1, 2, 4, 5, 6]), square=16, cache=cache)
    else:
        assert [source.name for source, _ in pool.broken] == ["000003.png"]
    assert [path.name for path in pool.paths] == [f"{i:06d}.png" for i in (0, 1, 2, 4, 5, 6)]
    assert len(pool) == 6
    assert all(image.shape == (16, 16, 3) for image in pool)
    if cache == "disk":
        (file,) = [entry.file for entry in entries() if entry.file.suffix == ".pool"]
        assert verify(file) == (True, "7 images whole, and equal to their sources")


def test_what_is_no_image_file_is_passed_over(place: str, pictures: list[bytes], tmp_path: Path) -> None:
    """Links, folders and hidden members; a name that climbs is a name: nothing is ever written under it."""
    with tarfile.open(tmp_path / "odd.tar", "w") as tar:
        for name, kind in {
            "link.png": tarfile.SYMTYPE,
            "hard.png": tarfile.LNKTYPE,
            "dir.png": tarfile.DIRTYPE,
        }.items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            tar.addfile(member)
        for name in (".hidden.png", "../../climbs.png", "/absolute.png"):
            member = tarfile.TarInfo(name)
            member.size = len(pictures[0])
            tar.addfile(member, io.BytesIO(pictures[0]))
    before = sorted(tmp_path.parent.rglob("*.png"))
    images = list_shards(str(tmp_path / "odd.tar"))
    assert [image.member for image in images] == ["../../climbs.png", "/absolute.png"]
    assert len(ImagePool.build(images, square=8, cache="disk")) == 2
    assert len(data_fingerprint(images)) == 64
    assert sorted(tmp_path.parent.rglob("*.png")) == before


def test_what_cannot_be_used_is_said(place: str, tmp_path: Path) -> None:
    def refused(text: str, match: str) -> None:
        with pytest.raises(CodoError, match=match):
            list_shards(text)

    whole = (tmp_path / "shards" / "train-0000.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[:3000])
    (tmp_path / "packed.tar").write_bytes(gzip.compress(whole))
    with tarfile.open(tmp_path / "none.tar", "w"):
        pass
    refused(place.replace("0002", "0003"), r"shard .*train-0003\.tar does not exist")
    refused(str(tmp_path / "cut.tar"), r"shard .*cut\.tar cannot be read: .*whole, uncompressed")
    with tarfile.open(tmp_path / "shards" / "train-0000.tar") as tar:
        second = tar.getmembers()[1].offset
    (tmp_path / "cut.tar").write_bytes(whole[:second])
    refused(str(tmp_path / "cut.tar"), r"cut\.tar cannot be read: it ends after .*cut off\?")
    (tmp_path / "cut.tar").write_bytes(whole[:second] + b"x" * 512 + whole[second + 512 :])
    refused(str(tmp_path / "cut.tar"), r"cut\.tar cannot be read: it is damaged after")
    refused("train-{0000..0099.tar", r"no notation of shards")
    refused("${DATA}/train.tar", r"no notation of shards")
    refused(str(tmp_path / "packed.tar"), r"shard .*packed\.tar cannot be read: .*whole, uncompressed")
    refused(str(tmp_path / "none.tar"), r"no images in .*none\.tar")
    refused("gopher://host/a.tar", "no way to download gopher:")
    touched = tmp_path / "touched"
    refused(f"pipe:touch {touched}", "pipe: would run a command in a shell; download the shards first")
    refused(f"{place}::pipe:touch {touched}", "pipe:")
    assert not touched.exists()


def test_the_extra_is_named_where_it_is_missing(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "webdataset.shardlists", None)
    with pytest.raises(CodoError, match=r"pip install 'codo\[webdataset\]'"):
        list_shards(place)


@pytest.fixture
def server(place: str, tmp_path: Path) -> Iterator[tuple[str, list[str]]]:
    """A server of the shards, and the paths that were asked of it."""
    asked: list[str] = []

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, form: str, *args: Any) -> None:
            asked.append(self.path)

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(tmp_path / "shards"))) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_address[1]}", asked
        http.shutdown()


@pytest.mark.skipif(shutil.which("curl") is None, reason="webdataset downloads with curl")
def test_remote_shards_are_downloaded_once(
    server: tuple[str, list[str]], place: str, pictures: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, asked = server
    images = list_shards(f"{url}/train-{{0000..0002}}.tar?key=secret")
    assert [image.read_bytes() for image in images] == pictures
    assert len(asked) == 3
    list_shards(f"{url}/train-{{0000..0002}}.tar?key=secret")
    assert len(asked) == 3
    assert "secret" not in "".join(file.name for file in (tmp_path / "cache" / "shards").iterdir())
    found = entries()
    assert sorted(entry.content for entry in found) == ["downloaded shard"] * 3 + ["index of shards"]
    assert all(entry.held for entry in found)
    assert clear(found)[0] == []  # this process uses them
    for descriptor in module._locks.values():
        module.os.close(descriptor)
    assert len(clear(found)[0]) == 4
    with pytest.raises(CodoError, match=r"shard http://127[^?]*absent\.tar cannot be downloaded: the server refused"):
        list_shards(f"{url}/absent.tar?key=secret")
    assert list((tmp_path / "cache" / "shards").iterdir()) == []
