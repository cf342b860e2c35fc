"""A field tuned for each row: trials of their own seed, as many for every row, of which the best gives the value.

What is good for one row need not be for another: a learning rate that suits the base may be what a component loses by.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import reduce
from operator import getitem
from typing import Any

from codo.config.load import unknown_field
from codo.config.pretrain import PretrainConfig
from codo.config.sections import ArchitectureSection
from codo.jobs.ablate.grid import Tune
from codo.jobs.ablate.places import tidy
from codo.jobs.ablate.resolve import Base, Grid, ResolvedRow, what_differs
from codo.jobs.ablate.results import Results, Trial, Tuning
from codo.jobs.ablate.rows import Change, refuse_reserved, section_of


@dataclass(frozen=True)
class _Trial:
    """A value in a row: as it is written, and the row with it."""

    value: Any
    change: Change
    row: ResolvedRow


def trials_of(grid: Grid) -> Grid:
    """Lay out the trials as a grid: each pretrained row with each value, one seed, one protocol.

    Args:
        grid: whose file says what to tune.

    Raises:
        CodoError: no such field of a pretraining, a value that is wrong in a row, a seed of the grid's; with the line.
    """
    tune, yaml = _tune(grid), grid.yaml
    _check_field(grid)
    if tune.seed in grid.file.seeds:
        message = f"{tune.seed} is a seed of the rows too, whose cells would be chosen for being good; take another"
        raise yaml.error(("tune", "seed"), message)
    protocol = tune.protocol or next(iter(grid.file.transfer))
    file = grid.file.model_copy(
        update={
            "title": f"{grid.file.title}: tuning",
            "question": f"Which {tune.field} suits each row?",
            "design": "rows",
            "seeds": (tune.seed,),
            "transfer": {protocol: grid.file.transfer[protocol]},
            "probes": False,
        }
    )
    base = Base(file, yaml)
    by_row = {row.name: [trial.row for trial in _trials(grid, row, base)] for row in grid.rows}
    rows = [row for rows in by_row.values() for row in rows]
    if not rows:
        raise yaml.error(("tune", "field"), f"no row is pretrained with {tune.field} in force")
    for row in rows:
        if sum(other.name == row.name for other in rows) > 1:
            raise yaml.error(row.plan.keys, f"two trials are called {row.name!r}; rename a row")
    return Grid(file, yaml, grid.base, rows, next(iter(by_row[grid.reference] or rows)).name)


def tuned(grid: Grid, results: Results) -> tuple[Grid, Tuning, list[str]]:
    """Give each row the value whose trial was best; of equals the first; its own where no trial has a score.

    Args:
        grid: as `trials_of` took it.
        results: of the trials.

    Returns:
        The grid to run, how its rows were tuned, and what the user should know.
    """
    tune = _tune(grid)
    base, protocol = Base(grid.file, grid.yaml), results.protocols[0]
    rows: list[ResolvedRow] = []
    tried: list[Trial] = []
    failed, equal, at_end = [], [], []
    for row in grid.rows:
        trials = _trials(grid, row, base)
        scores: dict[int, float] = {}
        for i, trial in enumerate(trials):
            cell = results.cell(trial.row.name, protocol, tune.seed)
            score = cell.metrics.get(grid.file.metric) if cell.status == "done" else None
            if score is not None:
                scores[i] = score
        best = max(scores, key=scores.__getitem__) if scores else None
        rows.append(_with(row, trials[best], tune.field) if best is not None else row)
        tried += [
            Trial(row=row.name, value=trial.value, score=scores.get(i), chosen=i == best)
            for i, trial in enumerate(trials)
        ]
        if len(scores) < len(trials):
            failed.append(f"{row.name} ({', '.join(_told(t.value) for i, t in enumerate(trials) if i not in scores)})")
        if best is None:
            continue
        if list(scores.values()).count(scores[best]) > 1:
            equal.append(row.name)
        numbers = [trials[i].value for i in scores]
        if len(numbers) > 2 and all(map(_is_number, numbers)) and trials[best].value in (min(numbers), max(numbers)):
            at_end.append(f"{row.name} ({_told(trials[best].value)})")
    notices = {
        f"trials of {tune.field} that came to no score, so that there were fewer to choose from, or none": failed,
        f"{tune.field}: trials are equal, and the first was taken, for": equal,
        f"{tune.field}: the best trial is at the end of what was tried for": at_end,
        "the rows are the same once tuned, their difference is 0 by that alone": _same(rows),
    }
    said = [f"{what}: {', '.join(names)}" for what, names in notices.items() if names]
    tuning = Tuning(field=tune.field, seed=tune.seed, protocol=protocol, metric=grid.file.metric, trials=tried)
    return replace(grid, rows=rows), tuning, said


def _tune(grid: Grid) -> Tune:
    assert grid.file.tune is not None
    return grid.file.tune


def _check_field(grid: Grid) -> None:
    """Refuse to tune what is no field of a pretraining, what the grid sets, or what the detector has too."""
    tune, yaml, keys = _tune(grid), grid.yaml, ("tune", "field")
    section = section_of(PretrainConfig, tune.field)
    if section is None:
        raise yaml.error(keys, unknown_field(tune.field.split("."), PretrainConfig).removeprefix("config: "))
    if section is not Any:
        raise yaml.error(keys, f"{tune.field} is a section; name one of its fields")
    refuse_reserved(Change(tune.field, None, keys), yaml, ("seed", "run", "data"))
    if tune.field in [f"model.{name}" for name in ArchitectureSection.model_fields]:
        raise yaml.error(keys, f"{tune.field} is the detector's too, of which all rows should have one")
    if tune.field == "model.init":
        raise yaml.error(keys, f"{tune.field} is not tuned: give each file a row")


def _trials(grid: Grid, row: ResolvedRow, base: Base) -> list[_Trial]:
    """List what to try in a row: nothing where it is not pretrained, or where nothing reads the field."""
    tune, yaml = _tune(grid), grid.yaml
    found: list[_Trial] = []
    for change in _changes(grid, row):
        changes = (*(row.plan.changes or ()), change)
        trial = base.resolve(replace(row.plan, changes=changes, factors={}, before=None))
        tree: Any = trial.pretrain.model_dump(mode="json")  # as it is in force: 0.001, written 1e-3
        value = tidy(reduce(getitem, tune.field.split("."), tree))
        name = f"{row.name}, {tune.field}={_told(value)}"
        found.append(_Trial(value, change, replace(trial, plan=replace(trial.plan, name=name))))
    values = [_told(trial.value) for trial in found]
    if len(set(values)) > 1 and len({what_differs(trial.row) for trial in found}) == 1:
        return []
    for i, value in enumerate(values):
        if value in values[:i]:
            raise yaml.error(found[i].change.keys, f"row {row.name!r} tries {value} twice")
    return found


def _with(row: ResolvedRow, trial: _Trial, field: str) -> ResolvedRow:
    """Give a row a trial's value, and the epochs that it takes by the budget."""
    epochs = trial.row.pretrain.optim.epochs
    values = {field: trial.value} | ({} if epochs == row.pretrain.optim.epochs else {"optim.epochs": epochs})
    return replace(trial.row, plan=row.plan, changes=row.changes, tuned=values)


