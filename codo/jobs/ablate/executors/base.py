"""What an executor is: it takes tasks, and tells which ones ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from codo.jobs.ablate.jobs import JobFolder


@dataclass(frozen=True)
class Task:
    """A job to be done now.

    Attributes:
        folder: of the job.
        threads: that its config asks for.
        processes: that share its batches (torchrun).
    """

    folder: JobFolder
    threads: int = 1
    processes: int = 1

    @property
    def name(self) -> str:
        """The job's name."""
        return self.folder.name


class Executor(Protocol):
    """Runs tasks somewhere."""

    queues: bool
    """Whether a task may wait, once submitted."""

    @property
    def free(self) -> int:
        """How many tasks it takes now."""

    def submit(self, tasks: Sequence[Task]) -> None:
        """Take tasks, at most `free`."""

    def ended(self) -> list[tuple[str, int]]:
        """List name and exit code of the tasks that ended since the last call."""

    def stop(self) -> None:
        """Have all tasks save and leave, and wait for it."""
