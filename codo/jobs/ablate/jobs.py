"""Jobs: what is computed once, named by what determines it, and the store that they lie in.

OUT/jobs/KIND-NAME/
    job.json      what it is: the parts of its name, what it needs
    config.yaml   what the command is given
    run/          the run folder; of a probe probe.json
    log.txt       what the command printed
    failed.json   what went wrong, if it did
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel

from codo.config.load import DATA_PATHS, dump_yaml
from codo.config.pretrain import PretrainConfig
from codo.config.transfer import TransferConfig
from codo.runs.files import write_json, write_text
from codo.runs.record import read_json

Kind = Literal["pretrain", "transfer", "probe"]

BITS = ("device", "precision", "threads", "compile")
"""Fields of `run` that may change the last bits of a result, and so belong to its name."""


@dataclass(frozen=True)
class Job:
    """One thing to compute.

    Attributes:
        kind: of the command.
        config: hash of the resolved config, that of its pretraining too.
        data: hash of the images and annotations.
        code: hash of the sources that decide the numbers.
        files: these sources, path -> hash.
        settings: the config that the command takes; None for the probe of a run, which has its own.
        where: hash of the paths of the data, which tells other data from data that changed.
        needs: name of the pretraining that it starts from, or None.
        words: of a probe: its command's arguments, without `--out`.
        seed: of the cells that it is for.
    """

    kind: Kind
    config: str
    data: str
    code: str
    files: dict[str, str] = field(repr=False, compare=False)
    settings: BaseModel | None = field(repr=False, compare=False)
    where: str
    needs: str | None = None
    seed: int = 0
    words: tuple[str, ...] = field(default=(), compare=False)

    @property
    def name(self) -> str:
        """Kind and fingerprint, the folder's name."""
        return f"{self.kind}-{digest(self.config, self.data, self.code)}"

    def record(self) -> dict[str, Any]:
        """Describe it for job.json."""
        names = ("kind", "config", "data", "code", "where", "needs", "seed", "words", "files")
        return {"name": self.name, **{name: getattr(self, name) for name in names}}


def digest(*parts: Any) -> str:
    """Hash JSON values to 16 hex digits."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def config_hash(config: BaseModel, *parts: str) -> str:
    """Hash what of a config decides what is written: all but paths, which the data's hash stands for."""
    return _tree_hash(type(config), config.model_dump(mode="json"), *parts)


def _tree_hash(kind: type[BaseModel], tree: dict[str, Any], *parts: str) -> str:
    probing = {"probe_every": tree["run"]["probe_every"]} if tree["run"].get("probe_every") else {}
    kept = {name: value for name, value in tree.items() if name != "weights"}
    kept["run"] = {name: tree["run"].get(name) for name in BITS} | probing
    kept["data"] = {name: value for name, value in tree["data"].items() if name not in DATA_PATHS}
    if "model" in kept:
        kept["model"] = {name: value for name, value in tree["model"].items() if name != "init"}
    return digest(kind.__name__, kept, *parts)


