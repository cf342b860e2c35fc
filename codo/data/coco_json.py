"""Reading COCO's big JSONs: in seconds and lean for their size, with errors that say where."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from msgspec import UNSET, Raw, Struct

from codo.errors import CodoError

_NO_ID = -(2**63)  # of an annotation without one

MAX_ID = 2**63 - 1
"""Of images and categories, negative or not."""


class Annotation(Struct, gc=False):
    """What is read of an annotation; any value may be wrong."""

    id: Any = UNSET
    image_id: Any = UNSET
    category_id: Any = UNSET
    bbox: Any = UNSET
    area: Any = UNSET
    iscrowd: Any = UNSET
    segmentation: Raw | msgspec.UnsetType = UNSET


class _Content(Struct):
    """A JSON's lists, their entries not yet looked into: a million entries as objects would take 4 times the file."""

    images: list[Raw] | msgspec.UnsetType = UNSET
    annotations: list[Raw] | msgspec.UnsetType = UNSET
    categories: list[Any] | msgspec.UnsetType = UNSET


class _Images(Struct):
    images: list[Raw] | msgspec.UnsetType = UNSET


_object = msgspec.json.Decoder()
_annotation = msgspec.json.Decoder(Annotation)


def read_json(path: Path, *, images_alone: bool = False) -> dict[str, Any]:
    """Read a COCO JSON's lists, with errors a user can act on.

    Args:
        path: the file.
        images_alone: pass over annotations and categories.

    Returns:
        Those of `images`, `annotations` and `categories` that are there. Entries are for `entry_of`, `annotation_of`.

    Raises:
        CodoError: it cannot be read, or is no JSON object.
    """
    try:
        data = memoryview(path.read_bytes())
    except OSError as error:
        raise CodoError(f"annotations {path} cannot be read: {error.strerror}") from error
    data = data[3:] if data[:3] == b"\xef\xbb\xbf" else data
    try:
        content = msgspec.json.decode(data, type=_Images if images_alone else _Content)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return _read_slowly(path)  # a NaN, which JSON has not and exports have; or what is wrong, and where
    return {name: getattr(content, name) for name in content.__struct_fields__ if getattr(content, name) is not UNSET}


