"""Jobs on a Ray cluster, which retries those whose node is lost.

The cluster's nodes share the file system: a job that is retried, on whichever node, goes on from its checkpoint.

Source:
    Ray (Apache-2.0), https://docs.ray.io
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from codo.errors import CodoError
from codo.jobs.ablate.executors.base import Task
from codo.jobs.ablate.work import CHECKOUT, Work

OPTIONS = ("address", "num_cpus", "num_gpus", "memory", "max_retries")
LEAVE_SECONDS = 60.0
"""How long cancelled jobs have to save."""


class RayExecutor:
    """Runs jobs as Ray tasks.

    Args:
        jobs: at most so many at a time; None leaves it to the cluster's resources.
        options: `address` of the cluster (default `auto`: RAY_ADDRESS, or the one on this machine); resources of a job:
            `num_cpus` (default its threads), `num_gpus` (default none), `memory` in bytes; `max_retries` after a node
            is lost (default 3).

    Raises:
        CodoError: no Ray or no cluster to connect to, an unknown option.
    """

    queues = True

    def __init__(self, jobs: int | None, options: Mapping[str, Any]) -> None:
        try:
            import ray
        except ImportError as error:
            raise CodoError("--executor ray needs Ray: pip install 'codo[ray]'") from error
        unknown = set(options) - set(OPTIONS)
        if unknown:
            raise CodoError(f"--executor-option {min(unknown)}: ray has {', '.join(OPTIONS)}")
        self.jobs = jobs
        self.options = {"max_retries": 3, **options}
        address = self.options.pop("address", "auto")
        try:
            ray.init(address, runtime_env={"env_vars": {"PYTHONPATH": str(CHECKOUT)}}, log_to_driver=False)
        except (ConnectionError, RuntimeError, ValueError) as error:
            message = str(error).splitlines()[0]
            raise CodoError(f"--executor ray: no cluster at {address!r} ({message}); ray start --head") from error
        self.ray = ray
        self._running: dict[str, Any] = {}

    @property
    def free(self) -> int:
        """How many tasks it takes now."""
        return (self.jobs or 10_000) - len(self._running)

    def submit(self, tasks: Sequence[Task]) -> None:
        """Submit tasks."""
        for task in tasks:
            resources = {"num_cpus": task.threads * task.processes, **self.options}
            variables = {"OMP_NUM_THREADS": str(task.threads)}
            work = Work(task.folder.path.absolute(), variables, task.processes, Path.cwd())
            self._running[task.name] = self.ray.remote(_call).options(name=task.name, **resources).remote(work)

    def ended(self) -> list[tuple[str, int]]:
        """List name and exit code of the tasks that ended since the last call."""
        if not self._running:
            return []
        ready, _ = self.ray.wait(list(self._running.values()), num_returns=len(self._running), timeout=0)
        found = [(name, self._code(task)) for name, task in self._running.items() if task in ready]
        for name, _ in found:
            del self._running[name]
        return found

    def stop(self) -> None:
        """Cancel all tasks, wait until they have saved, and leave the cluster."""
        for task in self._running.values():
            self.ray.cancel(task)  # as Ctrl-C would
        until = time.monotonic() + LEAVE_SECONDS
        waiting = list(self._running.values())
        while waiting and time.monotonic() < until:
            _, waiting = self.ray.wait(waiting, num_returns=len(waiting), timeout=1)
        if not self._running:
            self.ray.shutdown()

    def _code(self, task: Any) -> int:
        """Read a task's exit code; one that was cancelled, or lost more often than is retried, has none."""
        try:
            return self.ray.get(task)
        except self.ray.exceptions.TaskCancelledError:
            return 130
        except self.ray.exceptions.RayError:
            return -9


def _call(work: Work) -> int:
    return work()
