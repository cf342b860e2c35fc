"""A user's own parts, by dotted path or handed over from Python."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from codo.config.sections import Part
from codo.errors import CodoError

if TYPE_CHECKING:
    from torch import nn

    from codo.losses import Loss


@dataclass(frozen=True)
class Parts:
    """A user's own parts, handed over from Python; those of the config come by dotted path.

    Attributes:
        losses: added to the objective, with weight 1.
        augmenters: applied to each view before its colour: `(rng, image, box, foregrounds) -> (image, box)`.
        jitter: in place of the config's: `(rng, box, canvas) -> box`.
        projector: makes every projector: `(input, hidden, embedding)` widths -> module.
        box_head: makes the box head: `(pyramid channels, fc)` -> module.
        backbone: makes the backbone's body: `()` -> module with `channels`, of C2-C5, whose call gives these maps.
    """

    losses: Sequence[Loss] = ()
    augmenters: Sequence[Callable[..., Any]] = ()
    jitter: Callable[..., Any] | None = None
    projector: Callable[[int, int, int], nn.Module] | None = None
    box_head: Callable[[int, int], nn.Module] | None = None
    backbone: Callable[[], nn.Module] | None = None

    def __post_init__(self) -> None:
        for kind in ("losses", "augmenters"):
            given = getattr(self, kind)
            if isinstance(given, str) or not isinstance(given, Iterable):
                raise CodoError(f"{kind}: a list is expected, this is a {type(given).__name__}")
            object.__setattr__(self, kind, tuple(given))

    def names(self) -> dict[str, list[str]]:
        """Name what was handed over, for the record: kind -> names."""
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        lists = {kind: list(v) if isinstance(v, Sequence) else [v] for kind, v in given.items() if v}
        return {kind: [getattr(v, "__name__", type(v).__name__) for v in values] for kind, values in lists.items()}


def make(part: Part, *arguments: Any) -> Any:
    """Call what `part` names, with `arguments` and its own parameters.

    Raises:
        CodoError: it cannot be imported, or refuses the arguments.
    """
    found = find(part.path)
    try:
        return found(*arguments, **part.parameters)
    except TypeError as error:
        raise CodoError(f"{part.path}: {error}") from error


def find(path: str) -> Any:
    """Import what a dotted path names.

    Args:
        path: `package.module:Name`, looked for in the working directory too, or `path/to/file.py:Name`; the folder that
            was looked in stays on Python's path.

    Raises:
        CodoError: no such module or name, or the module fails; in one line.
    """
    module_name, _, name = path.rpartition(":")
    try:
        module = _import_file(Path(module_name)) if module_name.endswith(".py") else _import_module(module_name)
    except CodoError:
        raise
    except Exception as error:  # whatever a user's module does wrong on import
        line = " ".join(f"{type(error).__name__}: {error}".split())
        raise CodoError(f"{path}: cannot import {module_name} ({line})") from error
    if not hasattr(module, name):
        raise CodoError(f"{path}: {module_name} has no {name}")
    return getattr(module, name)


def _import_module(name: str) -> Any:
    _look_in(Path.cwd())  # the console script, other than `python -m`, does not
    return importlib.import_module(name)


def _import_file(file: Path) -> Any:
    if not file.is_file():
        raise CodoError(f"{file}: no such file")
    file = file.resolve()
    _look_in(file.parent)
    return importlib.import_module(_FilesByName.PREFIX + str(file).replace("%", "%25").replace(".", "%2E"))


def _look_in(folder: Path) -> None:
    """Put a folder first on Python's path and leave it there, where loader workers that are started afresh look too."""
    sys.path[:] = [str(folder), *(other for other in sys.path if other != str(folder))]


class _FilesByName(MetaPathFinder):
    """Imports a file by a name that holds its path: a part of it is then pickled by name, as any other is."""

    PREFIX = "codo_user_"

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if not fullname.startswith(self.PREFIX):
            return None
        return importlib.util.spec_from_file_location(fullname, unquote(fullname.removeprefix(self.PREFIX)))


sys.meta_path.append(_FilesByName())
