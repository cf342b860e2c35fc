"""Jobs as forks of this process: as processes of their own, without the seconds that importing torch takes."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from codo.cli import main
from codo.errors import Interrupted
from codo.jobs.transfer import coco_metrics
from codo.runs import console


class ForkedPopen:
    """What `codo.jobs.ablate.work.start` uses of `subprocess.Popen`, for `python -m codo.cli ...`."""

    def __init__(
        self, command: list[str], *, stdin: int, stdout: Any, stderr: int, env: dict, pass_fds: list[int], **_: Any
    ) -> None:
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            for descriptor in set(range(3, 256)) - {stdout.fileno(), *pass_fds}:
                with suppress(OSError):
                    os.close(descriptor)
            run_command(command[3:], stdout.fileno(), env)

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def terminate(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)


def run_command(arguments: list[str], output: int, environment: dict[str, str]) -> None:
    """Run a `codo` command in a fork, and end it."""
    code = 1
    try:
        os.setsid()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        os.environ.update(environment)
        console.console.file, console.stderr.file = sys.stdout, sys.stderr
        coco_metrics._hotcoco = lambda: None  # its threads do not survive a fork; pycocotools' numbers are the same
        main(arguments)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


class Driver:
    """`codo ablate` in a fork, to be killed; multiprocessing would wait for the jobs too, which inherit its pipe."""

    def __init__(self, body: Callable[[], Any], log: Path) -> None:
        self.pid = os.fork()
        if self.pid == 0:
            self._run(body, log)

    def _run(self, body: Callable[[], Any], log: Path) -> None:
        code = 1
        try:
            with open(log, "a") as file:
                os.dup2(file.fileno(), 2)
            sys.stderr = os.fdopen(2, "w", closefd=False)
            console.stderr.file = sys.stderr
            body()
            code = 0
        except Interrupted as stopped:
            print(stopped, file=sys.stderr)
            code = stopped.exit_code
        finally:
            sys.stderr.flush()
            os._exit(code)

    def kill_when(self, happened: Callable[[], bool], number: int) -> int:
        """Wait until `happened`, send a signal, and return the exit code."""
        wait_for(happened)
        os.kill(self.pid, number)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def wait_for(happened: Callable[[], bool], seconds: float = 60) -> None:
    """Wait until something happened."""
    until = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < until, "it does not happen"
        time.sleep(0.01)
