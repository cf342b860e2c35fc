"""What a data loader yields, and its worker processes, which end when it is done with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.utils.data import DataLoader

from codo.errors import CodoError


@contextmanager
def loading(loader: DataLoader[Any]) -> Iterator[Iterator[Any]]:
    """Go through a loader's batches; its workers end with the block, whatever happened in it.

    Torch ends them when nothing refers to the iterator any more, or else, at the end of Python, by SIGTERM, which they
    leave to the main process (`ignore_stop_signals`). An error's traceback does refer to it: a run that failed would
    wait for them for ever.

    Raises:
        CodoError: of a worker, in the words that it has without workers.
    """
    batches = iter(loader)
    try:
        yield _plainly(batches)
    finally:
        if hasattr(batches, "_shutdown_workers"):  # torch has no public way, and none of it without workers
            batches._shutdown_workers()


def _plainly(batches: Iterator[Any]) -> Iterator[Any]:
    """Hand on the batches; torch puts a worker's traceback before the words of its error."""
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except CodoError as error:
            kind = type(error)
            raise CodoError(str(error).rpartition(f"{kind.__module__}.{kind.__qualname__}: ")[2].strip()) from None
        yield batch