def _read_slowly(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise CodoError(
            f"{path} is not valid JSON: {error.msg} at line {error.lineno}, column {error.colno}"
            + (" (the end of the file: is it truncated?)" if error.pos >= len(error.doc.rstrip()) else "")
        ) from None
    except (UnicodeDecodeError, RecursionError, ValueError) as error:
        raise CodoError(f"{path} is not a JSON text: {error}") from error
    if not isinstance(content, dict):
        raise CodoError(f"{path} is not COCO: a JSON object with images, annotations and categories is expected")
    return content


def entries_of(content: dict[str, Any], key: str, path: Path) -> list[Any]:
    """Take a list at the JSON's top level."""
    entries = content.get(key)
    if not isinstance(entries, list):
        what = "is not a list" if key in content else "is missing"
        raise CodoError(f'{path} is not a COCO detection set: "{key}" {what}')
    return entries


def entry_of(entry: Any) -> Any:
    """Look into an entry of `read_json`; None if it is not even JSON (a text that is no UTF-8)."""
    if not isinstance(entry, Raw):
        return entry
    try:
        return _object.decode(entry)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


def annotation_of(entry: Any) -> Annotation:
    """Look into an annotation of `read_json`; raises `TypeError` if it is no object."""
    if isinstance(entry, Raw):
        try:
            return _annotation.decode(entry)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise TypeError(str(error)) from error
    if not isinstance(entry, dict):
        raise TypeError("no JSON object")
    known = {name: entry[name] for name in Annotation.__struct_fields__ if name in entry}
    if "segmentation" in known:
        known["segmentation"] = Raw(json.dumps(known["segmentation"]).encode())
    return Annotation(**known)


def checked(entry: Any, keys: dict[str, type], where: str) -> list[Any]:
    """Take `keys` of a JSON object, each of its type."""
    values = []
    for key, kind in keys.items():
        if not isinstance(entry, dict) or key not in entry:
            raise CodoError(f"{where} has no {key!r}")
        value = entry[key]
        if kind is int and isinstance(value, float) and value.is_integer():
            value = int(value)  # 288.0, as some tools write
        if not isinstance(value, kind) or isinstance(value, bool):
            raise CodoError(
                f"{where}: {key} is {entry[key]!r:.60}; a {'text' if kind is str else 'whole number'} is expected"
            )
        values.append(value)
    return values


def check_id(found: int, where: str) -> None:
    """Refuse an id that no 64-bit integer holds."""
    if abs(found) > MAX_ID:
        raise CodoError(f"{where}: id {found!s:.30} is too large; whole numbers below 2^63 are expected")


def read_categories(content: dict[str, Any], path: Path) -> dict[int, str]:
    """Read the categories, id -> name, sorted by id; ids may have holes but not occur twice."""
    found: dict[int, str] = {}
    for index, entry in enumerate(entries_of(content, "categories", path)):
        where = f"{path}: categories[{index}]"
        category, name = checked(entry, {"id": int, "name": str}, where)
        check_id(category, where)
        try:
            name.encode()
        except UnicodeEncodeError as error:
            half = name[error.start]
            raise CodoError(f"{where}: name {name!r:.60} is no Unicode text: {half!r} is half a character") from None
        if category in found:
            raise CodoError(f"{path}: category id {category} occurs twice")
        found[category] = name
    return dict(sorted(found.items()))


def _mask_of(mask: Raw) -> Any:
    """Look into a segmentation; what is no JSON (a NaN, a number beyond all bounds) is left to `check_mask` to name."""
    try:
        return _object.decode(mask)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return json.loads(bytes(mask).decode(errors="replace"))


class Annotations(Mapping[int, list[dict[str, Any]]]):
    """Annotations by image, as columns; the dicts that the mapping gives are made when they are asked for.

    A million dicts take ten times what the columns take.

    Args:
        images: ids of all images, in order.
    """

    def __init__(self, images: Sequence[int]) -> None:
        self._rows = {image: row for row, image in enumerate(images)}
        self._image, self._category, self._id = array("q"), array("q"), array("q")
        self._box, self._area, self._crowd = array("d"), array("d"), bytearray()
        self._masks: list[Raw | None] = []
        self._order: np.ndarray | None = None

    def add(self, image_id: int, found: Annotation, box: Sequence[float], area: float, crowd: bool) -> None:
        """Add a cleaned annotation to an image."""
        self._image.append(self._rows[image_id])
        self._category.append(int(found.category_id))  # which may be 1.0
        number = found.id
        self._id.append(number if isinstance(number, int) and abs(number) < 2**63 else _NO_ID)
        self._box.extend(box)
        self._area.append(area)
        self._crowd.append(crowd)
        self._masks.append(found.segmentation if isinstance(found.segmentation, Raw) else None)
        self._order = None

    def __getitem__(self, image_id: int) -> list[dict[str, Any]]:
        row = self._rows[image_id]
        if self._order is None:
            images = np.frombuffer(self._image, np.int64) if self._image else np.empty(0, np.int64)
            self._order = np.argsort(images, kind="stable")
            self._ends = np.searchsorted(images[self._order], np.arange(len(self._rows)), "right")
        start = self._ends[row - 1] if row else 0
        return [self._make(image_id, i) for i in self._order[start : self._ends[row]].tolist()]

    def __iter__(self) -> Iterator[int]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def _make(self, image_id: int, index: int) -> dict[str, Any]:
        number, mask = self._id[index], self._masks[index]
        return {
            **({"id": number} if number != _NO_ID else {}),
            "image_id": image_id,
            "category_id": self._category[index],
            "bbox": self._box[4 * index : 4 * index + 4].tolist(),
            "area": self._area[index],
            "iscrowd": self._crowd[index],
            **({"segmentation": _mask_of(mask)} if mask is not None else {}),
        }
