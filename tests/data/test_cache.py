"""The image pool: right pixels, made once, reused, rebuilt when damaged, light to pickle."""

from __future__ import annotations

import multiprocessing
import os
import pickle
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from codo.data import cache as module
from codo.data import pool_file
from codo.data.cache import ImagePool
from codo.data.images import ImageError, decode, image_size, list_images, resize
from codo.errors import CodoError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six good images, one of them smaller than any target, and two broken ones."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i, (width, height) in enumerate([(90, 60), (60, 90), (200, 50), (64, 64), (20, 10), (80, 80)]):
        coarse = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        picture = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        picture.save(folder / f"{i}.{'jpg' if i % 2 else 'png'}")
    (folder / "2broken.jpg").write_text("no picture")
    (folder / "9empty.png").touch()
    return folder


def build(folder: Path, **options: Any) -> ImagePool:
    return ImagePool.build(list_images(folder), **{"cache_dir": folder.parent / "cache"} | options)


@pytest.mark.parametrize("cache", ["disk", "off"])
def test_squares(folder: Path, cache: Any) -> None:
    (folder / "2broken.jpg").unlink()
    (folder / "9empty.png").unlink()
    pool = build(folder, square=32, cache=cache)
    assert len(pool) == 6
    assert pool.cached == (cache == "disk")
    assert pool.predicted_bytes == 6 * 32 * 32 * 3
    assert pool.note is None
    assert pool.paths == list_images(folder)
    for path, image in zip(pool.paths, pool, strict=True):
        assert np.array_equal(image, resize(decode(path, min_side=30), 32, 32))
        assert not image.flags.writeable
    assert np.array_equal(pool[-1], pool[5])


@pytest.mark.parametrize("cache", ["disk", "off"])
def test_short_sides_shrink_and_never_grow(folder: Path, cache: Any) -> None:
    (folder / "2broken.jpg").unlink()
    (folder / "9empty.png").unlink()
    pool = build(folder, short_side=30, cache=cache)
    assert [image.shape[:2] for image in pool] == [(30, 45), (45, 30), (30, 120), (30, 30), (10, 20), (30, 30)]
    assert all(image.dtype == np.uint8 and image.flags.c_contiguous and not image.flags.writeable for image in pool)
    assert pool.predicted_bytes == sum(image.nbytes for image in pool)


def test_disk_leaves_broken_images_out_and_names_them(folder: Path) -> None:
    pool = build(folder, square=16, cache="disk")
    assert len(pool) == 6
    assert [path.name for path, _ in pool.broken] == ["2broken.jpg", "9empty.png"]
    assert [reason for _, reason in pool.broken] == ["not an image, or a broken one", "the file is empty"]
    assert {path for path, _ in pool.broken}.isdisjoint(pool.paths)
    for path, image in zip(pool.paths, pool, strict=True):  # indices stay with their paths
        assert np.array_equal(image, resize(decode(path, min_side=15), 16, 16))
    again = build(folder, square=16, cache="disk")
    assert (again.paths, again.broken) == (pool.paths, pool.broken)


def test_off_raises_at_the_broken_image(folder: Path) -> None:
    pool = build(folder, square=16, cache="off")
    assert len(pool) == 8
    assert pool.broken == []
    with pytest.raises(ImageError, match=r"2broken\.jpg: not an image"):
        pool[3]
    assert not (folder.parent / "cache").exists()


def test_second_build_reads_no_image(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, int]] = []
    first = build(folder, square=16, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(i, 8) for i in range(1, 9)]
    pixels = [image.copy() for image in first]
    (file,) = (folder.parent / "cache").iterdir()
    assert file.suffix == ".pool"

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("an image was decoded again")

    monkeypatch.setattr(module, "decode_content", refuse)
    second = build(folder, square=16, progress=refuse)
    assert all(np.array_equal(a, b) for a, b in zip(pixels, second, strict=True))


def test_changed_sources_and_other_sizes_make_another_cache(folder: Path) -> None:
    files = folder.parent / "cache"
    build(folder, square=16)
    build(folder, square=17)
    build(folder, short_side=16)
    assert len(list(files.iterdir())) == 3
    Image.new("RGB", (40, 40), "red").save(folder / "0.png")
    assert (build(folder, square=16)[0] == (255, 0, 0)).all()
    assert len(list(files.iterdir())) == 4
    os.utime(folder / "0.png", ns=(1, 1))
    build(folder, square=16)
    assert len(list(files.iterdir())) == 5


