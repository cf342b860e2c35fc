"""From a grid to jobs: what is shared, what is done, what the store has of another code or data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from codo.config.pretrain import PretrainConfig
from codo.config.transfer import TransferConfig
from codo.errors import CodoError, nearest
from codo.jobs.ablate.code_version import changed_files, code_files
from codo.jobs.ablate.data_hashes import DataHashes, without_unused_backgrounds
from codo.jobs.ablate.grid import repeat_seed
from codo.jobs.ablate.jobs import Job, Kind, Store, config_hash, custom_paths, digest
from codo.jobs.ablate.own_parts import check_parts
from codo.jobs.ablate.resolve import PRETRAINED, Grid, ResolvedRow
from codo.jobs.probe.features import COMMON, MEANING
from codo.jobs.probe.table import WORDS

BUDGET_SLACK = 0.05
"""Share of the base's composites that a row may have more or less without a word (ours)."""


class CellKey(NamedTuple):
    """Where a cell stands."""

    row: str
    protocol: str
    seed: int


@dataclass(frozen=True)
class CellPlan:
    """The jobs of a cell, by name.

    Attributes:
        pretrain: None for `weights: none`.
        transfers: give the cell's figures, which are their mean where the grid repeats them.
        probe: of the pretraining, where it is asked for.
    """

    pretrain: str | None
    transfers: tuple[str, ...]
    probe: str | None

    def jobs(self) -> list[str]:
        """List them in their order."""
        return [name for name in (self.pretrain, *self.transfers, self.probe) if name is not None]


@dataclass
class Plan:
    """A grid as jobs.

    Attributes:
        grid: that it is of.
        store: where the jobs lie.
        jobs: name -> job, each once, what it needs before it.
        cells: in the table's order.
        notices: what the user should know: changed code, changed data.
        code: kind, own parts, whether it begins with weights of a file -> the sources that its jobs are named by, path
            -> hash.
    """

    grid: Grid
    store: Store
    jobs: dict[str, Job] = field(default_factory=dict)
    cells: dict[CellKey, CellPlan] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)
    code: dict[tuple[Kind, tuple[str, ...], bool], dict[str, str]] = field(default_factory=dict)

    def failures(self) -> dict[str, str]:
        """Tell what went wrong with jobs in earlier sessions: name -> message."""
        failed = {name: self.store.folder(name).failure for name in self.jobs}
        return {name: failure["message"] for name, failure in failed.items() if failure is not None}

    def check_code(self) -> None:
        """Refuse to go on with other sources than those that the jobs are named by.

        Raises:
            CodoError: some were edited since.
        """
        changed = {name for of, files in self.code.items() for name in changed_files(files, code_files(*of))}
        if changed:
            told = told_files(sorted(changed))
            raise CodoError(f"codo/ changed since the plan ({told}); the same command goes on with the new code")

    def remaining(self) -> list[Job]:
        """List the jobs that are not done."""
        return [job for name, job in self.jobs.items() if not self.store.folder(name).done]

    def open(self) -> bool:
        """Whether there are jobs that would run: neither done nor failed, nor waiting for one that failed."""
        failed = {job.name for job in self.remaining() if self.store.folder(job.name).failure is not None}
        return any(job.name not in failed and job.needs not in failed for job in self.remaining())

    def counts(self) -> dict[str, tuple[int, int, int]]:
        """Count per kind the jobs without sharing, the distinct ones, and those not done."""
        asked = Counter(self.jobs[name].kind for cell in self.cells.values() for name in cell.jobs())
        distinct = Counter(job.kind for job in self.jobs.values())
        left = Counter(job.kind for job in self.remaining())
        return {kind: (asked[kind], distinct[kind], left[kind]) for kind in ("pretrain", "transfer", "probe")}


