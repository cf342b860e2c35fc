"""Where jobs run: this machine, Slurm, a Ray cluster."""

from codo.jobs.ablate.executors.base import Executor, Task
from codo.jobs.ablate.executors.local import LocalExecutor

__all__ = ["Executor", "LocalExecutor", "Task"]
