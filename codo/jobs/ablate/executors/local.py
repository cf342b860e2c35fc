"""Jobs as processes of this machine, its cores and GPUs divided among them."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress

import torch

from codo.errors import CodoError
from codo.jobs.ablate.executors.base import Task
from codo.jobs.ablate.work import POLL_SECONDS, start
from codo.runs.hardware import available_cores
from codo.runs.lock import Held, Lock


class LocalExecutor:
    """Runs up to `jobs` processes at a time, each on cores of its own where the platform can hold it to them.

    Args:
        jobs: None takes one for each GPU, or as many as the cores bear.
        threads: that each process computes and loads with.
        processes: of a job, each with a GPU of its own where there are GPUs.

    Raises:
        CodoError: more jobs than the cores bear.
    """

    queues = False

    def __init__(self, jobs: int | None, threads: int, processes: int = 1) -> None:
        self.cores, self.gpus = available_cores(), _gpus()
        self.threads, self.processes = threads, processes
        most = max(1, len(self.gpus) // processes if self.gpus else self.cores // (threads * processes))
        self.jobs = jobs or most
        if not self.gpus and self.jobs > most:
            raise CodoError(
                f"--jobs {self.jobs}: of {threads * processes} threads each exceed the {self.cores} cores of this "
                f"machine; at most {most}"
            )
        self._shares = core_shares(self.jobs, self.cores)
        self._running: dict[str, subprocess.Popen[bytes] | None] = {}  # None: another process is at it
        self._tasks: dict[str, Task] = {}
        self._slots: dict[str, int] = {}

    def check(self) -> None:
        """Refuse jobs of which this machine cannot bear one; a dry run, which times steps in one process, does not ask.

        Raises:
            CodoError: more processes than GPUs; without GPUs, more threads than cores.
        """
        if self.gpus and self.processes > len(self.gpus):
            raise CodoError(
                f"processes {self.processes}: each has a GPU of its own, and this machine has {len(self.gpus)}; "
                "lower it in the grid"
            )
        needed = self.threads * self.processes
        if not self.gpus and needed > self.cores:
            raise CodoError(
                f"{needed} threads a job (run.threads + run.workers, times processes) exceed the {self.cores} cores of "
                "this machine; lower them in the grid"
            )

    @property
    def free(self) -> int:
        """How many tasks it takes now."""
        return self.jobs - len(self._running)

    def submit(self, tasks: Sequence[Task]) -> None:
        """Start tasks."""
        for task in tasks:
            taken = set(self._slots.values())
            self._slots[task.name] = next(i for i in range(self.jobs) if i not in taken)
            self._tasks[task.name] = task
            self._running[task.name] = self._start(task)

    def _start(self, task: Task) -> subprocess.Popen[bytes] | None:
        try:
            lock = Lock(task.folder.path)
        except Held:  # by a process that an earlier, killed `codo ablate` left behind
            return None
        if task.folder.done:  # since the plan, by such a process
            lock.leave()
            return None
        variables = {"OMP_NUM_THREADS": str(task.threads)}
        if self.gpus:
            first = self._slots[task.name] * self.processes
            own = [self.gpus[(first + i) % len(self.gpus)] for i in range(self.processes)]
            variables["CUDA_VISIBLE_DEVICES"] = ",".join(own)
        process = start(task.folder, lock, variables, task.processes)
        if self._shares:  # before it has threads and children, which inherit it
            with suppress(ProcessLookupError):
                os.sched_setaffinity(process.pid, self._shares[self._slots[task.name]])
        return process

    def ended(self) -> list[tuple[str, int]]:
        """List name and exit code of the tasks that ended since the last call."""
        found = []
        for name, process in list(self._running.items()):
            task = self._tasks[name]
            if process is None:
                if task.folder.done:
                    found.append((name, 0))
                else:
                    self._running[name] = self._start(task)
            elif process.poll() is not None:
                found.append((name, process.returncode))
        for name, _ in found:
            del self._running[name], self._slots[name], self._tasks[name]
        return found

    def stop(self) -> None:
        """Have all tasks save and leave, and wait for it."""
        processes = [process for process in self._running.values() if process is not None]
        for process in processes:
            process.terminate()
        try:
            while any(process.poll() is None for process in processes):
                time.sleep(POLL_SECONDS)
        except KeyboardInterrupt:  # asked a second time
            for process in processes:
                process.kill()
            raise


def core_shares(jobs: int, cores: int) -> list[set[int]]:
    """Divide the cores that this process may use.

    Args:
        jobs: how many shares.
        cores: how many there are to divide: fewer than this process may use, where its container has a quota.

    Returns:
        The cores of each job, none in two shares and none left over while there are enough; nothing where a process
        cannot be held to cores.

    Example:
        >>> [len(share) for share in core_shares(1, 1)] if hasattr(os, "sched_setaffinity") else [1]
        [1]
    """
    if not hasattr(os, "sched_setaffinity"):
        return []
    own = sorted(os.sched_getaffinity(0))
    cores = min(cores, len(own))
    if jobs > cores:
        return [{own[job % len(own)]} for job in range(jobs)]
    return [set(own[job * cores // jobs : (job + 1) * cores // jobs]) for job in range(jobs)]


def _gpus() -> list[str]:
    if not torch.cuda.is_available():
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",") if visible else [str(i) for i in range(torch.cuda.device_count())]