def make_plan(grid: Grid, store: Store, accept_code_change: bool = False) -> Plan:
    """Lay out the jobs of a grid, and check its parts and data sets.

    Args:
        grid: resolved.
        store: of the jobs, which may hold some already.
        accept_code_change: take finished jobs of another code for those of this one.

    Raises:
        CodoError: a data set is missing or broken, or too small, or there is no such probe, backbone or part; with the
            line of the YAML.
    """
    check_probes(grid)
    check_parts(grid)
    plan, data = Plan(grid, store), DataHashes(grid)
    planner = _Planner(plan, data, accept_code_change)
    for row in grid.rows:
        for seed in grid.file.seeds:
            pretrain = planner.pretrain(row, seed) if row.changes is not None else None
            probe = planner.probe(row, seed, pretrain) if grid.file.probes else None
            for protocol in grid.file.transfer:
                repeats = range(grid.file.repeats)
                transfers = tuple(planner.transfer(row, protocol, seed, repeat, pretrain).name for repeat in repeats)
                names = [job.name if job is not None else None for job in (pretrain, probe)]
                plan.cells[CellKey(row.name, protocol, seed)] = CellPlan(names[0], transfers, names[1])
    plan.notices = [*planner.notices(), *(unequal(grid) if grid.file.budget == "composites" else ())]
    return plan


def unequal(grid: Grid) -> Iterator[str]:
    """Say which rows have not the base's budget of composites, as epochs are whole."""
    of_base = grid.base.optim.epochs * (grid.base.views + 1)
    for row in grid.rows:
        if row.changes is not None and abs(row.composites - of_base) > BUDGET_SLACK * of_base:
            yield (
                f"{row.name} composes {row.composites} images of each foreground and the base {of_base}, as epochs are "
                "whole; more epochs come closer"
            )


def check_probes(grid: Grid) -> None:
    """Refuse names that no probe has: `NAME`, or `REPRESENTATION/NAME`.

    Raises:
        CodoError: with the line, and what was meant.
    """
    asked = grid.file.probes
    known = [*WORDS, *(f"{kind}/{name}" for kind in MEANING if kind != COMMON for name in WORDS)]
    for i, name in enumerate(asked if not isinstance(asked, bool) else ()):
        if name not in known:
            near = nearest(name, known)
            hint = f"; did you mean {near}?" if near else f"; there are {', '.join(WORDS)}"
            raise grid.yaml.error(("probes", i), f"no probe is called {name!r}{hint}")


def told_files(names: list[str]) -> str:
    """Name the first few files."""
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


