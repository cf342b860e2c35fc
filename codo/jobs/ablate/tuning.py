"""A field tuned for each row: trials of their own seed, as many for every row, of which the best gives the value.

What is good for one row need not be for another: a learning rate that suits the base may be what a component loses by.
"""

from __future__ import annotations

from dataclasses import replace
from functools import reduce
from typing import Any

from codo.config.load import unknown_field
from codo.config.pretrain import PretrainConfig
from codo.jobs.ablate.grid import Tune
from codo.jobs.ablate.resolve import Base, Grid, ResolvedRow, check_differences
from codo.jobs.ablate.results import Results, Trial, Tuning
from codo.jobs.ablate.rows import Change, refuse_reserved, section_of


def trials_of(grid: Grid) -> Grid:
    """Lay out the trials as a grid: each pretrained row with each value, one seed, one protocol.

    Args:
        grid: whose file says what to tune.

    Raises:
        CodoError: no such field of a pretraining, a value that is wrong in a row, a seed of the grid's; with the line.
    """
    tune, source = _tune(grid), grid.source
    _check_field(grid)
    if tune.seed in grid.file.seeds:
        message = f"{tune.seed} is one of the grid's seeds, whose cells the choice would favour; take another"
        raise source.error(("tune", "seed"), message)
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
    base, rows = Base(file, source), []
    firsts: dict[str, str] = {}
    for row in grid.rows:
        for change in _values(grid, row):
            name, changes = trial_name(row.name, change), (*(row.plan.changes or ()), change)
            rows.append(base.resolve(replace(row.plan, name=name, changes=changes, factors={}, before=None)))
            firsts.setdefault(row.name, name)
    if not rows:
        raise source.error(("tune",), "no row is pretrained")
    check_differences(rows, source)
    return Grid(file, source, grid.base, rows, firsts.get(grid.reference, rows[0].name))


def trial_name(row: str, change: Change) -> str:
    """Name a trial.

    Example:
        >>> trial_name("CoDo", Change("optim.lr", 0.02, ("tune", "values", 0)))
        'CoDo, optim.lr=0.02'
    """
    return f"{row}, {change.field}={change.value}"


def tuned(grid: Grid, results: Results) -> tuple[Grid, Tuning, list[str]]:
    """Give each row the value whose trial was best; of equals the first; its own where no trial has a score.

    Args:
        grid: as `trials_of` took it.
        results: of the trials.

    Returns:
        The grid to run, how its rows were tuned, and what the user should know.
    """
    tune = _tune(grid)
    base, protocol = Base(grid.file, grid.source), results.protocols[0]
    rows: list[ResolvedRow] = []
    trials: list[Trial] = []
    unknown, at_end = [], []
    for row in grid.rows:
        changes = _values(grid, row)
        scores: dict[int, float] = {}
        for i, change in enumerate(changes):
            cell = results.cell(trial_name(row.name, change), protocol, tune.seed)
            score = cell.metrics.get(grid.file.metric) if cell.status == "done" else None
            if score is not None:
                scores[i] = score
        best = max(scores, key=scores.__getitem__) if scores else None
        trials += [
            Trial(row=row.name, value=c.value, score=scores.get(i), chosen=i == best) for i, c in enumerate(changes)
        ]
        rows.append(base.resolve(row.plan, [changes[best]] if best is not None else []))
        numbers = [c.value for c in changes if isinstance(c.value, int | float) and not isinstance(c.value, bool)]
        if changes and best is None:
            unknown.append(row.name)
        elif best is not None and numbers and changes[best].value in (min(numbers), max(numbers)):
            at_end.append(f"{row.name} ({changes[best].value})")
    notices = []
    if unknown:
        notices.append(f"no trial of {tune.field} came to a score for {', '.join(unknown)}: left as it was")
    if at_end:
        notices.append(f"{tune.field}: the best trial is at the end of what was tried for {', '.join(at_end)}")
    tuning = Tuning(field=tune.field, seed=tune.seed, protocol=protocol, trials=trials)
    return replace(grid, rows=rows), tuning, notices


def _tune(grid: Grid) -> Tune:
    assert grid.file.tune is not None
    return grid.file.tune


def _check_field(grid: Grid) -> None:
    """Refuse to tune what is no field of a pretraining, or what the grid sets."""
    tune, source, keys = _tune(grid), grid.source, ("tune", "field")
    section = section_of(PretrainConfig, tune.field)
    if section is None:
        raise source.error(keys, unknown_field(tune.field.split("."), PretrainConfig).removeprefix("config: "))
    if section is not Any:
        raise source.error(keys, f"{tune.field} is a section; name one of its fields")
    refuse_reserved(Change(tune.field, None, keys), source, ("seed", "run", "data"))


def _values(grid: Grid, row: ResolvedRow) -> list[Change]:
    """List the values to try in a row, none where it is not pretrained."""
    tune, source = _tune(grid), grid.source
    if row.plan.changes is None:
        return []
    if tune.values is not None:
        if any(c.field == tune.field for c in row.plan.changes):
            message = (
                f"row {row.name!r} sets {tune.field} itself; write `factors` of what a row has, or leave it out there"
            )
            raise source.error(("tune", "values"), message)
        found = [Change(tune.field, value, ("tune", "values", i)) for i, value in enumerate(tune.values)]
    else:
        own = reduce(getattr, tune.field.split("."), row.pretrain)
        if not isinstance(own, float):
            message = f"{tune.field} of row {row.name!r} is {own!r}, no number with a fraction; write `values`"
            raise source.error(("tune", "factors"), message)
        found = [
            Change(tune.field, float(f"{own * factor:.2g}"), ("tune", "factors", i))
            for i, factor in enumerate(tune.factors or ())
        ]
    for i, change in enumerate(found):
        if change.value in [before.value for before in found[:i]]:
            raise source.error(change.keys, f"row {row.name!r} tries {change.value} twice")
    return found
