"""COCO-format detection sets: where their parts lie, and their JSON read, checked and cleaned."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Container, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any
from urllib.parse import unquote

from msgspec import UNSET

from codo.data.coco_json import (
    Annotations,
    annotation_of,
    check_id,
    checked,
    entries_of,
    entry_of,
    read_categories,
    read_json,
)
from codo.data.files import ImageFiles
from codo.data.images import list_files, list_images
from codo.errors import CodoError
from codo.runs.console import warn

SIMPLE_LAYOUT = "images/ + instances_train.json + instances_val.json"
OFFICIAL_LAYOUT = (
    "annotations/instances_train2017.json + annotations/instances_val2017.json + train2017/ + val2017/ (any year)"
)

# The reasons in `CocoDataset.skipped`, as the user reads them.
FILE_ABSENT = "image whose file is absent"
ANNOTATION_OF_ABSENT_FILE = "annotation of an image whose file is absent"
UNLISTED_IMAGE = "annotation for an image that is not listed"
UNKNOWN_CATEGORY = "annotation with a category that is not listed"
BAD_BOX = "box that is not four finite numbers"
EMPTY_BOX = "box without width or height"
BOX_OUTSIDE = "box wholly outside its image"
BOX_CLIPPED = "box partly outside its image, clipped"

MAX_SIDE = 2**31 - 1
"""Pixels; no file format has more."""

MIN_CLIPPED = 0.01
"""Side in pixels under which what is left of a clipped box is rounding, and no part of an object."""

_IMAGE_KEYS: dict[str, type] = {"id": int, "file_name": str, "width": int, "height": int}
_YEAR = re.compile(r"instances_(train|val)(\d*)\.json")


@dataclass(frozen=True)
class CocoSplits:
    """Where the training and validation annotations of a data set lie, and the folders of their images.

    `layout` is one line to show the user: which layout was found, and which year of several was taken.
    """

    train_json: Path
    train_images: Path
    val_json: Path
    val_images: Path
    layout: str


@dataclass(frozen=True, slots=True)
class CocoImage:
    """One image of the JSON whose file exists; width and height are the JSON's, in pixels."""

    id: int
    file_name: str
    path: Path
    width: int
    height: int


@dataclass(frozen=True)
class CocoDataset:
    """A COCO JSON, checked.

    Attributes:
        images: those whose file exists, with and without annotations, in the JSON's order.
        annotations: image id -> its annotation dicts, a (possibly empty) list for every image: `id`, `image_id`,
            `category_id`, `segmentation` as the JSON has them, `bbox` as four floats xywh in pixels inside the image,
            w and h > 0; `area` (of the box) and `iscrowd` (0) also where it has them not.
        categories: category id -> name, sorted by id; the ids are the data set's own, holes and all.
        skipped: reason -> how many annotations or images it made us skip (or clip); no zero counts.
    """

    images: list[CocoImage]
    annotations: Mapping[int, list[dict[str, Any]]]
    categories: dict[int, str]
    skipped: dict[str, int]


def find_splits(root: Path) -> CocoSplits:
    """Find the training and validation split of a data set in the simple or the official COCO layout.

    Of several years the newest is taken that has both splits; `layout` says so.

    Raises:
        CodoError: no folder `root`, or neither layout in it; names both, and what is there.
    """
    root = Path(root)
    train, val = _split_jsons(root, "train"), _split_jsons(root, "val")
    years = [year for year in train if year in val]
    if not years:
        raise _no_layout(root)
    year = years[0]
    return CocoSplits(
        train[year], _image_folder(root, "train", year), val[year], _image_folder(root, "val", year), _said(years)
    )


def find_split(root: Path, split: str) -> tuple[Path, Path] | None:
    """Find the annotations of a data set's `train` or `val` split and the folder of their images; None without it.

    Of several years the newest that has both splits is taken, as by `find_splits`, or else the newest.

    Raises:
        CodoError: no folder `root`, or none of the images.
    """
    jsons = _split_jsons(root, split)
    if not jsons:
        return None
    other = _split_jsons(root, {"train": "val", "val": "train"}[split])
    year = next((year for year in jsons if year in other), next(iter(jsons)))
    return jsons[year], _image_folder(root, split, year)


def background_paths(root: Path) -> ImageFiles:
    """List the background images of `root`: a COCO-format set's training images, or a plain folder's images.

    Of a COCO-format set only the images listed in the training JSON count; its labels are not read. Without one it is a
    plain folder, of whose images those of a validation split are left out.

    Raises:
        CodoError: as `list_images` and `load_coco`, or all images are of the validation split.
    """
    root = Path(root)
    if training := split_paths(root, "train"):
        return training
    images, validation = list_images(root), set(split_paths(root, "val"))
    if not validation:
        return images
    others = images.take(i for i, path in enumerate(images) if path not in validation)
    if not others:
        raise CodoError(f"{root}: all {len(images)} images are of its validation split; there are none to paste on")
    return others


