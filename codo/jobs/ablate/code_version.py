"""The version of the code that decides a job's numbers: hashes of the sources that it imports, comments left out."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import wraps
from pathlib import Path
from typing import TypeVar

import codo

ROOT = Path(codo.__file__).parent

Made = TypeVar("Made")

ENTRIES = {"pretrain": "jobs/pretrain/run.py", "transfer": "jobs/transfer/run.py", "probe": "jobs/probe/run.py"}
"""Kind of job -> where it begins."""

DECIDES_NONE = ("__init__.py", "_version.py", "config/__init__.py", "config/load.py", "config/presets.py", "runs/")
"""Files that jobs import and that decide no numbers: what they compose is the resolved config, which is hashed itself,
or how a run is recorded and shown."""

OF_FILES = ("weights/", "jobs/pretrain/init.py")
"""What reads weights: of a pretraining that begins at random it decides nothing."""

OF_RUNS = ("runs/seed.py", "runs/sgd.py", "runs/world.py", "runs/hardware.py")
"""Files of `runs` that do decide some."""


def code_files(kind: str, custom: Iterable[str] = (), begun: bool = False) -> dict[str, str]:
    """Hash the source files that decide a kind of job.

    Args:
        kind: `pretrain`, `transfer` or `probe`.
        custom: dotted paths of a user's own parts, whose files count too, and what these import of the user's own.
        begun: of a pretraining, whether it begins with the weights of a file.

    Returns:
        Path relative to codo/ (a user's own: as named, and what it imports by its module behind that) -> 8 hex digits.

    Example:
        >>> "losses/info_nce.py" in code_files("pretrain"), "losses/info_nce.py" in code_files("transfer")
        (True, False)
    """
    unread = OF_FILES if kind == "pretrain" and not begun else ()
    names = (name for name in imported(ENTRIES[kind]) if _decides(name) and not name.startswith(unread))
    found = {name: source_hash(ROOT / name) for name in names}
    for part in custom:
        module = part.rpartition(":")[0]
        file = Path(module) if module.endswith(".py") else _module_file(module)
        if file is not None and file.is_file():
            found[module] = source_hash(file)
            found |= {f"{module}: {name}": source_hash(helper) for name, helper in _helpers(module, file.resolve())}
    return found


def _helpers(part: str, file: Path) -> Iterator[tuple[str, Path]]:
    """List the modules that a user's own part imports, directly or not, and that are the user's own.

    These lie in the working directory or beside the part's file; of a part that is installed they are of its package.
    """
    by_file = part.endswith(".py")
    start = file.stem if by_file else part
    depth = 0 if by_file else start.count(".") + (file.name == "__init__.py")
    root, here = file.parents[depth], Path.cwd()
    installed = not by_file and root != here
    seen, open_names = set[str](), [start]
    while open_names:
        name = open_names.pop()
        top = name.partition(".")[0]
        if not name or name in seen or top == "codo" or (installed and top != start.partition(".")[0]):
            continue
        seen.add(name)
        source = _source_of(name, (root, here))
        if source is not None:
            open_names += [name.rpartition(".")[0], *_modules_in(source, name)]
            if name != start:
                yield name, source


def _source_of(module: str, roots: Iterable[Path]) -> Path | None:
    """Find a module's file below folders, without importing it."""
    bases = (root.joinpath(*module.split(".")) for root in roots)
    files = (file for base in bases for file in (base / "__init__.py", base.with_name(f"{base.name}.py")))
    return next((file for file in files if file.is_file()), None)


def _modules_in(source: Path, name: str) -> Iterator[str]:
    """List what may be modules among the imports of the file of the module `name`."""
    try:
        tree = ast.parse(source.read_text(encoding="utf-8"))
    except SyntaxError:
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = name.split(".")
            above = above[: len(above) - node.level + (source.name == "__init__.py")] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from (base, *(f"{base}.{alias.name}" for alias in node.names))


def _while_unchanged(function: Callable[[Path], Made]) -> Callable[[Path], Made]:
    """Keep what a function makes of a file until the file is written anew."""
    kept: dict[Path, tuple[tuple[int, int], Made]] = {}

    @wraps(function)
    def asked(path: Path) -> Made:
        now = path.stat()
        version = (now.st_mtime_ns, now.st_size)
        if path not in kept or kept[path][0] != version:
            kept[path] = version, function(path)
        return kept[path][1]

    return asked


def imported(entry: str) -> tuple[str, ...]:
    """List the files of codo that a file imports, directly or not, itself too; paths relative to codo/.

    What a package hands on is looked for where it comes from: a name taken from `codo.model` leads to the one module of
    it that defines the name.
    """
    seen: set[str] = set()
    open_files = [entry]
    while open_files:
        name = open_files.pop()
        if name not in seen and (ROOT / name).is_file():
            seen.add(name)
            open_files += _imports(ROOT / name)
    return tuple(sorted(seen))


@_while_unchanged
def source_hash(path: Path) -> str:
    """Hash what a source file does, 8 hex digits: formatting, comments and docstrings do not count."""
    text = path.read_text(encoding="utf-8")
    try:
        tree = ast.parse(text)
    except SyntaxError:
        return hashlib.sha256(text.encode()).hexdigest()[:8]
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            kept = [line for line in body if not _is_text(line)]
            node.body = kept or [ast.Pass()]  # type: ignore[attr-defined]  # every node with a list of a body
    return hashlib.sha256(_shape(tree).encode()).hexdigest()[:8]


def _shape(node: object) -> str:
    """Write a syntax tree down, alike on every Python: `ast.unparse` and `ast.dump` differ by version."""
    if isinstance(node, ast.AST):
        fields = ((name, value) for name, value in ast.iter_fields(node) if value is not None and value != [])
        return f"{type(node).__name__}({','.join(f'{name}={_shape(value)}' for name, value in fields)})"
    if isinstance(node, list):
        return f"[{','.join(map(_shape, node))}]"
    return ascii(node)


def changed_files(before: dict[str, str], now: dict[str, str]) -> list[str]:
    """Name the files that are not the same."""
    return sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))


