"""What `codo ablate` shows while it runs: a live table of all cells on a terminal, plain lines in a pipe."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType

from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from codo.jobs.ablate.plan import CellKey, Plan
from codo.jobs.ablate.work import progress
from codo.runs.console import duration, stderr

REFRESH_SECONDS = 1.0

State = str
"""`waiting`, `running`, `done`, `failed` or `blocked` (what it needs failed)."""


class Display:
    """Shows the states of jobs as a table of cells.

    Args:
        plan: of the grid.
        states: job -> state, as the schedule keeps them.
    """

    def __init__(self, plan: Plan, states: dict[str, State]) -> None:
        self.plan, self.states = plan, states
        self._start = self._shown = time.monotonic()
        self._live = Live(console=stderr, auto_refresh=False) if stderr.is_terminal else None

    def __enter__(self) -> Display:
        if self._live is not None:
            self._live.start()
            self.refresh(now=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self.refresh(now=True)
            self._live.stop()

    def refresh(self, now: bool = False) -> None:
        """Draw the table anew, at most once a second."""
        if self._live is None or (not now and time.monotonic() - self._shown < REFRESH_SECONDS):
            return
        self._shown = time.monotonic()
        self._live.update(self.table(), refresh=True)

    def say(self, text: str, style: str = "") -> None:
        """Print a line above the table."""
        (self._live.console if self._live is not None else stderr).print(Text(text, style))

    def note(self, job: str, what: str, style: str = "") -> None:
        """Print what became of a job."""
        ended = sum(state in ("done", "failed", "blocked") for state in self.states.values())
        self.say(f"[{ended}/{len(self.states)}] {self.about(job)}: {what}", style)

    def about(self, job: str) -> str:
        """Name a job by the first cell that it is for."""
        key, cell = next((k, c) for k, c in self.plan.cells.items() if job in c.jobs())
        others = sum(job in c.jobs() for c in self.plan.cells.values()) - 1
        kind = self.plan.jobs[job].kind
        protocol = f", {key.protocol}" if kind == "transfer" and len(self.plan.grid.file.transfer) > 1 else ""
        many = len(cell.transfers)
        repeat = f", {cell.transfers.index(job) + 1} of {many}" if kind == "transfer" and many > 1 else ""
        shared = f" (and {others} more cells)" if others and job != cell.pretrain else ""
        return f"{kind} {key.row}{protocol}, seed {key.seed}{repeat}{shared} [{job[-16:-8]}]"

    def table(self) -> Table:
        """Draw all cells."""
        file = self.plan.grid.file
        elapsed = duration(time.monotonic() - self._start)
        done = sum(state == "done" for state in self.states.values())
        table = Table(title=f"{escape(file.title)}: {done} of {len(self.states)} jobs, {elapsed}", title_justify="left")
        table.add_column("row")
        several = len(file.transfer) > 1
        for protocol in file.transfer:
            for seed in file.seeds:
                table.add_column(f"{escape(protocol)} {seed}" if several else f"seed {seed}", justify="right")
        for row in self.plan.grid.rows:
            keys = [CellKey(row.name, protocol, seed) for protocol in file.transfer for seed in file.seeds]
            table.add_row(escape(row.name), *map(self.cell, keys))
        return table

    def cell(self, key: CellKey) -> str:
        """Say how a cell stands, in a few characters."""
        plan = self.plan.cells[key]
        transfers = [self.plan.store.folder(name) for name in plan.transfers]
        states = [self.states[name] for name in plan.transfers]
        if all(state == "done" for state in states):
            found = [transfer.summary()["metrics"].get("AP") for transfer in transfers]
            return "-" if None in found else f"[bold]{sum(found) / len(found):.1f}[/]"
        if "failed" in states:
            return "[red]failed[/]"
        if "running" in states or "done" in states:
            shares = [1.0 if state == "done" else progress(of) for of, state in zip(transfers, states, strict=True)]
            return f"[cyan]train {_share(shares)}[/]"
        before = self.states.get(plan.pretrain) if plan.pretrain else None
        if before == "failed":
            return "[red]pre failed[/]"
        if before == "running":
            return f"[blue]pre {_share([progress(self.plan.store.folder(plan.pretrain or ''))])}[/]"
        return "[dim]ready[/]" if before in ("done", None) else "[dim].[/]"


def _share(shares: Sequence[float | None]) -> str:
    known = [share for share in shares if share is not None]
    return f"{sum(known) / len(shares):.0%}" if known else "..."
