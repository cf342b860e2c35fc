"""Doing one job: the command that begins it or goes on with it, in a process of its own."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from subprocess import DEVNULL, STDOUT, Popen

import yaml

import codo
from codo.jobs.ablate.jobs import JobFolder
from codo.runs.files import cannot_write
from codo.runs.interrupt import StopRequest
from codo.runs.lock import Held, Lock, held

POLL_SECONDS = 0.2

CHECKOUT = Path(codo.__file__).parents[1]
"""What jobs import codo from, whatever is installed where they run."""


def next_arguments(folder: JobFolder) -> list[str]:
    """Compose the command that begins the job, or goes on where it was killed; clears what cannot be gone on with."""
    if (folder.run / "checkpoint.pt").is_file() and (moved := _moved(folder)) is not None:
        return [folder.kind, "--resume", str(folder.run), *moved]
    if folder.run.exists():  # killed before its first checkpoint, or a transfer whose data were moved since
        with held(folder.run):
            shutil.rmtree(folder.run, ignore_errors=True)
    return folder.command()


def start(
    folder: JobFolder, lock: Lock, environment: Mapping[str, str], processes: int = 1, cwd: Path | None = None
) -> Popen[bytes]:
    """Start a job; its process takes the lock over, so that it is held for as long as the job runs.

    Args:
        folder: of the job, with its config.yaml.
        lock: of that folder.
        environment: variables of the process, besides this one's.
        processes: that share the job's batches.
        cwd: where it runs; None is here.

    Raises:
        CodoError: it cannot be started, e.g. on a full disk; the lock is let go.
    """
    with lock:
        words = next_arguments(folder)
        try:
            process = _started(folder, lock, words, environment, processes, cwd)
        except OSError as error:
            raise cannot_write(folder.path / "log.txt", error) from error
        lock.note(process.pid)
    return process


def _started(
    folder: JobFolder, lock: Lock, words: list[str], environment: Mapping[str, str], processes: int, cwd: Path | None
) -> Popen[bytes]:
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m"]
    several = processes > 1 and folder.kind != "probe"
    command = [sys.executable, "-m", *(torchrun if several else []), "codo.cli", *words]
    paths = [str(CHECKOUT), *filter(None, [os.environ.get("PYTHONPATH")])]
    variables = os.environ | {"PYTHONPATH": os.pathsep.join(paths)} | dict(environment)
    if folder.kind == "probe":
        folder.run.mkdir(exist_ok=True)
    with open(folder.path / "log.txt", "ab") as log:
        log.write(f"\n{time.strftime('%Y-%m-%d %H:%M:%S')} codo {' '.join(words)}\n".encode())
        log.flush()
        return Popen(
            command,
            stdin=DEVNULL,
            stdout=log,
            stderr=STDOUT,
            env=variables,
            cwd=cwd,
            pass_fds=[lock.descriptor],
            start_new_session=True,  # Ctrl-C is for `codo ablate`, which tells the job
        )


def _moved(folder: JobFolder) -> list[str] | None:
    """List the flags with which a run that was begun goes on where its job's data lie now; None if it cannot."""
    try:
        trees = [yaml.safe_load((at / "config.yaml").read_text(encoding="utf-8")) for at in (folder.path, folder.run)]
    except (OSError, yaml.YAMLError):
        return None
    job, run = ({**(tree.get("data") or {}), "weights": tree.get("weights")} for tree in trees)
    flags = [word for name in job if job[name] != run.get(name) for word in (f"--{name}", job[name])]
    if not flags or (folder.kind == "pretrain" and None not in flags):
        return flags
    return None


class Work:
    """Does a job to its end, wherever it is called; told to stop (SIGTERM, SIGINT), it has the job save and leave.

    Args:
        folder: of the job.
        environment: variables of its process, besides those that there are.
        processes: that share the job's batches.
        cwd: where the job runs.

    Attributes:
        told: whether it was told to stop.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str], processes: int, cwd: Path) -> None:
        self.folder, self.environment = folder, dict(environment)
        self.processes, self.cwd = processes, cwd
        self.told = False
        self._process: Popen[bytes] | None = None

    def __call__(self) -> int:
        """Do it; return the exit code of its process."""
        folder = JobFolder(self.folder)
        with StopRequest() as stop:
            while (lock := self._lock()) is None:  # an earlier process is still at it
                time.sleep(POLL_SECONDS)
                if stop.number is not None:
                    return 128 + stop.number
            if folder.done:
                lock.leave()
                return 0
            self._process = start(folder, lock, self.environment, self.processes, self.cwd)
            while self._process.poll() is None:
                time.sleep(POLL_SECONDS)
                if stop.number is not None and not self.told:
                    self._process.terminate()
                    self.told = True
            return self._process.returncode

    def leave(self) -> None:
        """Have the job save and leave, from within a signal handler."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait()

    def _lock(self) -> Lock | None:
        try:
            return Lock(self.folder)
        except Held:
            return None


def progress(folder: JobFolder) -> float | None:
    """Tell the share of a running job that is done, from what it logged; None before its first line."""
    try:
        config = yaml.safe_load((folder.run / "config.yaml").read_text(encoding="utf-8"))
        with open(folder.run / "metrics.jsonl", "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 4096))
            lines = file.read().split(b"\n")
        record = json.loads(lines[-2])
        optim = config["optim"]
        if optim.get("epochs"):
            return min(1.0, float(record["epoch"]) / float(optim["epochs"]))
        return min(1.0, float(record["step"]) / float(optim["iterations"]))
    except (OSError, IndexError, KeyError, TypeError, ValueError, yaml.YAMLError):
        return None
