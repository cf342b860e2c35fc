"""Checkpoints: the state of a job in one file, whole or absent."""

from __future__ import annotations

import errno
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from codo.errors import CodoError
from codo.runs.files import atomic_path


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write `state` (tensors, numbers, strings, containers of them) as torch does, but atomically.

    Raises:
        CodoError: the file cannot be written, e.g. because the disk is full; an older one stays.
    """
    with atomic_path(path) as temporary:
        try:
            torch.save(state, temporary)
        except RuntimeError as error:  # torch's zip writer reports a full disk this way, and not in these words
            with open(temporary, "ab") as file:
                file.write(bytes(2**20))
            raise OSError(str(error).splitlines()[0]) from error


def load_checkpoint(path: Path, keys: Iterable[str] = ()) -> dict[str, Any]:
    """Read what `save_checkpoint` wrote, to the processor's memory, executing nothing; it must have `keys`.

    Raises:
        CodoError: absent, truncated or not such a checkpoint.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CodoError(f"no checkpoint at {path}: without it the run cannot go on or be made longer") from None
    except Exception as error:
        # torch's own message may advise to read it in a way that runs code.
        of_disk = isinstance(error, OSError) and error.errno != errno.EINVAL  # torch seeks before a cut file's start
        why = error.strerror if isinstance(error, OSError) and of_disk else "it is cut off or not a checkpoint"
        raise CodoError(f"cannot read the checkpoint {path}: {why}") from error
    if not isinstance(state, dict):
        raise CodoError(f"{path} is not a codo checkpoint")
    for key in keys:
        if key not in state:
            raise CodoError(f'cannot go on from {path}: it lacks "{key}"')
    return state
