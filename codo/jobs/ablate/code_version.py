"""The version of the code that decides a job's numbers: hashes of its sources, comments and docstrings left out."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import codo

CONFIG = ("config/sections.py", "errors.py", "parts.py", "runs/seed.py", "runs/world.py", "runs/hardware.py")
PARTS = ("augment", "backbones", "data", "heads", "model")
DECIDES = {
    "pretrain": (*CONFIG, *PARTS, "losses", "config/pretrain.py", "jobs/pretrain"),
    "transfer": (*CONFIG, "backbones", "data", "heads", "model", "config/transfer.py", "jobs/transfer"),
    "probe": (*CONFIG, *PARTS, "config/pretrain.py", "jobs/pretrain", "jobs/probe"),
}
"""Kind of job -> files and folders of codo/ that decide its numbers."""

SHOWS = ("jobs/pretrain/preview.py",)
"""Files in these folders that decide none."""


def code_files(kind: str, custom: Iterable[str] = ()) -> dict[str, str]:
    """Hash the source files that decide a kind of job.

    Args:
        kind: `pretrain`, `transfer` or `probe`.
        custom: dotted paths of a user's own parts, whose files count too.

    Returns:
        Path relative to codo/ (a user's own: as named) -> 8 hex digits.

    Example:
        >>> "losses/info_nce.py" in code_files("pretrain"), "losses/info_nce.py" in code_files("transfer")
        (True, False)
    """
    root = Path(codo.__file__).parent
    found: dict[str, str] = {}
    for name in DECIDES[kind]:
        paths = [root / name] if name.endswith(".py") else sorted((root / name).rglob("*.py"))
        found |= {path.relative_to(root).as_posix(): source_hash(path) for path in paths}
    for part in custom:
        module = part.rpartition(":")[0]
        file = Path(module) if module.endswith(".py") else _module_file(module)
        if file is not None and file.is_file():
            found[module] = source_hash(file)
    return {name: digest for name, digest in found.items() if name not in SHOWS}


@cache
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
    return hashlib.sha256(ast.unparse(tree).encode()).hexdigest()[:8]


def changed_files(before: dict[str, str], now: dict[str, str]) -> list[str]:
    """Name the files that are not the same."""
    return sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))


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