class _Planner:
    """Makes jobs, each once, and finds them in the store."""

    def __init__(self, plan: Plan, data: DataHashes, accept: bool) -> None:
        self.plan, self.data, self.accept = plan, data, accept
        self._old_code: dict[str, list[str]] = {}
        self._old_data: Counter[str] = Counter()
        self._accepted: Counter[str] = Counter()

    def pretrain(self, row: ResolvedRow, seed: int) -> Job:
        config = without_unused_backgrounds(row.pretrain).model_copy(update={"seed": seed})
        files = self._code("pretrain", config)
        data = self.data.of_pretrain(row)
        where = digest(config.data.model_dump(), *([config.model.init] if config.model.init else []))
        own = self._config_hash(config)
        return self._add(Job("pretrain", own, data, digest(files), files, config, where, None, seed))

    def transfer(self, row: ResolvedRow, protocol: str, seed: int, repeat: int, pretrain: Job | None) -> Job:
        config = row.transfers[protocol].model_copy(update={"seed": repeat_seed(seed, repeat)})
        data = self.data.of_transfer(config, protocol)
        if pretrain is not None:
            assert config.weights == PRETRAINED
            path = self.plan.store.folder(pretrain.name).run.absolute()
            config = config.model_copy(update={"weights": str(path)})
        return self._add(self._after("transfer", self._config_hash(config), data, config, pretrain, seed))

    def probe(self, row: ResolvedRow, seed: int, pretrain: Job | None) -> Job:
        """Plan the probes of a pretraining, or of the untrained encoder; on the same images for every row."""
        base = self.plan.grid.base
        config = row.pretrain.model_copy(update={"seed": seed}) if pretrain is None else None
        words = ["--canvas", str(base.canvas), "--seed", "0", "--device", base.run.device]
        paths = {name: getattr(base.data, name) for name in ("foregrounds", "backgrounds")}
        places = [word for name, path in paths.items() if path is not None for word in (f"--{name}", path)]
        if pretrain is not None:
            start = [str(self.plan.store.folder(pretrain.name).run.absolute())]
        else:
            start = ["none"]
        own = digest("probe", words, None if config is None else config_hash(config))
        job = self._after("probe", own, self.data.of_probes(), config, pretrain, seed)
        if config is not None:
            start += ["--config", str((self.plan.store.folder(job.name).path / "config.yaml").absolute())]
        return self._add(replace(job, words=(*start, *words, *places)))

    def _config_hash(self, config: PretrainConfig | TransferConfig) -> str:
        """Hash a config, and how many processes share its batches: their batch norms, for one, see other images."""
        return config_hash(config, *self._parts())

    def _parts(self) -> list[str]:
        processes = self.plan.grid.file.processes
        return [f"processes {processes}"] if processes > 1 else []

    def _after(
        self,
        kind: Kind,
        own: str,
        data: str,
        config: PretrainConfig | TransferConfig | None,
        pretrain: Job | None,
        seed: int,
    ) -> Job:
        """Make a job that starts from a pretraining, whose name's parts are parts of its own."""
        files = self._code(kind, config)
        where = digest(config.data.model_dump() if config is not None else None)
        if pretrain is None:
            return Job(kind, own, data, digest(files), files, config, where, None, seed)
        own, data, code, where = (
            digest(mine, theirs)
            for mine, theirs in (
                (own, pretrain.config),
                (data, pretrain.data),
                (files, pretrain.code),
                (where, pretrain.where),
            )
        )
        return Job(kind, own, data, code, files, config, where, pretrain.name, seed)

    def _code(self, kind: Kind, config: PretrainConfig | TransferConfig | None) -> dict[str, str]:
        custom = tuple(sorted(custom_paths(config.model_dump() if config is not None else {})))
        begun = isinstance(config, PretrainConfig) and config.model.init is not None
        if (kind, custom, begun) not in self.plan.code:
            self.plan.code[kind, custom, begun] = code_files(kind, custom, begun)
        return self.plan.code[kind, custom, begun]

    def _add(self, job: Job) -> Job:
        store = self.plan.store
        if job.name in self.plan.jobs:
            return self.plan.jobs[job.name]
        if not store.folder(job.name).done:
            for record in store.similar(job, *self._parts()):
                if not store.folder(record["name"]).done:
                    continue
                if record["data"] != job.data:
                    if record["where"] != job.where:
                        continue  # of another data set, not of one that changed
                    self._old_data[job.kind] += 1
                    break
                changed = changed_files(record["files"], job.files)
                if self.accept and record["needs"] == job.needs:
                    self._accepted[job.kind] += 1
                    job = replace(job, config=record["config"], code=record["code"], files=record["files"])
                    break
                self._old_code[job.kind] = sorted({*self._old_code.get(job.kind, []), *changed})
                break
        self.plan.jobs[job.name] = job
        return job

    def notices(self) -> Iterator[str]:
        """Say what is found in the store and not reused, and what is reused though it is of another code."""
        for kind, changed in self._old_code.items():
            why = f"codo/ changed since ({told_files(changed)})" if changed else "their pretraining is made anew"
            yield f"finished {kind} jobs are run again: {why}; --accept-code-change keeps the old ones"
        for kind, count in self._old_data.items():
            what = "the images, annotations or weights that they begin with"
            yield f"{count} {kind} jobs are run again: {what} changed since; the old ones are kept"
        for kind, count in self._accepted.items():
            yield f"{count} {kind} jobs are those of another version of the code, as --accept-code-change asks"