@pytest.mark.parametrize("damage", ["truncated", "empty", "tail", "lengths", "index", "longer"])
def test_a_damaged_cache_is_made_again(folder: Path, damage: str) -> None:
    wanted = [image.copy() for image in build(folder, square=16)]
    (file,) = (folder.parent / "cache").iterdir()
    content = file.read_bytes()
    pixels, _ = pool_file.read_index(file)  # type: ignore[misc]
    file.write_bytes(
        {
            "truncated": content[: pixels // 2],
            "empty": b"",
            "tail": content[:-4] + b"....",
            "lengths": content[:-20] + (2**62).to_bytes(8, "little") + content[-12:],
            "index": content[:pixels] + bytes(len(content) - pixels - 28) + content[-28:],
            "longer": b"\0" + content,
        }[damage]
    )
    pool = build(folder, square=16)
    assert all(np.array_equal(a, b) for a, b in zip(wanted, pool, strict=True))
    assert file.read_bytes() == content


def pixel_sums(pool: ImagePool) -> list[int]:
    return [int(image.sum()) for image in pool]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_other_processes_see_the_same_pixels(folder: Path, method: str) -> None:
    pool = build(folder, square=64)
    sums = pixel_sums(pool)
    with ProcessPoolExecutor(1, multiprocessing.get_context(method)) as workers:
        assert workers.submit(pixel_sums, pool).result() == sums


def test_pickles_ship_no_pixels(folder: Path) -> None:
    pool = build(folder, square=128)
    sums = pixel_sums(pool)  # the map is open now
    shipped = pickle.dumps(pool)
    assert len(shipped) < 5000 < 6 * 128 * 128 * 3
    assert pixel_sums(pickle.loads(shipped)) == sums
    (file,) = (folder.parent / "cache").iterdir()
    file.unlink()
    assert pixel_sums(pool) == sums  # the open map holds the file
    with pytest.raises(CodoError, match="went away"):
        pickle.loads(shipped)[0]


def test_a_full_disk_is_an_error_or_a_note_and_leaves_nothing(folder: Path, full_disk: Any) -> None:
    with full_disk(50_000):
        with pytest.raises(CodoError, match=r"cannot write .*\.pool: File too large"):
            build(folder, square=128, cache="disk")
        pool = build(folder, square=128, cache="auto")
    assert not pool.cached
    assert pool.note is not None
    assert "decoded on each access" in pool.note
    assert "File too large" in pool.note
    assert pool[0].shape == (128, 128, 3)
    assert list((folder.parent / "cache").iterdir()) == []


def test_auto_keeps_to_its_limits(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert build(folder, square=16).cached
    usage = module.shutil.disk_usage(folder)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage._replace(free=2 * 8 * 20 * 20 * 3))
    pool = build(folder, square=20)
    assert not pool.cached
    assert "half of the free disk" in (pool.note or "")
    assert build(folder, square=19).cached
    assert build(folder, square=16).cached  # made before: needs no room
    assert build(folder, square=20, cache="disk").cached  # asked for
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage._replace(free=2**50))
    monkeypatch.setattr(module, "AUTO_LIMIT", 8 * 21 * 21 * 3)
    assert "over 4 GiB" in (build(folder, square=21).note or "")


def test_default_folder_is_the_cache_root(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CODO_CACHE", str(folder.parent / "root"))
    assert ImagePool.build(list_images(folder), square=8).cached
    assert len(list((folder.parent / "root" / "images").glob("*.pool"))) == 1


def test_nothing_usable_is_an_error(folder: Path) -> None:
    for path in folder.glob("[0-9].*"):
        path.unlink()
    for options in ({"square": 8}, {"short_side": 8}):
        with pytest.raises(CodoError, match=r"none of the 2 images can be used; the first: .*2broken\.jpg: not an im"):
            build(folder, **options)
    assert list((folder.parent / "cache").iterdir()) == []
    with pytest.raises(CodoError, match="empty"):
        ImagePool.build([], square=8)


def test_an_image_that_went_away_is_a_broken_one(folder: Path) -> None:
    paths = list_images(folder)
    (folder / "0.png").unlink()
    pool = ImagePool.build(paths, square=8, cache="disk", cache_dir=folder.parent / "cache")
    assert (paths[0], "No such file or directory") in pool.broken


@pytest.mark.parametrize(
    "options", [{}, {"square": 8, "short_side": 8}, {"square": 0}, {"short_side": -1}, {"square": 8, "cache": "moon"}]
)
def test_wrong_arguments(folder: Path, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"exactly one|at least 1|expected"):
        build(folder, **options)


def test_real_images(real_data: Path, tmp_path: Path) -> None:
    paths = list_images(real_data / "objects_open" / "images")[::25]
    pool = ImagePool.build(paths, short_side=96, cache="disk", cache_dir=tmp_path)
    assert pool.paths == paths
    assert {min(image.shape[:2]) for image in pool} == {96}
    assert pool.predicted_bytes == pytest.approx(sum(image.nbytes for image in pool), rel=0.15)


def test_a_scaled_decode_can_be_switched_off(tmp_path: Path, real_data: Path) -> None:
    sizes = {path: image_size(path) for path in list_images(real_data / "tiny_coco" / "images")}
    (tmp_path / "a.jpg").write_bytes(next(p for p, size in sizes.items() if size == (640, 480)).read_bytes())
    scaled, whole = (build(tmp_path, square=256, scaled_decode=on, cache="disk")[0] for on in (True, False))
    assert np.array_equal(whole, resize(decode(tmp_path / "a.jpg"), 256, 256))
    half = decode(tmp_path / "a.jpg", min_side=240)
    assert half.shape == (240, 320, 3)  # of 256 it is enough
    assert np.array_equal(scaled, resize(half, 256, 256))
    difference = np.abs(scaled.astype(int) - whole)
    assert 0 < difference.mean() < 6
    # A bound on the short side is kept to the pixel.
    assert build(tmp_path, short_side=256, cache="off")[0].shape[0] == 256
