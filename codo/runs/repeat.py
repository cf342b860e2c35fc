"""Runs that a job of several is made of: finished ones are kept, stopped ones go on."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from codo.runs.record import read_json

BEGUN = {"config.yaml", "environment.json", "coverage.json", "metrics.jsonl"}
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
    """
    if (folder / "summary.json").is_file():
        say("finished before, kept")
    elif (folder / "checkpoint.pt").is_file():
        say("stopped before, goes on")
        resume()
    else:
        if folder.is_dir() and all(_is_of_a_beginning(file.name) for file in folder.iterdir()):
            shutil.rmtree(folder)  # stopped before its first checkpoint
        start()
    return read_json(folder / "summary.json")


def _is_of_a_beginning(name: str) -> bool:
    """Tell whether a run killed before its first checkpoint, or while it wrote it, leaves such a file."""
    return name in BEGUN or (name.startswith(".") and name.endswith(".tmp"))
