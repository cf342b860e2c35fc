"""Jobs on a Slurm cluster, through submitit: arrays, and requeueing before a time limit or a preemption.

The cluster's nodes share the file system: a job that is requeued, on whichever node, goes on from its checkpoint.

Source:
    submitit (MIT), https://github.com/facebookincubator/submitit
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from codo.errors import CodoError
from codo.jobs.ablate.executors.base import Task
from codo.jobs.ablate.work import Work
from codo.runs.lock import is_held

MANY = 1000
"""Tasks submitted at a time where no number is given: Slurm's default MaxArraySize is 1001."""
REQUEUES = 100
"""Time limits that a job may meet, each time going on from its checkpoint; submitit's own number is 3."""
KILL_SECONDS = 300.0
"""By then Slurm has killed what it told to stop: its KillWait is 30 s by default."""


class RequeuedWork(Work):
    """Work that submitit can requeue."""

    def __call__(self) -> int:
        """Do it; once told to stop it leaves no result: Slurm ends it, and runs it again if it requeues."""
        code = super().__call__()
        if self.told:
            time.sleep(KILL_SECONDS)
        return code

    def checkpoint(self) -> Any:
        """Have the job save, shortly before Slurm ends it, and say what to submit in its place."""
        from submitit.helpers import DelayedSubmission

        self.leave()
        return DelayedSubmission(RequeuedWork(self.folder, self.environment, self.processes, self.cwd))


class SlurmExecutor:
    """Submits jobs to Slurm.

    Args:
        folder: for submitit's scripts and logs, on a file system that all nodes share.
        jobs: at most so many at a time; None leaves it to Slurm.
        options: of submitit's AutoExecutor: `slurm_partition`, `timeout_min`, `gpus_per_node`, `cpus_per_task`,
            `slurm_max_num_timeout` (`REQUEUES`), ...; and `cluster`: `slurm` (the default), or `local` to try it
            without a cluster.

    Raises:
        CodoError: no submitit or no Slurm here, an option that submitit does not know.
    """

    queues = True

    def __init__(self, folder: Path, jobs: int | None, options: Mapping[str, Any]) -> None:
        try:
            import submitit
        except ImportError as error:
            raise CodoError("--executor slurm needs submitit: pip install 'codo[slurm]'") from error
        given = {
            "cluster": "slurm",
            "timeout_min": 24 * 60,
            "name": "codo",
            "slurm_max_num_timeout": REQUEUES,
            **options,
        }
        logging.getLogger("submitit").setLevel(logging.ERROR)  # it warns each time that a cluster keeps no accounts
        self.jobs = jobs or MANY
        try:
            requeues = int(given.pop("slurm_max_num_timeout"))
            self.executor = submitit.AutoExecutor(
                folder.absolute(), cluster=given.pop("cluster"), slurm_max_num_timeout=requeues
            )
            if jobs is not None and self.executor.cluster == "slurm":
                given["slurm_array_parallelism"] = jobs
            self.executor.update_parameters(**given)
        except (NameError, TypeError, ValueError, RuntimeError) as error:
            raise CodoError(f"--executor slurm: {' '.join(str(error).split())}") from error
        self._running: dict[str, Any] = {}
        self._folders: dict[str, Path] = {}

    @property
    def free(self) -> int:
        """How many tasks it takes now."""
        return self.jobs - len(self._running)

    def submit(self, tasks: Sequence[Task]) -> None:
        """Submit tasks, several as one array."""
        works = [RequeuedWork(t.folder.path.absolute(), _variables(t), t.processes, Path.cwd()) for t in tasks]
        from submitit.core.utils import FailedJobError

        try:
            with self.executor.batch():
                found = [self.executor.submit(work) for work in works]
        except FailedJobError as error:
            raise CodoError(f"--executor slurm: refused: {' '.join(str(error).split())}") from error
        self._folders = self._folders | {task.name: task.folder.path for task in tasks}
        self._running |= dict(zip((task.name for task in tasks), found, strict=True))

    def ended(self) -> list[tuple[str, int]]:
        """List name and exit code of the tasks that ended since the last call."""
        found = [(name, _code(job)) for name, job in self._running.items() if job.done()]
        for name, _ in found:
            del self._running[name], self._folders[name]
        return found

    def stop(self) -> None:
        """Cancel all jobs; Slurm tells them, and they save and leave."""
        for job in self._running.values():
            job.cancel(check=False)
        until = time.monotonic() + KILL_SECONDS
        while any(is_held(folder) for folder in self._folders.values()) and time.monotonic() < until:
            time.sleep(1)
        self._running.clear()


def _variables(task: Task) -> dict[str, str]:
    return {"OMP_NUM_THREADS": str(task.threads)}


def _code(job: Any) -> int:
    """Read a job's exit code; one that Slurm ended leaves none."""
    from submitit.core.utils import FailedJobError, UncompletedJobError

    try:
        return int(job.result())
    except (FailedJobError, UncompletedJobError):
        return -9
