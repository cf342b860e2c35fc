"""The rows of a grid's design, and what each of them sets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from codo.config.load import DATA_PATHS, unknown_field
from codo.config.pretrain import PretrainConfig
from codo.config.sections import Section
from codo.config.transfer import TransferConfig
from codo.errors import CodoError, nearest
from codo.jobs.ablate.grid import GridFile
from codo.jobs.ablate.lines import LinedYaml

BASE_ROW = {"one_at_a_time": "full", "ladder": "baseline", "factorial": "none", "rows": ""}
RANDOM_ROW = "random"

SHORT = {"fraction": "data.fraction", "epochs": "optim.epochs", "batch_size": "optim.batch_size"}
"""What may be written for short in a protocol, as the flags of `codo transfer`."""


MEASURED = (*(f"data.{name}" for name in DATA_PATHS), "optim.eval_every")
"""Fields of a transfer that say what the numbers are measured on."""


@dataclass(frozen=True)
class Change:
    """One field that an axis, a row or the base sets.

    Attributes:
        field: dotted; of a transfer with the prefix `transfer.`.
        value: as YAML has it.
        keys: where it stands in the grid.
    """

    field: str
    value: Any
    keys: tuple[str | int, ...]


@dataclass(frozen=True)
class Axis:
    """A named bundle of fields."""

    name: str
    changes: tuple[Change, ...]
    keys: tuple[str | int, ...]


@dataclass(frozen=True)
class RowPlan:
    """A row before it is resolved.

    Attributes:
        name: as shown.
        changes: against the base; None is `weights: none`.
        keys: where it stands in the grid.
        factors: for a factorial, axis -> on or off.
        before: name of the row that it adds something to, for the check that an axis changes something.
    """

    name: str
    changes: tuple[Change, ...] | None
    keys: tuple[str | int, ...]
    factors: dict[str, bool] = field(default_factory=dict)
    before: str | None = None


def changes_of(
    tree: dict[str, Any], keys: tuple[str | int, ...], yaml: LinedYaml, kind: type[BaseModel], prefix: str = ""
) -> list[Change]:
    """List the fields that a mapping sets, written nested or dotted.

    Raises:
        CodoError: no such field, with what was meant; or one twice; and the line.
    """
    found: list[Change] = []
    for key, value in tree.items():
        here = (*keys, str(key))
        name = f"{prefix}{key}"
        section = section_of(kind, name)
        if section is None:
            message = unknown_field(name.split("."), kind).removeprefix("config: ")
            raise yaml.error(here, message)
        if section is not Any and isinstance(value, dict):
            found += changes_of(value, here, yaml, kind, f"{name}.")
        else:
            found.append(Change(name, value, here))
    refuse_twice(found, yaml)
    return found


def refuse_twice(changes: Sequence[Change], yaml: LinedYaml) -> None:
    """Refuse a field that stands there twice, e.g. nested and dotted, of which one would be lost."""
    seen: dict[str, int] = {}
    for change in sorted(changes, key=lambda change: yaml.line(*change.keys)):
        line = yaml.line(*change.keys)
        if change.field in seen:
            raise yaml.error(change.keys, f"{change.field} stands here twice, first in line {seen[change.field]}")
        seen[change.field] = line


def refuse_contradiction(axes: Sequence[Axis], yaml: LinedYaml) -> None:
    """Refuse two axes that set one field otherwise: a row that has both could have one of the values only."""
    seen: dict[str, tuple[Axis, Change]] = {}
    for axis in axes:
        for change in axis.changes:
            other, before = seen.setdefault(change.field, (axis, change))
            if before.value != change.value:
                message = (
                    f"axis {axis.name!r} sets {change.field} to {_told(change.value)} and axis {other.name!r}, "
                    f"line {yaml.line(*before.keys)}, to {_told(before.value)}: the row of both can have one alone"
                )
                raise yaml.error(change.keys, message)


def section_of(kind: Any, name: str) -> Any:
    """Find what a dotted name is of a config: a section's class, Any for a field, None where there is nothing."""
    for part in name.split("."):
        fields = getattr(kind, "model_fields", {})
        if part not in fields:
            return None
        kind = fields[part].annotation
    return kind if isinstance(kind, type) and issubclass(kind, Section) else Any