def split_paths(root: Path, split: str) -> ImageFiles:
    """List the images of a COCO-format set's `train` or `val` split; none where it has no such split.

    Of several years as by `find_split`.

    Raises:
        CodoError: no folder `root`, or a JSON that cannot be used.
    """
    found = find_split(Path(root), split)
    if found is None:
        return ImageFiles.of([])
    json_path, folder = found
    content = read_json(json_path, images_alone=True)
    entries = entries_of(content, "images", json_path)
    images, absent = _images(entries, json_path, folder)
    if absent:
        example = next(e["file_name"] for e in map(entry_of, entries) if e["id"] in absent)
        warn(f"{json_path}: {len(absent)} of its {len(entries)} images are not in {folder}, e.g. {example!r}")
    return ImageFiles.of([image.path for image in images])


def load_coco(json_path: Path, images: Path) -> CocoDataset:
    """Read and check a COCO-format detection JSON.

    Structure must be right; content is cleaned, and what was skipped is counted. Boxes are clipped to their image
    and kept if a hundredth of a pixel remains (COCO has boxes thinner than a pixel). Crowds are kept, and flagged.

    Args:
        json_path: the annotations.
        images: the folder that the `file_name`s are relative to; they may lie in sub-folders.

    Raises:
        CodoError: the JSON is missing, broken (file, line, column) or not COCO (which key is missing where); an
            image or category id occurs twice; a `file_name` leaves `images`; no image file exists.
    """
    json_path = Path(json_path)
    content = read_json(json_path)
    categories = read_categories(content, json_path)
    names = list(categories.values())
    if twice := sorted({name for name in names if names.count(name) > 1}):
        warn(f"{json_path}: several categories are called {', '.join(twice)}: they are learnt as different classes")
    kept, absent = _images(entries_of(content, "images", json_path), json_path, Path(images))
    skipped = {FILE_ABSENT: len(absent)} if absent else {}
    entries = entries_of(content, "annotations", json_path)
    annotations = _annotations(entries, json_path, kept, absent, categories, skipped)
    beyond = skipped.get(BOX_CLIPPED, 0) + skipped.get(BOX_OUTSIDE, 0)
    if beyond > 0.2 * len(entries):
        warn(
            f"{json_path}: {beyond} of {len(entries)} boxes reach beyond their image: are they x1, y1, x2, y2? "
            "COCO's are x, y, width, height"
        )
    return CocoDataset(kept, annotations, categories, skipped)


def _split_jsons(root: Path, split: str) -> dict[str, Path]:
    """Find the JSONs of a split: "simple" first, then the official ones by year, newest first ("" without year)."""
    if not root.is_dir():
        what = "is a file; a folder is expected" if root.exists() else "does not exist"
        raise CodoError(f"data set {root} {what}")
    simple = root / f"instances_{split}.json"
    found = {"simple": simple} if simple.is_file() else {}
    official = [p for p in (root / "annotations").glob(f"instances_{split}*.json") if _YEAR.fullmatch(p.name)]
    years = {path.stem.removeprefix(f"instances_{split}"): path for path in official}
    return found | {year: years[year] for year in sorted(years, key=lambda y: int(y or 0), reverse=True)}


def _image_folder(root: Path, split: str, year: str) -> Path:
    """Find the image folder that goes with a split's JSON; in the simple layout, without `images/`, the root itself."""
    names = ["images", ""] if year == "simple" else [f"{split}{year}", f"images/{split}{year}", "images"]
    for name in names:
        if (root / name).is_dir():
            return root / name
    raise CodoError(f"{root} has the {split} annotations but not the images: no folder {'/, or '.join(names)}/ in it")


def _said(years: list[str]) -> str:
    if years[0] == "simple":
        return "simple layout" + (" (preferred to the official one beside it)" if len(years) > 1 else "")
    newest = f" (the newest of {', '.join(sorted(years))})" if len(years) > 1 else ""
    return f"official COCO layout, {years[0] or 'no year'}{newest}"


def _no_layout(root: Path) -> CodoError:
    there = sorted(entry.name + "/" * entry.is_dir() for entry in root.iterdir())
    there += sorted(f"annotations/{path.name}" for path in (root / "annotations").glob("*.json"))
    shown = ", ".join(there[:12]) + (", ..." if len(there) > 12 else "")
    return CodoError(
        f"{root} is no COCO-format data set: expected {SIMPLE_LAYOUT}, or {OFFICIAL_LAYOUT}; "
        f"there is {shown or 'nothing in it'}"
    )


