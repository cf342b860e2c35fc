"""Jobs on a Slurm cluster, through submitit: arrays, and requeueing before a time limit or a preemption.

The cluster's nodes share the file system: a job that is requeued, on whichever node, goes on from its checkpoint.

Source:
    submitit (MIT), https://github.com/facebookincubator/submitit
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from codo.errors import CodoError
from codo.jobs.ablate.executors.base import Task
from codo.jobs.ablate.work import CHECKOUT, Work

try:
    import submitit
except ImportError as error:
    raise CodoError("--executor slurm needs submitit: pip install 'codo[slurm]'") from error

MANY = 1000
"""Tasks submitted at a time where no number is given: Slurm's default MaxArraySize is 1001."""
LEAVE_SECONDS = 60.0
"""How long cancelled jobs have to save; Slurm kills them after its own KillWait (default 30 s)."""


class RequeuedWork(Work):
    """Work that submitit can requeue."""

    def checkpoint(self) -> Any:
        """Have the job save, shortly before Slurm ends it, and say what to submit in its place."""
        again = self.leave()
        return submitit.helpers.DelayedSubmission(
            RequeuedWork(again.folder, again.environment, again.processes, again.cwd)
        )


class SlurmExecutor:
    """Submits jobs to Slurm.

    Args:
        folder: for submitit's scripts and logs, on a file system that all nodes share.
        jobs: at most so many at a time; None leaves it to Slurm.
        options: of submitit's AutoExecutor: `slurm_partition`, `timeout_min`, `gpus_per_node`, `cpus_per_task`, ...;
            and `cluster`: `slurm` (the default), or `local` to try it without a cluster.

    Raises:
        CodoError: no Slurm here, an option that submitit does not know.
    """

    queues = True

    def __init__(self, folder: Path, jobs: int | None, options: Mapping[str, Any]) -> None:
        given = {"cluster": "slurm", "timeout_min": 24 * 60, "name": "codo", **options}
        self.jobs = jobs or MANY
        try:
            self.executor = submitit.AutoExecutor(folder.absolute(), cluster=given.pop("cluster"))
            if jobs is not None and self.executor.cluster == "slurm":
                given["slurm_array_parallelism"] = jobs
            self.executor.update_parameters(**given)
        except (NameError, TypeError, ValueError, RuntimeError) as error:
            raise CodoError(f"--executor slurm: {' '.join(str(error).split())}") from error
        self._running: dict[str, Any] = {}

    @property
    def free(self) -> int:
        """How many tasks it takes now."""
        return self.jobs - len(self._running)

    def submit(self, tasks: Sequence[Task]) -> None:
        """Submit tasks, several as one array."""
        works = [
            RequeuedWork(task.folder.path.absolute(), _variables(task), task.processes, Path.cwd()) for task in tasks
        ]
        with self.executor.batch():
            found = [self.executor.submit(work) for work in works]
        self._running |= dict(zip((task.name for task in tasks), found, strict=True))

    def ended(self) -> list[tuple[str, int]]:
        """List name and exit code of the tasks that ended since the last call."""
        found = [(name, _code(job)) for name, job in self._running.items() if job.done()]
        for name, _ in found:
            del self._running[name]
        return found

    def stop(self) -> None:
        """Cancel all jobs; Slurm tells them, and they save and leave."""
        for job in self._running.values():
            job.cancel(check=False)
        until = time.monotonic() + LEAVE_SECONDS
        while any(not job.done() for job in self._running.values()) and time.monotonic() < until:
            time.sleep(1)


def _variables(task: Task) -> dict[str, str]:
    return {"OMP_NUM_THREADS": str(task.threads), "PYTHONPATH": str(CHECKOUT)}


def _code(job: Any) -> int:
    """Read a job's exit code; one that Slurm ended leaves none."""
    try:
        return int(job.result())
    except submitit.core.utils.FailedJobError:
        return -9
    except submitit.core.utils.UncompletedJobError:
        return -9
