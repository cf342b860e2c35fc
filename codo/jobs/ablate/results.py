"""What a grid came to: rows, cells and their figures, as results.json holds them and the report reads them."""

from __future__ import annotations

import json
from collections import Counter
from itertools import product
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, FiniteFloat, ValidationError

from codo.errors import CodoError, nearest
from codo.runs.files import write_text

Status = Literal["done", "failed", "missing"]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Row(_Record):
    """A row of the table: one method.

    Attributes:
        name: as the grid names it, unique.
        changes: dotted pretraining field -> value, against the grid's base; empty for the base, None for a row that is
            not pretrained (`weights: none`).
        factors: for a factorial, switch -> on or off.
        tuned: dotted pretraining field -> the value that the row's trials chose, and the epochs that go with it; not
            among `changes`.
    """

    name: str
    changes: dict[str, Any] | None
    factors: dict[str, bool] = {}
    tuned: dict[str, Any] = {}


class Trial(_Record):
    """A value tried in a row; `score` is None where there is none, e.g. of a failed job."""

    row: str
    value: Any
    score: float | None
    chosen: bool


class Tuning(_Record):
    """How a field was tuned for each row.

    Attributes:
        field: of the pretraining, dotted.
        seed: of the trials.
        protocol: that they were judged by.
        metric: likewise; None is the grid's.
        trials: in the order of the rows, of those that were tuned; their report lies in `tuning/`.
    """

    field: str
    seed: int
    protocol: str
    metric: str | None = None
    trials: list[Trial]


class Point(_Record):
    """An evaluation in the course of a transfer: AP in per cent, None where there is nothing to find."""

    step: int
    epoch: float
    AP: float | None


class Probed(_Record):
    """What the probes of a pretraining looked at.

    Attributes:
        held_out: whether the pretraining saw none of the images.
        images: the same where the images are.
        chance: `probe/NAME` -> what an embedding that knows nothing has.
    """

    held_out: bool
    images: str
    chance: dict[str, float]


class Cell(_Record):
    """One row, protocol and seed.

    Attributes:
        metrics: name -> value, None where undefined; the mean where transfers are repeated: the transfer's COCO numbers
            in per cent (`AP`, `AP50`, ...), the area under its curve of AP over the steps (`curve_area`: trapezoids
            from step 0 with AP 0, over the length; `codo.jobs.transfer.curve`), the probes of its pretraining
            (`probe/NAME`), and that one's accuracies in its last epoch (`pretrain/NAME`), where it has them.
        repeats: the numbers of each of the repeated transfers alone; empty where there is one.
        curve: AP in the course of the transfer; the mean where they are repeated, and of `errors` too.
        errors: TIDE's breakdown, kind of error -> AP50 that mending it would add.
        loss: step -> loss of the pretraining, thinned; empty for `weights: none`.
        probe_curves: `probe/NAME` -> epoch, value in the course of the pretraining, by `run.probe_every`.
        failure: the last line of what went wrong; None unless failed.
        failures: kind of job -> what went wrong with it; a probe may fail in a cell that is done.
        frozen_but_fresh: groups of the detector of which something is frozen that nothing has learnt.
        probed: what the probes looked at; None without.
        warned: name -> what the pretraining has warned of: `shortcut`, `collapse`, ...
        folders: `pretrain`, `transfer`, then `transfer 2` and so on: the run folders, relative to the grid's.
        commands: the commands that make this cell anew, in order; for where the grid was run, see `command`.
        fingerprints: as the run folders name them, keyed as `folders`.
        seconds: time taken, keyed so too.
    """

    row: str
    protocol: str
    seed: int
    status: Status
    metrics: dict[str, float | None] = {}
    repeats: list[dict[str, float | None]] = []
    curve: list[Point] = []
    errors: dict[str, float] = {}
    loss: list[tuple[int, float]] = []
    probe_curves: dict[str, list[tuple[float, float]]] = {}
    failure: str | None = None
    failures: dict[str, str] = {}
    frozen_but_fresh: list[str] = []
    probed: Probed | None = None
    warned: dict[str, str] = {}
    folders: dict[str, str] = {}
    commands: list[str] = []
    fingerprints: dict[str, str] = {}
    seconds: dict[str, FiniteFloat] = {}