def _changes(grid: Grid, row: ResolvedRow) -> list[Change]:
    tune, yaml = _tune(grid), grid.yaml
    if row.plan.changes is None:
        return []
    if tune.values is not None:
        if any(c.field == tune.field for c in row.plan.changes):
            message = (
                f"row {row.name!r} sets {tune.field} itself; write `factors` of what a row has, or leave it out there"
            )
            raise yaml.error(("tune", "values"), message)
        return [Change(tune.field, value, ("tune", "values", i)) for i, value in enumerate(tune.values)]
    own = reduce(getattr, tune.field.split("."), row.pretrain)
    if not isinstance(own, float):
        message = f"{tune.field} of row {row.name!r} is {own!r}, no number with a fraction; write `values`"
        raise yaml.error(("tune", "factors"), message)
    return [
        Change(tune.field, own if factor == 1 else float(f"{own * factor:.2g}"), ("tune", "factors", i))
        for i, factor in enumerate(tune.factors or ())
    ]


def _same(rows: list[ResolvedRow]) -> list[str]:
    """Name the rows that are another one."""
    seen: dict[str, str] = {}
    return [
        f"{first} and {row.name}" for row in rows if (first := seen.setdefault(what_differs(row), row.name)) != row.name
    ]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _told(value: Any) -> str:
    """Write a value as the report does."""
    return json.dumps(value, ensure_ascii=False)
