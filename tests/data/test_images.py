"""The one decoder on pictures of every kind, the listing of folders, the resize."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile, ImageOps

from codo.data.images import MAX_PIXELS, ImageError, decode, image_size, list_images, resize
from codo.errors import CodoError


def smooth(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A picture that JPEG keeps nearly as it is."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def png_header(width: int, height: int, bits: int = 8) -> bytes:
    """A PNG that claims a size and holds no pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    data = b"IDAT" + zlib.compress(b"")
    chunk += struct.pack(">I", len(data) - 4) + data + struct.pack(">I", zlib.crc32(data))
    return b"\x89PNG\r\n\x1a\n" + chunk


def odd_tiff() -> bytes:
    """A sound 4 x 4 grey TIFF whose EXIF block claims a megabyte that is not there."""
    tags = {256: 4, 257: 4, 258: 8, 259: 1, 262: 1, 273: 200, 278: 4, 279: 16, 34665: 150}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    head = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries
    exif = struct.pack("<HHHII", 1, 0x9286, 7, 10**6, 0)
    return (head.ljust(150, b"\0") + exif).ljust(200, b"\0") + bytes(range(16))


def check_form(image: np.ndarray, height: int, width: int) -> None:
    assert image.shape == (height, width, 3)
    assert image.dtype == np.uint8
    assert image.flags.c_contiguous
    assert image.flags.writeable


@pytest.mark.parametrize("suffix", ["png", "bmp", "webp", "tiff", "ppm"])
def test_lossless_kinds_come_as_they_were(tmp_path: Path, suffix: str) -> None:
    pixels = smooth(9, 14)
    Image.fromarray(pixels).save(tmp_path / f"a.{suffix}", lossless=True)
    image = decode(tmp_path / f"a.{suffix}")
    check_form(image, 9, 14)
    assert np.array_equal(image, pixels)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "I;16", "I", "F"])
def test_modes_look_like_the_picture(tmp_path: Path, mode: str) -> None:
    pixels = smooth(40, 60)
    grey = np.asarray(Image.fromarray(pixels).convert("L"))
    if mode == "I;16":
        source = Image.fromarray(grey.astype(np.uint16) * 257)
    elif mode == "I":
        source = Image.fromarray(grey.astype(np.int32) * 257)
    elif mode == "F":
        source = Image.fromarray(grey.astype(np.float32) / 255)
    elif mode == "P":
        source = Image.fromarray(pixels).quantize(256)
    else:
        source = Image.fromarray(pixels).convert(mode)
    assert source.mode == mode
    kind = {"CMYK": "jpg", "F": "tiff", "I": "tiff"}.get(mode, "png")
    source.save(tmp_path / f"a.{kind}", quality=95)
    assert Image.open(tmp_path / f"a.{kind}").mode == mode
    image = decode(tmp_path / f"a.{kind}")
    check_form(image, 40, 60)
    if mode in ("I;16", "I", "F"):
        assert np.array_equal(image, np.repeat(grey[..., None], 3, 2))  # scaled, not clipped
    elif mode == "1":
        assert set(np.unique(image)) == {0, 255}
    else:
        wanted = np.repeat(grey[..., None], 3, 2) if mode == "L" else pixels
        assert np.abs(image.astype(int) - wanted).mean() < 5


def test_floats_and_integers_without_nominal_range(tmp_path: Path) -> None:
    ramp = np.linspace(-5, 5, 11, dtype=np.float32)[None].repeat(2, 0)
    ramp[0, 3] = np.nan
    Image.fromarray(ramp).save(tmp_path / "float.tiff")
    image = decode(tmp_path / "float.tiff")[..., 0]
    assert image[1].tolist() == [0, 26, 51, 76, 102, 128, 153, 178, 204, 230, 255]
    assert image[0, 3] == 0
    Image.fromarray(np.array([[0, 100], [200, 255]], dtype=np.float32)).save(tmp_path / "bytes.tiff")
    assert decode(tmp_path / "bytes.tiff")[..., 0].tolist() == [[0, 100], [200, 255]]
    Image.fromarray(np.array([[0, 2**20], [2**21, 2**21]], dtype=np.int32)).save(tmp_path / "int.tiff")
    assert decode(tmp_path / "int.tiff")[..., 0].tolist() == [[0, 128], [255, 255]]
    Image.fromarray(np.full((2, 2), np.nan, dtype=np.float32)).save(tmp_path / "nan.tiff")
    with pytest.raises(ImageError, match="no finite pixel"):
        decode(tmp_path / "nan.tiff")