class Results(_Record):
    """A grid's results.

    Attributes:
        title: the grid's.
        question: what it asks, in a sentence; may be empty.
        design: `one_at_a_time`, `ladder`, `factorial` or `rows`.
        reference: the row that the others are compared to.
        base: the row of the grid's base, which the changes of the others are against; None where it is no row.
        rows: in the grid's order.
        protocols: names, in the grid's order.
        seeds: in the grid's order.
        repeats: transfers of each pretraining.
        metric: the one that decides: `AP` or `curve_area`.
        cells: one for each row, protocol and seed, those that are missing too.
        environment: versions and git state of the machine that collected them; `hardware` is that of the finished jobs,
            kind of job -> all that they name.
        command: what makes the grid again; paths are relative to where it was run, `PATH/NAME` lies elsewhere.
        notices: what the plan told: jobs of another version of the code, data that changed.
        samples: row -> file of its contact sheet (PNG), relative to the grid's folder; may lack rows.
        tuning: how a field was tuned for each row; None where none was.
    """

    title: str
    question: str = ""
    design: str
    reference: str
    base: str | None = None
    rows: list[Row]
    protocols: list[str]
    seeds: list[int]
    repeats: int = 1
    metric: str = "AP"
    cells: list[Cell]
    environment: dict[str, Any] = {}
    command: str = ""
    notices: list[str] = []
    samples: dict[str, str] = {}
    tuning: Tuning | None = None

    def cell(self, row: str, protocol: str, seed: int) -> Cell:
        """Find a cell."""
        return next(c for c in self.cells if (c.row, c.protocol, c.seed) == (row, protocol, seed))

    def asked(self, reference: str | None = None, metric: str | None = None) -> Results:
        """Ask another question of the same cells, and add a notice that it was not the grid's.

        Args:
            reference: another row to compare to; None: the grid's.
            metric: another of the detector's numbers, more being better, e.g. `AP75`, to decide by; None: the grid's.

        Raises:
            CodoError: no row, or no number, is called so.
        """
        numbers = dict.fromkeys(name for cell in self.cells for name in cell.metrics if "/" not in name)
        for flag, name, known in (
            ("reference", reference, [r.name for r in self.rows]),
            ("metric", metric, [*numbers]),
        ):
            if name is not None and name not in known:
                near = nearest(name, known)
                hint = f"did you mean {near!r}?" if near else f"there are {', '.join(known) or 'none'}"
                raise CodoError(f"--{flag} {name}: the results have none of this name; {hint}")
        asked = self.model_copy(update={"reference": reference or self.reference, "metric": metric or self.metric})
        if (asked.reference, asked.metric) == (self.reference, self.metric):
            return self
        notice = f"asked after the fact: the grid's own comparison is to {self.reference} by {self.metric}"
        return asked.model_copy(update={"notices": [*self.notices, notice]})

    def write(self, path: Path) -> None:
        """Write as JSON."""
        write_text(path, json.dumps(self.model_dump(), indent=1) + "\n")

    def _check_cells(self) -> None:
        rows = [row.name for row in self.rows]
        if self.reference not in rows:
            raise ValueError(f"reference: no row is called {self.reference!r}")
        due = Counter(product(rows, self.protocols, self.seeds))
        found = Counter((c.row, c.protocol, c.seed) for c in self.cells)
        for what, cells in (("one too many", found - due), ("none", due - found)):
            for row, protocol, seed in cells:
                raise ValueError(f"cells: {what} of row {row!r}, protocol {protocol!r}, seed {seed}")

    @classmethod
    def read(cls, path: Path) -> Results:
        """Read results.json.

        Raises:
            CodoError: it cannot be read, or is not one.
        """
        try:
            results = cls.model_validate_json(path.read_text(encoding="utf-8"))
            results._check_cells()
            return results
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"]))
            raise CodoError(f"cannot read {path} as results: {where}{': ' if where else ''}{first['msg']}") from error
        except FileNotFoundError as error:
            raise CodoError(f"{path} is not there: the folder of a grid is expected, written by codo ablate") from error
        except OSError as error:
            raise CodoError(f"cannot read {path}: {error.strerror}") from error
        except ValueError as error:
            raise CodoError(f"cannot read {path} as results: {str(error).splitlines()[0]}") from error
