"""Images in: finding them, the project's one decoder, and the resize of its hot path."""

from __future__ import annotations

import io
import os
import threading
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import interpolate

from codo.data.files import ImageFiles, ImageSource, Member, read_source, source_size
from codo.errors import CodoError
from codo.runs.console import warn

SUFFIXES: tuple[str, ...] = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".pbm"
)  # fmt: skip
"""File name endings that count as images, whatever their case."""

UNREAD = (".heic", ".heif", ".avif", ".jxl", ".dng", ".cr2", ".nef", ".arw")
"""Endings of photos that are not read; a folder that has some is told so."""

MAX_PIXELS = 178_956_970
"""Larger pictures are refused: twice Pillow's warning threshold, where Pillow itself speaks of a bomb."""

# Only these of Pillow's readers may see a file: some others start programs (EPS runs Ghostscript). JPEG's covers MPO.
_FORMATS = ("JPEG", "PNG", "BMP", "DIB", "WEBP", "TIFF", "GIF", "PPM")

_WARNINGS = threading.Lock()


class ImageError(CodoError):
    """A picture that cannot be used; the message begins with its path."""


class Listing(NamedTuple):
    """The files below a folder, hidden ones left out, as posix paths relative to it.

    Attributes:
        files: regular files, and symbolic links to files that stay inside the folder; sorted.
        leaving: symbolic links, to files or folders, that lead out of the folder; sorted.
    """

    files: list[str]
    leaving: list[str]


def list_files(folder: Path) -> Listing:
    """List every file below `folder` without a stat per file.

    The folder itself may be a link. Links inside it to files inside it are listed; links to folders are never
    entered (they may go in circles); links that lead out are listed apart, for the caller to refuse.

    Raises:
        CodoError: the folder, or one below it, is missing, is a file, or may not be read.
    """
    if not folder.is_dir():
        what = "is a file; a folder is expected" if folder.exists() else "does not exist"
        raise CodoError(f"image folder {folder} {what}")
    home = os.path.realpath(folder)
    files: list[str] = []
    leaving: list[str] = []
    pending = [""]
    while pending:
        prefix = pending.pop()
        try:
            entries = list(os.scandir(os.path.join(folder, prefix)))
        except OSError as error:
            raise CodoError(f"image folder {folder / prefix} cannot be read: {error.strerror}") from error
        for entry in entries:
            if entry.name.startswith("."):
                continue
            name = prefix + entry.name
            if entry.is_dir(follow_symlinks=False):
                pending.append(name + "/")
            elif not entry.is_symlink():
                files.append(name)
            elif not os.path.join(os.path.realpath(entry.path), "").startswith(os.path.join(home, "")):
                leaving.append(name)
            elif not entry.is_dir():
                files.append(name)
    return Listing(sorted(files), sorted(leaving))


def list_images(folder: Path) -> ImageFiles:
    """List the images below `folder`, at any depth, sorted by their posix path relative to it.

    Hidden files and folders are ignored. A link that leads out of the folder is refused: following it would read
    what the user did not name, and passing over it would silently train on less than the user believes.

    Raises:
        CodoError: the folder is missing, is a file, may not be read, has no image, or has a link that leads out.
    """
    folder = Path(folder)
    listing = list_files(folder)
    for name in listing.leaving:
        if name.lower().endswith(SUFFIXES) or (folder / name).is_dir():
            raise CodoError(
                f"{folder / name} is a symbolic link that leads out of {folder}; "
                "name the folder that it leads to, or copy the files (cp -rL)"
            )
    passed = Counter(suffix for name in listing.files if (suffix := Path(name).suffix.lower()) in UNREAD)
    if passed:
        _tell_passed(folder, ", ".join(f"{count} {suffix}" for suffix, count in sorted(passed.items())))
    images = ImageFiles(folder, (name for name in listing.files if name.lower().endswith(SUFFIXES)))
    if not images:
        known = " ".join(suffix[1:] for suffix in SUFFIXES)
        raise CodoError(f"no images in {folder}: none of its {len(listing.files)} files ends in {known}")
    return images


@cache
def _tell_passed(folder: Path, what: str) -> None:
    warn(f"{folder}: photos of formats that are not read are passed over ({what}); convert them to JPEG or PNG")


def decode(path: ImageSource, min_side: int | None = None) -> np.ndarray:
    """Decode one image file of any kind to RGB.

    EXIF orientation is applied. Alpha and transparent palette entries are composited on white. 16-bit grey is scaled
    by its nominal range 0..65535; 32-bit integers and floats have none: 0..65535 respectively 0..1 or 0..255 are taken
    where all values lie in it, else the picture's own range. Animations and multi-page files give their first frame.

    Args:
        path: the file, or the member of a tar file.
        min_side: if given, a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size (several times faster), as long as
            its short side stays >= `min_side` pixels. Other formats come at full size.

    Returns:
        `(H, W, 3) uint8`, C-contiguous, writable, owned by the caller.

    Raises:
        ImageError: the file is missing, empty, truncated, broken, no image, or has more than `MAX_PIXELS` pixels.
    """
    with _refusing(path):
        # One sequential read; so the lock on the warning filters is held for a header parse and never for a disk.
        return _decode_bytes(read_source(path), min_side)


def decode_content(content: bytes, path: ImageSource, min_side: int | None = None) -> np.ndarray:
    """Decode the bytes that were read from `path`; see `decode`."""
    with _refusing(path):
        return _decode_bytes(content, min_side)


def read_content(path: ImageSource) -> bytes:
    """Read an image's bytes; raises `ImageError`."""
    with _refusing(path):
        return read_source(path)