@pytest.mark.parametrize("mode", ["LA", "RGBA", "P", "RGB", "PA"])
def test_transparency_is_white(tmp_path: Path, mode: str) -> None:
    """Left half opaque black, right half transparent."""
    alpha = np.zeros((4, 8), dtype=np.uint8)
    alpha[:, :4] = 255
    if mode == "P":
        source = Image.new("P", (8, 4))
        source.putdata([0, 0, 0, 0, 1, 1, 1, 1] * 4)
        source.putpalette([0, 0, 0, 10, 20, 30])
        source.save(tmp_path / "a.png", transparency=bytes([255, 0]))
    elif mode == "RGB":
        colours = np.zeros((4, 8, 3), dtype=np.uint8)
        colours[:, 4:] = (9, 8, 7)
        Image.fromarray(colours).save(tmp_path / "a.png", transparency=(9, 8, 7))
    elif mode == "PA":
        Image.fromarray(np.dstack([alpha * 0] * 3 + [alpha])).convert("PA").convert("RGBA").save(tmp_path / "a.gif")
    else:
        channels = [np.zeros_like(alpha)] * (len(mode) - 1) + [alpha]
        Image.fromarray(np.dstack(channels)).save(tmp_path / "a.png")
    image = decode(next(tmp_path.iterdir()))
    check_form(image, 4, 8)
    assert (image[:, :4] == 0).all()
    assert (image[:, 4:] == 255).all()


def test_half_transparency_is_blended(tmp_path: Path) -> None:
    Image.new("RGBA", (3, 2), (0, 100, 200, 128)).save(tmp_path / "a.png")
    assert decode(tmp_path / "a.png")[0, 0].tolist() == [127, 177, 227]