def _images(entries: list[Any], path: Path, folder: Path) -> tuple[list[CocoImage], set[int]]:
    """Check the image entries; return those whose file exists, and the ids of the others."""
    files, leaving = list_files(folder)
    present, outside = set(files), set(leaving)
    kept: list[CocoImage] = []
    absent: set[int] = set()
    seen: set[int] = set()
    for index, entry in enumerate(entries):
        where = f"{path}: images[{index}]"
        image_id, name, width, height = checked(entry_of(entry), _IMAGE_KEYS, where)
        check_id(image_id, where)
        if not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE):
            size = f"{width!s:.30} x {height!s:.30}"
            raise CodoError(f"{where}: its size is {size}; pixels from 1 to {MAX_SIDE} are expected")
        if image_id in seen:
            raise CodoError(f"{where}: image id {image_id} occurs twice")
        seen.add(image_id)
        # What the listing has lies inside; only other names need the slow look.
        relative = name if name in present else _spelt(name, present, folder) or _inside(name, outside, where, folder)
        if relative in present:
            kept.append(CocoImage(image_id, name, folder / relative, width, height))
        else:
            absent.add(image_id)
    if not entries:
        raise CodoError(f"{path}: it lists no images")
    if not kept:
        example = f", e.g. {entry_of(entries[0])['file_name']!r}"
        raise CodoError(f"{path}: none of its {len(entries)} images{example}, is in {folder}; is it the right folder?")
    return kept, absent


def _spelt(name: str, present: set[str], folder: Path) -> str | None:
    """Find a name as some tools write it: with backslashes, percent-encoded, or with the image folder's own name."""
    for plain in (name, unquote(name)):
        plain = plain.replace("\\", "/")
        for candidate in (plain, plain.removeprefix(f"{folder.name}/")):
            if candidate in present:
                return candidate
    return None


def _inside(name: str, leaving: set[str], where: str, folder: Path) -> str:
    """Return `name` as a plain posix path below `folder`, or refuse it."""
    pure, windows = PurePosixPath(name), PureWindowsPath(name)
    if pure.is_absolute() or windows.anchor or ".." in pure.parts or ".." in windows.parts:
        raise CodoError(f"{where}: file_name {name!r} leaves the image folder {folder}; refused")
    if leaving and any(str(p) in leaving for p in (pure, *pure.parents)):
        raise CodoError(
            f"{where}: {name!r} is, or lies behind, a symbolic link that leads out of {folder}; copy the files (cp -rL)"
        )
    return str(pure)


def _annotations(
    entries: list[Any],
    path: Path,
    images: list[CocoImage],
    absent: set[int],
    known: Container[int],
    skipped: dict[str, int],
) -> Annotations:
    """Clean the annotations and sort them by image; count in `skipped` what was wrong with some."""
    annotations = Annotations([image.id for image in images])
    sizes = {image.id: (image.width, image.height) for image in images}
    for index in range(len(entries)):
        try:
            found = annotation_of(entries[index])
            entries[index] = None  # a million of them are worth letting go
            for key in ("image_id", "category_id", "bbox"):
                if getattr(found, key) is UNSET:
                    raise CodoError(f"{path}: annotations[{index}] has no {key!r}")
            size = sizes.get(found.image_id)
            reason: str | None
            if size is None:
                reason = ANNOTATION_OF_ABSENT_FILE if found.image_id in absent else UNLISTED_IMAGE
            elif found.category_id not in known:
                reason = UNKNOWN_CATEGORY
            else:
                reason, box = _clean_box(found.bbox, *size)
                if box is not None:
                    area = found.area  # absent, null, a string, no finite number: the box's own
                    usable = isinstance(area, int | float) and abs(area) <= sys.float_info.max
                    crowd = found.iscrowd in (1, True, "1")
                    annotations.add(found.image_id, found, box, area if usable else box[2] * box[3], crowd)
        except TypeError:
            raise CodoError(f"{path}: annotations[{index}] is not a COCO annotation") from None
        if reason is not None:
            skipped[reason] = skipped.get(reason, 0) + 1
    return annotations


def _clean_box(box: Any, width: int, height: int) -> tuple[str | None, list[float] | None]:
    """Clip a box; return why it is skipped (or that it was clipped), and what is left of it."""
    if not isinstance(box, list):
        return BAD_BOX, None
    try:
        x, y, w, h = map(float, box)
    except (TypeError, ValueError, OverflowError):
        return BAD_BOX, None
    if not math.isfinite(x + y + w + h):
        return BAD_BOX, None
    if w <= 0 or h <= 0:
        return EMPTY_BOX, None
    x0, y0 = max(x, 0.0), max(y, 0.0)
    x1, y1 = min(x + w, float(width)), min(y + h, float(height))
    cut = (x0, y0) != (x, y) or x + w > width or y + h > height
    if x1 <= x0 or y1 <= y0 or (cut and min(x1 - x0, y1 - y0) < MIN_CLIPPED):
        return BOX_OUTSIDE, None
    # Exports round to a few decimals: a hundredth of a pixel past the edge is clipped, but is not worth a word.
    clipped = x0 - x > 0.01 or y0 - y > 0.01 or x + w - x1 > 0.01 or y + h - y1 > 0.01
    if cut:
        w, h = x1 - x0, y1 - y0
    return BOX_CLIPPED if clipped else None, [x0, y0, w, h]