def image_size(path: ImageSource) -> tuple[int, int]:
    """Read (width, height) from the header alone; EXIF may swap them in what `decode` gives. Raises `ImageError`."""
    with _refusing(path), _quiet():
        file = io.BytesIO(path.read_bytes()) if isinstance(path, Member) else path
        with Image.open(file, formats=_FORMATS) as image:
            return image.size


def resize(
    image: np.ndarray, width: int, height: int, box: tuple[float, float, float, float] | None = None
) -> np.ndarray:
    """Resize an image, or the crop `box` of it: bilinear, anti-aliased when shrinking.

    torch's uint8 kernel, measured 1.1 to 5 times faster than Pillow's on one thread and within 1/255 of it.

    Args:
        image: `(H, W, 3) uint8`; may be read-only and a view.
        width: of the result, >= 1, in pixels.
        height: of the result, >= 1, in pixels.
        box: xyxy in pixels of `image`, inside of it; rounded to whole pixels, at least one.

    Returns:
        `(height, width, 3) uint8`, C-contiguous; never shares memory with `image`.

    Raises:
        ValueError: a size below 1, or a box that is empty or leaves the image.
    """
    if width < 1 or height < 1:
        raise ValueError(f"resize to {width} x {height}: both sides must be at least 1")
    if box is not None:
        image = _crop(image, box)
    # The copy makes the crop dense and writable: torch warns of read-only memory, and a memory map is that.
    source = np.array(image, dtype=np.uint8, order="C")
    if source.shape[:2] == (height, width):
        return source
    # A channels-last (1, 3, H, W), in the strides that torch knows for one: the result is channels-last as well.
    planes = torch.from_numpy(source)[None].permute(0, 3, 1, 2)
    resized = interpolate(planes, size=(height, width), mode="bilinear", antialias=True)
    return np.ascontiguousarray(resized.permute(0, 2, 3, 1).numpy()[0])


def _crop(image: np.ndarray, box: tuple[float, float, float, float]) -> np.ndarray:
    """View the whole-pixel crop nearest to `box`."""
    x0, y0, x1, y1 = box
    rows, columns = image.shape[:2]
    if not (0 <= x0 < x1 <= columns and 0 <= y0 < y1 <= rows):
        raise ValueError(f"crop box {box} is empty or leaves the image of {columns} x {rows} pixels")
    left, top = min(round(x0), columns - 1), min(round(y0), rows - 1)
    return image[top : max(round(y1), top + 1), left : max(round(x1), left + 1)]


@contextmanager
def _refusing(path: ImageSource) -> Iterator[None]:
    """Turn whatever reading a picture raises into an `ImageError` of one line that begins with its path."""
    try:
        yield
    except Image.UnidentifiedImageError as error:
        empty = source_size(path) == 0
        raise ImageError(f"{path}: {'the file is empty' if empty else 'not an image, or a broken one'}") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"{path}: more than {MAX_PIXELS:,} pixels; scale it down") from error
    except Exception as error:  # Pillow's readers raise nearly everything on broken bytes
        what = error.strerror if isinstance(error, OSError) else None
        raise ImageError(f"{path}: {' '.join((what or str(error)).split()) or type(error).__name__}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Pillow's warnings (odd EXIF, large picture) from being printed; locked, as filters are the process's."""
    with _WARNINGS, warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


def _decode_bytes(data: bytes, min_side: int | None) -> np.ndarray:
    """Decode an image file's content; raises whatever Pillow raises."""
    with _quiet():
        image: Image.Image = Image.open(io.BytesIO(data), formats=_FORMATS)
        if image.width < 1 or image.height < 1:
            raise ValueError(f"its size is {image.width} x {image.height}")
        if image.width * image.height > MAX_PIXELS:
            raise Image.DecompressionBombError
        if image.format == "TIFF":  # the only reader that still parses, and warns, while it loads
            image.load()
    if min_side is not None:
        image.draft("RGB", (min_side, min_side))
    image.load()
    # After load: Pillow turns TIFFs while loading them and then forgets their tag; PNG may carry EXIF at its end.
    return np.ascontiguousarray(_upright(_to_rgb(image), _orientation(image)))


def _orientation(image: Image.Image) -> int:
    """Read EXIF's orientation, 1..8; 1 where there is none or the EXIF block is broken."""
    try:
        with _quiet():
            return int(image.getexif().get(0x0112, 1))
    except Exception:  # a broken EXIF block does not make the pixels unusable
        return 1


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Undo EXIF's `orientation` (values as in the EXIF standard's table; unknown ones change nothing)."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def _to_rgb(image: Image.Image) -> np.ndarray:
    """Convert a loaded picture of any mode to `(H, W, 3) uint8`."""
    if image.mode.startswith("I") or image.mode == "F":
        grey = _grey_to_uint8(np.asarray(image))
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def _grey_to_uint8(values: np.ndarray) -> np.ndarray:
    """Scale `(H, W)` grey of more than 8 bits to uint8; see `decode` for the ranges."""
    if values.dtype.kind == "u":
        return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    finite = np.isfinite(values)
    if not finite.any():
        raise ValueError("no finite pixel value")
    low, high = float(values[finite].min()), float(values[finite].max())
    if values.dtype.kind == "i":
        nominal = 65535.0 if low >= 0 and high <= 65535 else None
    else:
        nominal = 1.0 if low >= 0 and high <= 1 else 255.0 if low >= 0 and high <= 255 else None
    if nominal is not None:
        low, high = 0.0, nominal
    scaled = (np.where(finite, values, low).astype(np.float64) - low) * (255.0 / max(high - low, 1e-300))
    return np.rint(scaled).astype(np.uint8)
