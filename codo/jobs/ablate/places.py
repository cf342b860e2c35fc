"""Paths as a report may have them: of this machine, its user and its folders, nothing."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path
from typing import Any

DATA = "CODO_DATA"
"""The environment variable of grids that says where the data sets are."""

ELSEWHERE = "PATH"
"""Stands for a folder that is neither of the data, nor here, nor beside here."""

BEFORE = r"(?<![\w.~/}-])"
ABSOLUTE = re.compile(BEFORE + r"/(?=[\w.~-])[^\s'\"`:,;()<>|\[\]]*")


def without_places(text: str) -> str:
    """Write the absolute paths in a word or a message without this machine's folders.

    `${CODO_DATA}` comes back where a path begins with it; what lies here, or beside here, is relative to the working
    directory; of all others the last name is left: `PATH/name`.

    Example:
        >>> without_places("cannot read /home/someone/cards.json: no such file")
        'cannot read PATH/cards.json: no such file'
    """
    here = os.getcwd()
    roots = [(os.path.abspath(os.environ[DATA]), f"${{{DATA}}}")] if os.environ.get(DATA) else []
    roots += [(here, "."), (os.path.dirname(here), "..")]
    if os.path.isabs(text):  # a word, which may have `..` in it
        text = os.path.normpath(text)
    for root, name in roots:
        if root != "/":
            text = re.sub(BEFORE + re.escape(root) + r"(?=/|$|[\s'\":,;)])", name, text)
    text = re.sub(BEFORE + r"\./(?=[\w.])", "", text)
    if os.path.isabs(text) and not re.search(r":\s", text):  # one path, which may have blanks in it
        return f"{ELSEWHERE}/{Path(text).name}"
    return ABSOLUTE.sub(lambda found: f"{ELSEWHERE}/{Path(found[0]).name}", text)


def shell(words: list[str]) -> str:
    """Join words for a shell, which is to put the data's folder in.

    Example:
        >>> print(shell(["codo", "probe", "a run", "--backgrounds", "${CODO_DATA}/cards"]))
        codo probe 'a run' --backgrounds "${CODO_DATA}"/cards
    """
    variable = f"${{{DATA}}}"
    written = []
    for word in words:
        inside = word == variable or word.startswith(f"{variable}/")
        rest = word.removeprefix(variable) if inside else word
        written.append((f'"{variable}"' if inside else "") + (shlex.quote(rest) if rest or not inside else ""))
    return " ".join(written)


def tidy(value: Any) -> Any:
    """Leave out the places of this machine, at any depth."""
    if isinstance(value, dict):
        return {key: tidy(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [tidy(inner) for inner in value]
    return without_places(value) if isinstance(value, str) else value
