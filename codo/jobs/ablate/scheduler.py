"""The order of jobs: each once, after what it needs, on any executor; failures told at once and lived with."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from codo.errors import Interrupted
from codo.jobs.ablate.display import Display
from codo.jobs.ablate.executors.base import Executor, Task
from codo.jobs.ablate.failure import exit_code, note_failure
from codo.jobs.ablate.jobs import Job, JobFolder
from codo.jobs.ablate.plan import Plan
from codo.jobs.ablate.work import POLL_SECONDS
from codo.runs.console import duration
from codo.runs.interrupt import StopRequest

WRITE_SECONDS = 60.0
"""How long lies at least between two calls of `on_done`."""

STOPPED = (130, 143, -2, -15)
"""Exit codes of a job that was told to stop (preempted, say) and saved its state."""


@dataclass
class Scheduler:
    """Runs the jobs of a plan that are not done.

    Args:
        plan: of the grid.
        executor: runs them.
        fail_fast: end at the first failure.
        keep_checkpoints: else that of a finished job, which nothing needs any more, is removed.
        go_on: the command that goes on after an interruption.

    Attributes:
        states: job -> `waiting`, `running`, `done`, `failed` or `blocked`.
        failures: job -> what went wrong, in a line; those of earlier sessions too.
        broke_off: whether `fail_fast` ended it.
    """

    plan: Plan
    executor: Executor
    fail_fast: bool = False
    keep_checkpoints: bool = False
    go_on: str = "codo ablate"
    states: dict[str, str] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    broke_off: bool = False
    _started: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in self.plan.jobs:
            folder = self.plan.store.folder(name)
            failure = folder.failure
            self.states[name] = "done" if folder.done else "failed" if failure else "waiting"
            if folder.done:
                self._tidy(folder)
            if failure:
                self.failures[name] = failure["message"]
        self._block()

    def run(self, on_done: Callable[[], None] = lambda: None) -> None:
        """Run until nothing is left that can be run.

        Args:
            on_done: called when jobs are done, at most every WRITE_SECONDS.

        Raises:
            Interrupted: after Ctrl-C or SIGTERM; the jobs have saved their state.
            CodoError: the code is no longer that of the plan; the running jobs have saved theirs.
        """
        with StopRequest() as stop, Display(self.plan, self.states) as display:
            told, last = self._count("done"), time.monotonic()
            try:
                while self._open() and stop.number is None:
                    ready = self._ready()[: max(0, self.executor.free)]
                    if ready:
                        self._submit(ready, display)
                    time.sleep(POLL_SECONDS)
                    failed = self._collect(display)
                    display.refresh()
                    if self._count("done") > told and time.monotonic() - last >= WRITE_SECONDS:
                        on_done()
                        told, last = self._count("done"), time.monotonic()
                    if failed and self.fail_fast:
                        display.say("--fail-fast: the running jobs save and leave")
                        self.broke_off = True
                        break
            finally:
                self.executor.stop()
                self._collect(display, leaving=True)
            if stop.number is not None:
                raise Interrupted(
                    stop.number, f"stopped; {self._count('done')} of {len(self.states)} jobs are done", self.go_on
                )

    def _count(self, state: str) -> int:
        return sum(found == state for found in self.states.values())

    def _open(self) -> bool:
        return any(state == "running" for state in self.states.values()) or bool(self._ready())

    def _ready(self) -> list[Job]:
        """List the jobs that may start.

        Seed by seed, so that what is done can be compared; of a seed those of random weights last, which would take the
        places of pretrainings that others wait for.
        """
        jobs = [
            job
            for name, job in self.plan.jobs.items()
            if self.states[name] == "waiting" and (job.needs is None or self._is_done(job.needs))
        ]
        seeds = self.plan.grid.file.seeds
        return sorted(jobs, key=lambda job: (seeds.index(job.seed), job.kind != "pretrain" and job.needs is None))

    def _is_done(self, name: str) -> bool:
        return self.states.get(name) == "done" or self.plan.store.folder(name).done

    def _submit(self, jobs: list[Job], display: Display) -> None:
        self.plan.check_code()
        tasks = []
        for job in jobs:
            folder = self.plan.store.folder(job.name)
            threads = getattr(getattr(job.settings, "run", None), "threads", 1)
            tasks.append(Task(folder, threads, self.plan.grid.file.processes))
            self.states[job.name], self._started[job.name] = "running", time.monotonic()
            display.note(job.name, self._verb(folder.run))
        self.executor.submit(tasks)

    def _verb(self, run: Path) -> str:
        if self.executor.queues:
            return "submitted"
        return "goes on" if (run / "checkpoint.pt").is_file() else "starts"

    def _collect(self, display: Display, leaving: bool = False) -> bool:
        """Take in the jobs that ended; return whether one failed."""
        failed = False
        for name, code in self.executor.ended():
            folder = self.plan.store.folder(name)
            code = exit_code(folder, code)
            took = duration(time.monotonic() - self._started[name])
            if folder.done:
                self.states[name] = "done"
                folder.forget_failure()
                self._tidy(folder)
                ap = folder.summary().get("metrics", {}).get("AP") if folder.kind == "transfer" else None
                display.note(name, f"done, AP {ap:.2f} ({took})" if ap is not None else f"done ({took})")
            elif leaving or code in STOPPED:
                self.states[name] = "waiting"
                if not leaving:
                    display.note(name, "was stopped from outside; it goes on")
            else:
                self.states[name], failed = "failed", True
                self.failures[name] = note_failure(folder, code)
                display.note(name, f"FAILED: {self.failures[name]} (see {folder.path / 'log.txt'})", "red")
        self._block()
        return failed

    def _tidy(self, folder: JobFolder) -> None:
        if not self.keep_checkpoints:
            (folder.run / "checkpoint.pt").unlink(missing_ok=True)

    def _block(self) -> None:
        for name, job in self.plan.jobs.items():
            if self.states[name] == "waiting" and job.needs and self.states.get(job.needs) == "failed":
                self.states[name] = "blocked"
