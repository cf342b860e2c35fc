"""Runs that a job of several is made of: finished ones are kept, stopped ones go on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
        if folder.is_dir() and {file.name for file in folder.iterdir()} <= BEGUN:
            shutil.rmtree(folder)  # stopped before its first checkpoint
        start()
    return json.loads((folder / "summary.json").read_text(encoding="utf-8"))