class Store:
    """The folder of jobs, shared by the grids of one output folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._records: dict[Kind, list[dict[str, Any]]] = {}
        self._today: dict[tuple[str, tuple[str, ...]], set[str]] = {}

    def folder(self, name: str) -> JobFolder:
        """Name a job's folder, which may not exist."""
        return JobFolder(self.path / name)

    def similar(self, job: Job, *parts: str) -> Iterator[dict[str, Any]]:
        """List what job.json says of the jobs that differ from `job` in code or data alone.

        Args:
            job: to compare with.
            parts: of its config's hash, besides the config.
        """
        for record in self.records(job.kind):
            if record["name"] == job.name:
                continue
            if record["config"] == job.config or (
                record["seed"] == job.seed
                and _schema(record["files"]) != _schema(job.files)
                and job.config in self._as_today(record, parts)
            ):
                yield record

    def _as_today(self, record: dict[str, Any], parts: tuple[str, ...]) -> set[str]:
        """Hash the config of a job as today's classes read it, which fill in what it has no field of.

        Returns:
            Hashes with that of its pretraining as it was and as it would be today; none where it is of other `parts`.
        """
        key = (record["name"], parts)
        if key not in self._today:
            self._today[key] = set(self._hashes_today(record, parts))
        return self._today[key]

    def _hashes_today(self, record: dict[str, Any], parts: tuple[str, ...]) -> Iterator[str]:
        then, now = self._own_hashes(record, parts)
        if record["needs"] is None and then == record["config"]:
            yield now
        for parent in self.records("pretrain"):
            if parent["name"] == record["needs"] and digest(then, parent["config"]) == record["config"]:
                yield from (digest(now, config) for config in {parent["config"], *self._as_today(parent, parts)})

    def _own_hashes(self, record: dict[str, Any], parts: tuple[str, ...]) -> tuple[str, str]:
        """Hash a job's own config as it was and as it would be today; nothing where today's class refuses it."""
        probe, file = record["kind"] == "probe", self.path / record["name"] / "config.yaml"
        found: list[str | None] = [None, None]
        if file.is_file():
            kind: type[BaseModel] = TransferConfig if record["kind"] == "transfer" else PretrainConfig
            more = () if probe else parts
            try:
                tree = yaml.safe_load(file.read_text(encoding="utf-8"))
                found = [_tree_hash(kind, tree, *more), config_hash(kind.model_validate(tree), *more)]
            except (yaml.YAMLError, OSError, ValueError, LookupError, TypeError, AttributeError):  # damaged
                return "", ""
        if probe:
            start = record["words"].index("--canvas")
            found = [digest("probe", record["words"][start : start + 6], own) for own in found]
        return found[0] or "", found[1] or ""

    def records(self, kind: Kind) -> list[dict[str, Any]]:
        """Read job.json of all jobs of a kind, the latest first."""
        if kind not in self._records:
            files = sorted(self.path.glob(f"{kind}-*/job.json"), key=lambda f: f.stat().st_mtime, reverse=True)
            self._records[kind] = [json.loads(file.read_text(encoding="utf-8")) for file in files]
        return self._records[kind]


def _schema(files: dict[str, str]) -> dict[str, str]:
    return {name: hashed for name, hashed in files.items() if name.startswith("config/")}


@dataclass(frozen=True)
class JobFolder:
    """A job's folder."""

    path: Path

    @property
    def name(self) -> str:
        """The job's name."""
        return self.path.name

    @property
    def kind(self) -> str:
        """The job's kind."""
        return self.name.partition("-")[0]

    @property
    def run(self) -> Path:
        """The run folder."""
        return self.path / "run"

    @property
    def result(self) -> Path:
        """The file that says that the job is done."""
        return self.run / ("probe.json" if self.kind == "probe" else "summary.json")

    @property
    def done(self) -> bool:
        """Whether the job came to its end."""
        return self.result.is_file()

    def summary(self, *keys: str) -> dict[str, Any]:
        """Read the result, which must have `keys`.

        Raises:
            CodoError: as `codo.runs.record.read_json`.
        """
        return read_json(self.result, keys)

    @property
    def failure(self) -> dict[str, Any] | None:
        """What went wrong: `message`, `code`, `time`; None if nothing did."""
        file = self.path / "failed.json"
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() and not self.done else None

    def forget_failure(self) -> None:
        """Let it be tried again."""
        (self.path / "failed.json").unlink(missing_ok=True)

    def write(self, job: Job) -> None:
        """Write job.json and config.yaml."""
        if job.settings is not None:
            write_text(self.path / "config.yaml", dump_yaml(job.settings))
        write_json(self.path / "job.json", job.record())

    def command(self) -> list[str]:
        """Compose the arguments of the `codo` command that makes the job from nothing."""
        if self.kind != "probe":
            return [self.kind, "--config", str(self.path / "config.yaml"), "--out", str(self.run)]
        record = json.loads((self.path / "job.json").read_text(encoding="utf-8"))
        return ["probe", *record["words"], "--out", str(self.result)]


def custom_paths(tree: Any) -> Iterable[str]:
    """Find the dotted paths of a user's own parts in a dumped config."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            if key in ("path", "backbone", "detector") and isinstance(value, str) and ":" in value:
                yield value
            yield from custom_paths(value)
    elif isinstance(tree, list | tuple):
        for value in tree:
            yield from custom_paths(value)