@pytest.mark.parametrize("kind", ["jpg", "png", "tiff", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path: Path, kind: str, orientation: int) -> None:
    source = Image.fromarray(smooth(16, 40))
    exif = Image.Exif()
    exif[0x0112] = orientation
    source.save(tmp_path / f"a.{kind}", exif=exif, quality=95)
    plain = io.BytesIO()
    source.save(plain, "jpeg", exif=exif, quality=95)
    wanted = np.asarray(ImageOps.exif_transpose(Image.open(plain)))
    image = decode(tmp_path / f"a.{kind}")
    assert image.shape == wanted.shape == ((40, 16, 3) if orientation >= 5 else (16, 40, 3))
    assert np.abs(image.astype(int) - wanted).mean() < 6
    assert sorted(image_size(tmp_path / f"a.{kind}")) == [16, 40]


@pytest.mark.parametrize("kind", ["gif", "webp", "png", "tiff"])
def test_first_frame_of_several(tmp_path: Path, kind: str) -> None:
    frames = [Image.new("RGB", (12, 10), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / f"a.{kind}", save_all=True, append_images=frames[1:])
    assert Image.open(tmp_path / f"a.{kind}").n_frames == 2  # type: ignore[attr-defined]
    assert np.abs(decode(tmp_path / f"a.{kind}").astype(int) - (255, 0, 0)).max() <= 2


def test_one_pixel(tmp_path: Path) -> None:
    Image.new("RGB", (1, 1), (1, 2, 3)).save(tmp_path / "a.png")
    assert decode(tmp_path / "a.png", min_side=64).tolist() == [[[1, 2, 3]]]


def test_min_side_draws_jpegs_small_but_not_too_small(tmp_path: Path) -> None:
    pixels = smooth(400, 600)
    Image.fromarray(pixels).save(tmp_path / "a.jpg", quality=95)
    assert decode(tmp_path / "a.jpg").shape == (400, 600, 3)
    assert decode(tmp_path / "a.jpg", min_side=101).shape == (200, 300, 3)
    small = decode(tmp_path / "a.jpg", min_side=50)
    check_form(small, 50, 75)
    assert np.abs(small.astype(int) - resize(pixels, 75, 50)).mean() < 2
    assert decode(tmp_path / "a.jpg", min_side=4000).shape == (400, 600, 3)


def truncated_jpeg() -> bytes:
    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file, "jpeg")
    return file.getvalue()[: len(file.getvalue()) // 2]


def truncated_png() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(file, "png")
    return file.getvalue()[:5000]


UNUSABLE: dict[str, tuple[Callable[[], bytes], str]] = {
    "truncated.jpg": (truncated_jpeg, "truncated"),
    "truncated.png": (truncated_png, "truncated|broken"),
    "text.jpg": (lambda: b"hello, this is no picture\n" * 9, "not an image"),
    "empty.png": (lambda: b"", "empty"),
    "zero.png": (lambda: png_header(0, 5), "0 x 5|not an image"),
    "bomb.png": (lambda: png_header(60000, 60000), "178,956,970 pixels"),
    "postscript.jpg": (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "not an image"),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_unusable_pictures_are_named_in_one_line(tmp_path: Path, name: str) -> None:
    make, reason = UNUSABLE[name]
    (tmp_path / name).write_bytes(make())
    with pytest.raises(ImageError, match=reason) as caught:
        decode(tmp_path / name)
    assert str(caught.value).startswith(f"{tmp_path / name}: ")
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, CodoError)


def test_absent_file_and_folder_are_image_errors(tmp_path: Path) -> None:
    for path, reason in {tmp_path / "none.jpg": "No such file", tmp_path: "directory"}.items():
        for read in (decode, image_size):
            with pytest.raises(ImageError, match=reason):
                read(path)


def test_bomb_is_refused_even_where_pillow_was_told_not_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    (tmp_path / "a.png").write_bytes(png_header(MAX_PIXELS // 1000 + 1, 1000))
    with pytest.raises(ImageError, match="pixels; scale it down"):
        decode(tmp_path / "a.png")


def test_nothing_is_printed_and_no_global_is_touched(tmp_path: Path) -> None:
    (tmp_path / "large.png").write_bytes(png_header(10_000, 10_000, bits=1))  # where Pillow warns of a bomb
    Image.new("RGB", (8, 8), "red").save(tmp_path / "exif.jpg", exif=b"Exif\0\0II*\0\x08\0\0\0\x09\0\x12\x01\x03\0")
    (tmp_path / "odd.tif").write_bytes(odd_tiff())
    before = (ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS, list(warnings.filters))
    with pytest.warns(UserWarning, match="Corrupt EXIF"):
        Image.open(tmp_path / "exif.jpg").getexif()
    with pytest.warns(UserWarning, match="Tag data larger than file"):
        Image.open(tmp_path / "odd.tif").load()
    with pytest.warns(Image.DecompressionBombWarning):
        Image.open(tmp_path / "large.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ImageError, match=r"truncated|broken"):
            decode(tmp_path / "large.png")
        assert decode(tmp_path / "exif.jpg").shape == (8, 8, 3)
        assert decode(tmp_path / "odd.tif")[..., 0].ravel().tolist() == list(range(16))
        assert image_size(tmp_path / "large.png") == (10_000, 10_000)
    assert (ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS, list(warnings.filters)) == before


def test_list_images_is_deep_sorted_and_passes_over_the_rest(tmp_path: Path) -> None:
    for name in ("b/x.PNG", "a.jpeg", "b/a.TiF", "c.txt", ".hidden.jpg", ".git/a.jpg", "b/c/d.webp", "b.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = [path.relative_to(tmp_path).as_posix() for path in list_images(tmp_path)]
    assert found == ["a.jpeg", "b.jpg", "b/a.TiF", "b/c/d.webp", "b/x.PNG"]


def test_links(tmp_path: Path) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "inside-out"
    for folder in (inside / "sub", outside):
        folder.mkdir(parents=True)
    (inside / "a.jpg").touch()
    (outside / "b.jpg").touch()
    (inside / "link.jpg").symlink_to("a.jpg")
    (inside / "sub" / "circle").symlink_to(inside)
    (tmp_path / "alias").symlink_to(inside)
    assert [p.name for p in list_images(inside)] == ["a.jpg", "link.jpg"]
    assert list_images(tmp_path / "alias") == [tmp_path / "alias" / "a.jpg", tmp_path / "alias" / "link.jpg"]
    (inside / "notes.txt").symlink_to(outside / "b.jpg")
    assert len(list_images(inside)) == 2  # no image by its name: nobody would read it
    (inside / "far.jpg").symlink_to(outside / "b.jpg")
    with pytest.raises(CodoError, match=r"far\.jpg is a symbolic link that leads out"):
        list_images(inside)
    (inside / "far.jpg").unlink()
    (inside / "far").symlink_to(outside)
    with pytest.raises(CodoError, match="far is a symbolic link that leads out"):
        list_images(inside)


def test_list_images_says_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "a.txt").touch()
    for folder, reason in {
        tmp_path / "none": "does not exist",
        tmp_path / "a.txt": "is a file; a folder is expected",
        tmp_path: "none of its 1 files ends in jpg jpeg",
    }.items():
        with pytest.raises(CodoError, match=reason):
            list_images(folder)


@pytest.mark.parametrize("size", [(64, 64), (200, 254), (31, 7), (1, 1)])
@pytest.mark.parametrize("box", [None, (3, 5, 60, 47), (10, 0, 11, 1)])
def test_resize_is_pillows_bilinear(size: tuple[int, int], box: tuple[int, int, int, int] | None) -> None:
    pixels = smooth(48, 64)
    wanted = np.asarray(Image.fromarray(pixels).crop(box or (0, 0, 64, 48)).resize(size, Image.Resampling.BILINEAR))
    result = resize(pixels, *size, box=box)
    check_form(result, size[1], size[0])
    assert np.abs(result.astype(int) - wanted).max() <= 1


def test_resize_of_read_only_memory_warns_of_nothing_and_shares_nothing() -> None:
    pixels = smooth(20, 30).copy()
    pixels.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        same = resize(pixels, 30, 20)
        part = resize(pixels, 8, 8, box=(0, 0, 8, 8))
        resize(pixels, 9, 9)
    assert np.array_equal(same, pixels)
    assert np.array_equal(part, pixels[:8, :8])
    same[:] = 0
    part[:] = 0
    assert pixels.any()


def test_resize_rounds_boxes_and_refuses_wrong_ones() -> None:
    pixels = smooth(20, 30)
    assert np.array_equal(resize(pixels, 10, 10, (1.4, 2.6, 11.4, 12.6)), pixels[3:13, 1:11])
    assert np.array_equal(resize(pixels, 1, 1, (29.9, 19.8, 30, 20)), pixels[19:, 29:])
    for box in ((-1, 0, 5, 5), (0, 0, 31, 5), (5, 0, 5, 5), (0, 9, 5, 3), (0, 0, float("nan"), 5)):
        with pytest.raises(ValueError, match="crop box"):
            resize(pixels, 4, 4, box)
    with pytest.raises(ValueError, match="at least 1"):
        resize(pixels, 0, 4)


def test_real_images_decode(real_data: Path) -> None:
    paths = list_images(real_data / "objects_open" / "images")
    assert len(paths) > 2000
    for path in paths[::100]:
        image = decode(path, min_side=128)
        assert image_size(path) == (image.shape[1], image.shape[0])
        assert image.std() > 1


def test_photos_of_formats_that_are_not_read_are_told_once(tmp_path, capsys):
    for name in ("a.jpg", "b.HEIC", "c.heic", "d.avif", "notes.txt"):
        (tmp_path / name).touch()
    assert [path.name for path in list_images(tmp_path)] == ["a.jpg"]
    said = " ".join(capsys.readouterr().err.split())
    assert "photos of formats that are not read are passed over (1 .avif, 2 .heic)" in said
    list_images(tmp_path)
    assert capsys.readouterr().err == ""