def row_changes(tree: dict[str, Any], keys: tuple[str | int, ...], yaml: LinedYaml) -> tuple[Change, ...]:
    """List what a bundle sets: fields of PretrainConfig and, under `transfer`, of every protocol."""
    own, of_transfer = {}, []
    for key, value in tree.items():
        if str(key) == "transfer" and isinstance(value, dict):
            of_transfer += changes_of(value, (*keys, key), yaml, TransferConfig)
        elif str(key).startswith("transfer."):
            one = changes_of({str(key).removeprefix("transfer."): value}, keys, yaml, TransferConfig)
            of_transfer += [Change(c.field, c.value, (*keys, key)) for c in one]
        else:
            own[key] = value
    refuse_twice(of_transfer, yaml)
    for change in of_transfer:
        refuse_reserved(change, yaml, ("weights", "seed", "run", "architecture", *MEASURED))
    changes = changes_of(own, keys, yaml, PretrainConfig)
    for change in changes:
        refuse_reserved(change, yaml, ("seed", "run"))
    return (*changes, *(Change(f"transfer.{c.field}", c.value, c.keys) for c in of_transfer))


def refuse_reserved(change: Change, yaml: LinedYaml, names: Sequence[str]) -> None:
    """Refuse a field that the grid sets itself."""
    for name in names:
        if change.field == name or change.field.startswith(f"{name}."):
            why = {"run": "a row has the machine of all the others", "architecture": "it is the pretraining's `model`"}
            why |= dict.fromkeys(MEASURED, "rows of a protocol are measured on the same images, at the same times")
            raise yaml.error(change.keys, f"{name} cannot vary: {why.get(name, 'the grid sets it')}")


def axes_of(grid: GridFile, yaml: LinedYaml) -> list[Axis]:
    """Read the axes.

    An axis is `field: value`; `name: {field: value, ...}`, a bundle; or `name: {values: [...]}`, several values of the
    field `name`, or of `field: NAME`, each an axis of its own.
    """
    found: list[Axis] = []
    for name, what in grid.axes.items():
        keys: tuple[str | int, ...] = ("axes", name)
        if isinstance(what, dict) and "values" in what:
            unknown = set(what) - {"values", "field"}
            if unknown or not isinstance(what["values"], list) or not what["values"]:
                raise yaml.error(keys, "write `values: [...]`, and `field: NAME` where the axis has another name")
            if grid.design != "one_at_a_time":
                message = f"a {grid.design} has axes that are on or off; name each value an axis of its own"
                raise yaml.error((*keys, "values"), message)
            column = what.get("field", name)
            if not isinstance(column, str):
                raise yaml.error((*keys, "field"), f"the name of a field is expected, not {column!r}")
            for i, value in enumerate(what["values"]):
                changes = row_changes({column: value}, keys, yaml)
                placed = tuple(Change(c.field, c.value, (*keys, "values", i)) for c in changes)
                found.append(Axis(f"{name}={_told(value)}", placed, (*keys, "values", i)))
        elif isinstance(what, dict) and what and _is_of(name, what):
            found.append(Axis(name, row_changes({name: what}, ("axes",), yaml), keys))
        elif isinstance(what, dict):
            if not what:
                raise yaml.error(keys, "sets nothing")
            found.append(Axis(name, row_changes(what, keys, yaml), keys))
        else:
            found.append(Axis(name, row_changes({name: what}, ("axes",), yaml), keys))
    return found


def _is_of(name: str, what: dict[str, Any]) -> bool:
    """Whether the axis's name is itself the field or section, e.g. `jitter: {mode: none}`, no name for a bundle."""
    section = section_of(PretrainConfig, name)
    return section is not None and not any(section_of(PretrainConfig, str(key)) for key in what)