def _decides(name: str) -> bool:
    return name in OF_RUNS or not name.startswith(DECIDES_NONE)


@_while_unchanged
def _imports(path: Path) -> list[str]:
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except SyntaxError:  # half written
        return []
    found: list[str] = []
    for node in _executed(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "codo":
            for alias in node.names:
                found += _files(str(node.module), alias.name)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "codo":
                    found += _files(alias.name, None)
    return found


def _executed(tree: ast.AST) -> Iterator[ast.AST]:
    """Walk a syntax tree, but for what is there for type checkers alone: `if TYPE_CHECKING: ...`."""
    yield tree
    for part in ast.iter_child_nodes(tree):
        if isinstance(part, ast.If) and isinstance(part.test, ast.Name) and part.test.id == "TYPE_CHECKING":
            for other in part.orelse:
                yield from _executed(other)
        else:
            yield from _executed(part)


def _files(module: str, name: str | None) -> Iterator[str]:
    """Find the files that `from module import name` leads to."""
    base = "/".join(module.split(".")[1:])
    if (ROOT / f"{base}.py").is_file():
        yield f"{base}.py"
    elif name is not None and (ROOT / base / f"{name}.py").is_file():
        yield f"{base}/{name}.py"
    elif name is not None and (ROOT / base / name / "__init__.py").is_file():
        yield f"{base}/{name}/__init__.py"
    elif base:
        package = f"{base}/__init__.py"
        tree = ast.parse((ROOT / package).read_text(encoding="utf-8"))
        homes = [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and name in {a.name for a in n.names}]
        if homes:
            yield from _files(str(homes[0].module), name)
        else:  # defined in the package itself
            yield package


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _module_file(module: str) -> Path | None:
    here = str(Path.cwd())
    sys.path.insert(0, here)  # where codo.parts looks, too
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return None
    finally:
        sys.path.remove(here)
    return Path(spec.origin) if spec is not None and spec.origin else None
