"""A user's own parts, by dotted path or handed over from Python."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
        path: `package.module:Name`, looked for in the working directory too, or `path/to/file.py:Name`.

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
    here = str(Path.cwd())
    sys.path.insert(0, here)  # the console script, other than `python -m`, does not look there
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(here)


def _import_file(file: Path) -> Any:
    name = f"codo_user_{file.resolve()}"
    if name in sys.modules:
        return sys.modules[name]
    if not file.is_file():
        raise CodoError(f"{file}: no such file")
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None, "a .py file has a loader"
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