def rows_of(grid: GridFile, yaml: LinedYaml) -> list[RowPlan]:
    """Lay out the rows of the design, in the order of the table.

    Raises:
        CodoError: two rows of one name, an axis that cannot be, two axes of a factorial that contradict each other.
    """
    base = grid.base_row or BASE_ROW[grid.design]
    first = RowPlan(base, (), ("base",))
    if grid.design == "rows":
        rows = []
        for name, tree in grid.rows.items():
            keys: tuple[str | int, ...] = ("rows", name)
            if "weights" in tree:
                if tree != {"weights": "none"}:
                    raise yaml.error((*keys, "weights"), "only `weights: none`, alone: a row that is not pretrained")
                rows.append(RowPlan(name, None, keys))
            else:
                rows.append(RowPlan(name, row_changes(tree, keys, yaml), keys))
    else:
        axes = axes_of(grid, yaml)
        if grid.design == "factorial":
            refuse_contradiction(axes, yaml)
        rows = {"one_at_a_time": _one_at_a_time, "ladder": _ladder, "factorial": _factorial}[grid.design](first, axes)
    if grid.include_none:
        rows.insert(0, RowPlan(RANDOM_ROW, None, ("include_none",)))
    seen: dict[str, RowPlan] = {}
    for row in rows:
        if row.name in seen:
            raise yaml.error(row.keys, f"two rows are called {row.name!r}")
        seen[row.name] = row
    return rows


def _one_at_a_time(base: RowPlan, axes: list[Axis]) -> list[RowPlan]:
    return [base, *(RowPlan(axis.name, axis.changes, axis.keys, before=base.name) for axis in axes)]


def _ladder(base: RowPlan, axes: list[Axis]) -> list[RowPlan]:
    rows = [base]
    for axis in axes:
        earlier = rows[-1].changes or ()
        rows.append(RowPlan(axis.name, (*earlier, *axis.changes), axis.keys, before=rows[-1].name))
    return rows


def _factorial(base: RowPlan, axes: list[Axis]) -> list[RowPlan]:
    rows: list[RowPlan] = []
    for number in range(2 ** len(axes)):
        on = [axis for i, axis in enumerate(axes) if number >> i & 1]
        factors = {axis.name: axis in on for axis in axes}
        if not on:
            rows.append(RowPlan(base.name, (), base.keys, factors))
            continue
        changes = tuple(change for axis in on for change in axis.changes)
        without = rows[number - 2 ** axes.index(on[-1])].name
        rows.append(RowPlan(" + ".join(a.name for a in on), changes, on[-1].keys, factors, without))
    return rows


def reference_of(grid: GridFile, rows: list[RowPlan], yaml: LinedYaml) -> str:
    """Name the reference row.

    Raises:
        CodoError: no such row.
    """
    names = [row.name for row in rows]
    if grid.reference is None:
        return grid.base_row or BASE_ROW[grid.design]
    if grid.reference not in names:
        near = nearest(grid.reference, names)
        hint = f"; did you mean {near!r}?" if near else f"; there are {', '.join(names)}"
        raise yaml.error(("reference",), f"no row is called {grid.reference!r}{hint}")
    return grid.reference


def _told(value: Any) -> str:
    return ",".join(map(_told, value)) if isinstance(value, list) else f"{value}"


def check_error(error: CodoError, changes: Sequence[Change], keys: tuple[str | int, ...], yaml: LinedYaml) -> CodoError:
    """Place the message of a config at the change that it names, else at `keys`."""
    text = str(error).removeprefix("config: ").removesuffix(", flags or --set)").split(" (in ")[0]
    named = [c for c in reversed(changes) if c.field.removeprefix("transfer.") in text]  # the last one set it
    best = max(named, key=lambda c: len(c.field), default=None)
    return yaml.error(best.keys if best else keys, text)
