"""Runs that a job of several is made of: finished ones are kept, stopped ones go on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from codo.errors import Interrupted
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
        Interrupted: as they; it is the call of the whole job that goes on with it.
    """
    if (folder / "summary.json").is_file():
        say("finished before, kept")
    elif (folder / "checkpoint.pt").is_file():
        with held(folder):  # or refused
            say("stopped before, goes on")
        with _as_part_of_a_job(folder):
            resume()
    else:
        if _beginning(folder):
            with held(folder):
                for file in _beginning(folder):  # looked at again: now nobody writes there
                    if file.name != LOCK_FILE:
                        file.unlink()
        with _as_part_of_a_job(folder):
            start()
    return read_json(folder / "summary.json")


@contextmanager
def _as_part_of_a_job(folder: Path) -> Iterator[None]:
    """Leave out the command that goes on with this run alone."""
    try:
        yield
    except Interrupted as stopped:
        raise Interrupted(stopped.number, f"{folder}: {stopped.done}") from None


def _beginning(folder: Path) -> list[Path]:
    """List the files of a run killed before its first checkpoint, or while it wrote it; none if there are others."""
    files = [*folder.iterdir()] if folder.is_dir() else []
    ours = [f for f in files if f.name in BEGUN or (f.name.startswith(".") and f.name.endswith(".tmp"))]
    return ours if len(ours) == len(files) else []
