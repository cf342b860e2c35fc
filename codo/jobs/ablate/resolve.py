"""Rows as configs: the base, its changes, the equal budget; and the refusal of rows that are no comparison."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from codo.config.load import DATA_PATHS, differences, load_pretrain_config
from codo.config.presets import PRETRAIN_PRESETS, TRANSFER_PRESETS
from codo.config.pretrain import PretrainConfig
from codo.config.sections import ArchitectureSection
from codo.config.transfer import TransferConfig
from codo.data.shards import is_shards
from codo.errors import CodoError
from codo.jobs.ablate.effective import effective, effective_transfer, why_inert
from codo.jobs.ablate.grid import GridFile, read_grid, with_seeds
from codo.jobs.ablate.lines import Keys, LinedYaml
from codo.jobs.ablate.rows import (
    SHORT,
    Change,
    RowPlan,
    changes_of,
    check_error,
    reference_of,
    refuse_reserved,
    refuse_twice,
    rows_of,
)
from codo.jobs.transfer.settings import compose

PRETRAINED = "pretrained"
"""Stands for the weights of the row's own pretraining, in a transfer's config."""

BUDGETED = ("optim.epochs", "optim.batch_size", "data.limit", "data.foregrounds")
"""Fields that say how many composites there are: an epoch leaves out what does not fill a batch."""


@dataclass(frozen=True)
class ResolvedRow:
    """A row as what it runs, but for the seed.

    Attributes:
        plan: where it comes from.
        changes: dotted field -> value against the base, epochs that the budget sets too; None is `weights: none`.
        pretrain: its pretraining; of `weights: none` the base's, whose architecture it has.
        transfers: protocol -> its transfer, `weights` being `none` or PRETRAINED.
        tuned: dotted field -> the value that the row's trials chose (`codo.jobs.ablate.tuning`), and the epochs that go
            with it by the budget; not among `changes`.
    """

    plan: RowPlan
    changes: dict[str, Any] | None
    pretrain: PretrainConfig
    transfers: dict[str, TransferConfig]
    tuned: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """As the table names it."""
        return self.plan.name

    @property
    def composites(self) -> int:
        """Images composed for each foreground over the whole pretraining."""
        return 0 if self.changes is None else self.pretrain.optim.epochs * (self.pretrain.views + 1)


@dataclass(frozen=True)
class Grid:
    """A grid whose form is checked and whose rows are resolved.

    Attributes:
        file: as written.
        yaml: the YAML and its lines.
        base: the base's pretraining.
        rows: in the table's order.
        reference: name of a row.
    """

    file: GridFile
    yaml: LinedYaml
    base: PretrainConfig
    rows: list[ResolvedRow]
    reference: str


def load_grid(path: Path, seeds: tuple[int, ...] | None = None) -> Grid:
    """Read, check and resolve a grid; the data sets are not looked at.

    Args:
        path: YAML.
        seeds: in place of the grid's own.

    Raises:
        CodoError: in one line that names the line of the YAML, or the seeds.
    """
    file, yaml = read_grid(path)
    if seeds is not None:
        file = with_seeds(file, seeds)
    plans = rows_of(file, yaml)
    reference = reference_of(file, plans, yaml)
    base = Base(file, yaml)
    rows = [base.resolve(plan) for plan in plans]
    check_differences(rows, yaml)
    check_protocols(rows, yaml)
    return Grid(file, yaml, base.pretrain, rows, reference)


class Base:
    """The base of a grid, from which rows are resolved."""

    def __init__(self, file: GridFile, yaml: LinedYaml) -> None:
        self.file, self.yaml = file, yaml
        tree = dict(file.base)
        self.preset, config = tree.pop("preset", None), tree.pop("config", None)
        _check_preset(self.preset, PRETRAIN_PRESETS, ("base", "preset"), yaml)
        self.config = _path(config, ("base", "config"), yaml) if config is not None else None
        changes = changes_of(tree, ("base",), yaml, PretrainConfig)
        for change in changes:
            refuse_reserved(change, yaml, ("seed",))
            if change.field in ("data.foregrounds", "data.backgrounds"):
                raise yaml.error(change.keys, f"write it under `{change.field}`, at the top")
        data = [
            Change(f"data.{name}", _place(value), ("data", name))
            for name, value in file.data.model_dump().items()
            if value is not None
        ]
        self.changes = [*data, *changes]
        self.pretrain = self._pretrain([], ("base",))
        self.protocols = {name: self._protocol(name, dict(tree)) for name, tree in file.transfer.items()}

    def resolve(self, plan: RowPlan) -> ResolvedRow:
        """Resolve a row."""
        if plan.changes is None:
            return ResolvedRow(plan, None, self.pretrain, self._transfers(plan, [], self.pretrain))
        own = [self._absolute(c) for c in plan.changes if not c.field.startswith("transfer.")]
        config = self._pretrain(own, plan.keys)
        changes = {c.field: c.value for c in plan.changes}
        if self.file.budget == "composites":
            for change in own:
                if change.field in BUDGETED:
                    message = f"{change.field} is not free under the budget of equal composites; say `budget: epochs`"
                    raise self.yaml.error(change.keys, message)
            epochs = equal_epochs(self.pretrain, config.views)
            if epochs != config.optim.epochs:
                changes["optim.epochs"] = epochs
                config = self._pretrain([*own, Change("optim.epochs", epochs, plan.keys)], plan.keys)
        return ResolvedRow(plan, changes, config, self._transfers(plan, list(plan.changes), config))

    def _absolute(self, change: Change) -> Change:
        if change.field not in ("data.foregrounds", "data.backgrounds") or change.value is None:
            return change
        return replace(change, value=_place(str(_path(change.value, change.keys, self.yaml))))

    def _pretrain(self, changes: list[Change], keys: tuple[str | int, ...]) -> PretrainConfig:
        merged = {c.field: c for c in [*self.changes, *changes]}
        flags = {name: c.value for name, c in merged.items() if c.value is not None}
        absent = [f"{name}=null" for name, c in merged.items() if c.value is None]
        try:
            config = load_pretrain_config(preset=self.preset, file=self.config, flags=flags, sets=absent)
        except CodoError as error:
            if self.config is not None and str(self.config) in str(error).partition(" (in ")[0]:
                raise self.yaml.error(("base", "config"), str(error)) from None
            raise check_error(error, [*self.changes, *changes], keys, self.yaml) from None
        model = config.model
        if model.init is not None:
            model = model.model_copy(update={"init": str(Path(model.init).absolute())})
        return config.model_copy(update={"run": fixed_threads(config.run), "model": model})

    def _protocol(self, name: str, tree: dict[str, Any]) -> tuple[str | None, list[Change]]:
        """Read a protocol: its preset, and its fields."""
        preset, keys, yaml = tree.pop("preset", None), ("transfer", name), self.yaml
        _check_preset(preset, TRANSFER_PRESETS, (*keys, "preset"), yaml)
        short = [Change(SHORT[key], tree.pop(key), (*keys, key)) for key in list(tree) if key in SHORT]
        if isinstance(tree.get("data"), str):
            short.append(Change("data.root", tree.pop("data"), (*keys, "data")))
        changes = [*changes_of(tree, keys, yaml, TransferConfig), *short]
        refuse_twice(changes, yaml)
        for change in changes:
            refuse_reserved(change, yaml, ("weights", "seed", "architecture"))
        paths = [f"data.{name}" for name in DATA_PATHS]
        if not any(c.field in paths for c in changes) and self.file.data.backgrounds is not None:
            changes.append(Change("data.root", self.file.data.backgrounds, ("data", "backgrounds")))
        return preset, [
            replace(c, value=str(_path(c.value, c.keys, yaml).absolute()))
            if c.field in paths and c.value is not None
            else c
            for c in changes
        ]

    def _transfers(self, plan: RowPlan, changes: list[Change], config: PretrainConfig) -> dict[str, TransferConfig]:
        own = [
            Change(c.field.removeprefix("transfer."), c.value, c.keys)
            for c in changes
            if c.field.startswith("transfer.")
        ]
        model = config.model.model_dump(include=set(ArchitectureSection.model_fields))
        fixed = {f"architecture.{name}": value for name, value in model.items()}
        fixed["weights"] = "none" if plan.changes is None else PRETRAINED
        self._refuse_made_equal(own)
        found = {}
        for name, (preset, fields) in self.protocols.items():
            merged = {c.field: c for c in [*fields, *own]}
            if plan.changes is None:
                merged.pop("load", None)  # of weights that there are none of
            sets = {key: c.value for key, c in merged.items()}
            flags = {key: value for key, value in sets.items() if value is not None} | fixed
            absent = [f"{key}=null" for key, value in sets.items() if value is None]
            try:
                transfer, _ = compose(preset, None, flags, absent)
            except CodoError as error:
                keys = plan.keys if own else ("transfer", name)
                raise check_error(error, list(merged.values()), keys, self.yaml) from None
            found[name] = transfer.model_copy(update={"run": fixed_threads(transfer.run)})
        return found

    def _refuse_made_equal(self, changes: list[Change]) -> None:
        """Refuse a field in which the protocols differ: set by a row, it would make them the same under two names."""
        for change in changes:
            values = [
                next((c.value for c in fields if c.field == change.field), None)
                for _, fields in self.protocols.values()
            ]
            if any(value != values[0] for value in values):
                message = f"transfer.{change.field} cannot vary between rows: it is what the protocols differ in"
                raise self.yaml.error(change.keys, message)


def _check_preset(name: Any, presets: Collection[str], keys: Keys, yaml: LinedYaml) -> None:
    if name is not None and (not isinstance(name, str) or name not in presets):
        raise yaml.error(keys, f"no preset {name!r}; there are {', '.join(presets)}")


def _path(value: Any, keys: Keys, yaml: LinedYaml) -> Path:
    if not isinstance(value, str) or not value:
        raise yaml.error(keys, f"a path is expected, not {value!r}")
    return Path(value)


def _place(value: str) -> str:
    return value if is_shards(value) else str(Path(value).absolute())


def equal_epochs(base: PretrainConfig, views: int) -> int:
    """Count the epochs that compose as many images as the base's: a sample costs V query views and one key.

    Rounded to whole epochs, at least one: off by half an epoch of the row at most, or more where one is too many.

    Example:
        >>> equal_epochs(PretrainConfig(views=2), 1)  # 200 x 3 = 300 x 2
        300
    """
    return max(1, round(base.optim.epochs * (base.views + 1) / (views + 1)))


def fixed_threads(run: Any) -> Any:
    """Settle the number of threads, which decides how sums are rounded: one, unless the grid says otherwise."""
    return run.model_copy(update={"threads": 1}) if run.threads == "auto" else run


def what_differs(row: ResolvedRow) -> str:
    """Name what decides a row's numbers."""
    pretrain = None if row.changes is None else effective(row.pretrain)
    transfers = {name: effective_transfer(config, row.pretrain) for name, config in row.transfers.items()}
    return json.dumps([pretrain, transfers], sort_keys=True)


