"""Reading COCO's big JSONs: fast and lean for their size, with errors that say where."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from codo.errors import CodoError


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Pause the cycle collector: it walks millions of new lists in vain, and doubles the time to read COCO."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object, with errors a user can act on."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"), parse_float=_Floats().__getitem__)
    except json.JSONDecodeError as error:
        raise CodoError(
            f"{path} is not valid JSON: {error.msg} at line {error.lineno}, column {error.colno}"
            + (" (the end of the file: is it truncated?)" if error.pos >= len(error.doc.rstrip()) else "")
        ) from None
    except OSError as error:
        raise CodoError(f"annotations {path} cannot be read: {error.strerror}") from error
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


def checked(entry: Any, keys: dict[str, type], where: str) -> list[Any]:
    """Take `keys` of a JSON object, each of its type."""
    values = []
    for key, kind in keys.items():
        if not isinstance(entry, dict) or key not in entry:
            raise CodoError(f"{where} has no {key!r}")
        if not isinstance(entry[key], kind) or isinstance(entry[key], bool):
            raise CodoError(
                f"{where}: {key} is {entry[key]!r:.60}; a {'text' if kind is str else 'whole number'} is expected"
            )
        values.append(entry[key])
    return values


def read_categories(content: dict[str, Any], path: Path) -> dict[int, str]:
    """Read the categories, id -> name, sorted by id; ids may have holes but not occur twice."""
    found: dict[int, str] = {}
    for index, entry in enumerate(entries_of(content, "categories", path)):
        category, name = checked(entry, {"id": int, "name": str}, f"{path}: categories[{index}]")
        if category in found:
            raise CodoError(f"{path}: category id {category} occurs twice")
        found[category] = name
    return dict(sorted(found.items()))


class _Floats(dict[str, float]):
    """Parse short decimals to one shared float each: polygons repeat some 60,000 coordinates 10^7 times.

    Read so, COCO's training JSON takes 2 times its size in memory, and 5 times otherwise.
    """

    def __missing__(self, text: str) -> float:
        value = float(text)
        if len(text) <= 7:  # areas are long and hardly repeat
            self[text] = value
        return value
