"""A YAML file whose every value knows its line."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from codo.errors import CodoError

Keys = tuple[str | int, ...]
VARIABLE = re.compile(r"\$\{(\w+)\}")


class LinedYaml:
    """A YAML file, read by the safe loader, and the lines of its values.

    Args:
        file: to read.
        expand: put environment variables in place of `${NAME}`; else leave them.

    Attributes:
        file: as given.
        tree: its content.

    Raises:
        CodoError: it cannot be read, is no YAML mapping, names a key twice or a variable that is not set;
            with the line.
    """

    def __init__(self, file: Path, expand: bool = True) -> None:
        self.file = file
        try:
            text = file.read_text(encoding="utf-8")
            node = yaml.compose(text, Loader=yaml.SafeLoader)
            self._refuse_loops(node, ())
            tree = yaml.safe_load(text)
        except OSError as error:
            raise CodoError(f"cannot read {file}: {error.strerror}") from error
        except RecursionError:
            raise CodoError(f"{file}: nested too deeply") from None
        except UnicodeDecodeError as error:
            raise CodoError(f"{file} is not UTF-8 text: {error}") from error
        except yaml.MarkedYAMLError as error:
            line = error.problem_mark.line + 1 if error.problem_mark else 1
            raise CodoError(f"{file}:{line}: not YAML: {error.problem or error.context}") from error
        except (yaml.YAMLError, ValueError) as error:  # a ValueError of a date that is none
            raise CodoError(f"{file} is not YAML: {' '.join(str(error).split())}") from error
        if not isinstance(tree, dict) or node is None:
            raise CodoError(f"{file}: a grid is a mapping (title, base, design, ...)")
        self._lines: dict[Keys, int] = {}
        for path, line in self._walk(node, ()):
            if path in self._lines:
                raise CodoError(f"{file}:{line}: {dotted(path)}: stands here twice, first in line {self._lines[path]}")
            self._lines[path] = line
        self.tree: dict[str, Any] = self._expanded(tree, ()) if expand else tree

    def line(self, *path: str | int) -> int:
        """Find the line of a value, or of the nearest that holds it."""
        while path and path not in self._lines:
            path = path[:-1]
        return self._lines.get(path, 1)

    def error(self, path: Keys, message: str) -> CodoError:
        """Make an error that names the file, the line and the field."""
        where = f"{dotted(path)}: " if path else ""
        return CodoError(f"{self.file}:{self.line(*path)}: {where}{message}")

    def _refuse_loops(self, node: yaml.Node | None, above: tuple[yaml.Node, ...]) -> None:
        """Refuse an alias of something that it stands in itself."""
        if any(node is other for other in above):
            line = above[-1].start_mark.line + 1
            raise CodoError(f"{self.file}:{line}: an alias of what it stands in itself")
        if isinstance(node, yaml.CollectionNode):
            for item in node.value:
                for inner in item if isinstance(item, tuple) else (item,):
                    self._refuse_loops(inner, (*above, node))

    def _walk(self, node: yaml.Node, path: Keys) -> Iterator[tuple[Keys, int]]:
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                if key.value == "<<":  # a merged mapping has its own lines elsewhere
                    continue
                here = (*path, key.value)
                yield here, key.start_mark.line + 1
                yield from self._walk(value, here)
        elif isinstance(node, yaml.SequenceNode):
            for i, value in enumerate(node.value):
                yield (*path, i), value.start_mark.line + 1
                yield from self._walk(value, (*path, i))

    def _expanded(self, value: Any, path: Keys) -> Any:
        if isinstance(value, dict):
            return {key: self._expanded(inner, (*path, str(key))) for key, inner in value.items()}
        if isinstance(value, list):
            return [self._expanded(inner, (*path, i)) for i, inner in enumerate(value)]
        if not isinstance(value, str):
            return value
        for name in VARIABLE.findall(value):
            if name not in os.environ:
                raise self.error(path, f"${{{name}}} is not set in the environment (export {name}=...)")
        return VARIABLE.sub(lambda found: os.environ[found[1]], value)


def dotted(path: Keys) -> str:
    """Write a path of keys."""
    return ".".join(map(str, path))