def check_protocols(rows: list[ResolvedRow], yaml: LinedYaml) -> None:
    """Refuse two transfers that are the same in all rows."""
    seen: dict[str, str] = {}
    for name in rows[0].transfers:
        each = [(row.transfers[name], row.pretrain) for row in rows]
        told = json.dumps([[effective_transfer(*pair), pair[0].run.model_dump()] for pair in each], sort_keys=True)
        if told in seen:
            raise yaml.error(
                ("transfer", name), f"the transfers {seen[told]!r} and {name!r} resolve to the same config"
            )
        seen[told] = name


def check_differences(rows: list[ResolvedRow], yaml: LinedYaml) -> None:
    """Refuse an axis that changes nothing, and two rows that are the same."""
    by_name = {row.name: row for row in rows}
    seen: dict[str, ResolvedRow] = {}
    for row in rows:
        told = what_differs(row)
        before = by_name.get(row.plan.before or "")
        if before is not None and told == what_differs(before):
            fields = list(differences(before.pretrain, row.pretrain))
            why = why_inert(fields, before.pretrain, row.pretrain) or "these are the values already"
            if not fields and any(set(t.load) != set(before.transfers[n].load) for n, t in row.transfers.items()):
                why = "alignment is off: the backbone is all that is pretrained"
            elif not fields and any(t.detection != before.transfers[n].detection for n, t in row.transfers.items()):
                why = "the detector has one stage: no RPN and no box head"
            raise yaml.error(row.plan.keys, f"changes nothing against {before.name!r}: {why}")
        if told in seen:
            message = f"the rows {seen[told].name!r} and {row.name!r} resolve to the same config"
            raise yaml.error(row.plan.keys, message)
        seen[told] = row
