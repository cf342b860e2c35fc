"""What a long job shows: a live display on a terminal, plain lines in a pipe."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, Task, TextColumn, TimeElapsedColumn
from rich.table import Column
from rich.text import Text


class _Console(Console):
    """Ends the process as a closed pipe ends others (`codo ... | head`): quietly, by 128 + SIGPIPE."""

    def on_broken_pipe(self) -> None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left to flush goes there
        raise SystemExit(141)


console = _Console(highlight=False, soft_wrap=True)
"""Where results go: standard output."""

stderr = Console(stderr=True, highlight=False, soft_wrap=True)
"""Where progress, warnings and errors go: standard error."""

PLAIN_SECONDS = 10.0
"""Seconds between two plain lines."""


def hush() -> None:
    """Show nothing more in this process, which is not the first of several."""
    console.quiet = stderr.quiet = True


def duration(seconds: float) -> str:
    """Write a duration as people read it: `42 s`, `3 min 05 s`, `2 h 07 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


class _Figures(TextColumn):
    """Cut at its end where the terminal is narrow: what stands beside it is more."""

    def render(self, task: Task) -> Text:
        text = super().render(task)
        text.no_wrap, text.overflow = True, "ellipsis"
        return text


class JobProgress:
    """Progress of a job of `total` steps: step, the latest figures, images/s, share of waiting for data, time left.

    Args:
        total: steps of the whole job.
        description: its name.
        done: steps that an earlier session had done.
    """

    def __init__(self, total: int, description: str, done: int = 0) -> None:
        self.total, self.description, self.first = total, description, done
        self._start = self._last_plain = time.monotonic()
        self._progress: Progress | None = None
        if stderr.is_terminal:
            self._progress = Progress(
                TextColumn("{task.description}", table_column=Column(no_wrap=True)),
                BarColumn(bar_width=12),
                MofNCompleteColumn(table_column=Column(no_wrap=True)),
                _Figures("{task.fields[figures]}", markup=False, table_column=Column()),
                TextColumn("left {task.fields[left]}", table_column=Column(no_wrap=True)),
                TimeElapsedColumn(table_column=Column(no_wrap=True)),
                console=stderr,
            )
            self._task = self._progress.add_task(description, total=total, completed=done, figures="", left="")

    def __enter__(self) -> JobProgress:
        if self._progress:
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress:
            self._progress.stop()

    def update(self, step: int, figures: Mapping[str, float | str]) -> None:
        """Show that `step` steps are done, with the latest figures by name."""
        elapsed = time.monotonic() - self._start
        left = elapsed / max(1, step - self.first) * (self.total - step)
        words = [f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in figures.items()]
        if self._progress:
            self._progress.update(self._task, completed=step, figures="  ".join(words), left=duration(left))
        elif step == self.total or time.monotonic() - self._last_plain >= PLAIN_SECONDS:
            self._last_plain = time.monotonic()
            line = "  ".join([f"{self.description} {step}/{self.total}", *words, f"left {duration(left)}"])
            stderr.print(line, markup=False)

    def note(self, text: str) -> None:
        """Print a line above the display."""
        (self._progress.console if self._progress else stderr).print(text, markup=False)


@contextmanager
def counter(description: str) -> Iterator[Callable[[int, int], None]]:
    """Yield a callback `(done, total)` that shows work: a bar on a terminal, a line every ten seconds in a pipe."""
    bar: Progress | None = None
    last = time.monotonic()

    def show(done: int, total: int) -> None:
        nonlocal bar, last
        if stderr.is_terminal:
            if bar is None:
                bar = Progress(TextColumn("{task.description}"), BarColumn(24), MofNCompleteColumn(), console=stderr)
                bar.add_task(description, total=total)
                bar.start()
            bar.update(bar.task_ids[0], completed=done, total=total)
        elif done >= total:
            stderr.print(f"{description}: {total}", markup=False)
        elif time.monotonic() - last >= PLAIN_SECONDS:
            last = time.monotonic()
            stderr.print(f"{description}: {done} of {total}", markup=False)

    try:
        yield show
    finally:  # a bar hides the cursor
        if bar is not None:
            bar.stop()


def say(text: str) -> None:
    """Print what a job does meanwhile."""
    stderr.print(text, markup=False)


def warn(text: str) -> None:
    """Print a warning."""
    stderr.print(Text("warning:", "yellow"), Text(text))
