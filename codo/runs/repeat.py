"""Runs that a job of several is made of: finished ones are kept, stopped ones go on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from codo.runs.lock import LOCK_FILE, held
from codo.runs.record import read_json

BEGUN = {LOCK_FILE, "config.yaml", "environment.json", "coverage.json", "metrics.jsonl"}
"""What a run may have written before its first checkpoint."""


def bring_to_end(
    folder: Path, start: Callable[[], Any], resume: Callable[[], Any], say: Callable[[str], None]
) -> dict[str, Any]:
    """Bring the run in `folder` to its end.

    Args:
        folder: of the run; absent, or as an earlier call left it.
        start: runs it from the beginning; refuses a folder that holds something else.
        resume: goes on from its checkpoint.
        say: told what was found.

    Returns:
        Its summary.json.

    Raises:
        CodoError: another process is at it; as `start` and `resume`.
    """
    if (folder / "summary.json").is_file():
        say("finished before, kept")
    elif (folder / "checkpoint.pt").is_file():
        with held(folder):  # or refused
            say("stopped before, goes on")
        resume()
    else:
        if _beginning(folder):
            with held(folder):
                for file in _beginning(folder):  # looked at again: now nobody writes there
                    if file.name != LOCK_FILE:
                        file.unlink()
        start()
    return read_json(folder / "summary.json")


def _beginning(folder: Path) -> list[Path]:
    """List the files of a run killed before its first checkpoint, or while it wrote it; none if there are others."""
    files = [*folder.iterdir()] if folder.is_dir() else []
    ours = [f for f in files if f.name in BEGUN or (f.name.startswith(".") and f.name.endswith(".tmp"))]
    return ours if len(ours) == len(files) else []
