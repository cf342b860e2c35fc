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

from pydantic import BaseModel

from codo.config.load import DATA_PATHS, dump_yaml
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
        seed: for whoever reads.
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
    tree = config.model_dump(mode="json")
    probing = {"probe_every": tree["run"]["probe_every"]} if tree["run"].get("probe_every") else {}
    tree["run"] = {name: tree["run"].get(name) for name in BITS} | probing
    tree["data"] = {name: value for name, value in tree["data"].items() if name not in DATA_PATHS}
    tree.pop("weights", None)
    return digest(type(config).__name__, tree, *parts)


class Store:
    """The folder of jobs, shared by the grids of one output folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._records: dict[Kind, list[dict[str, Any]]] = {}

    def folder(self, name: str) -> JobFolder:
        """Name a job's folder, which may not exist."""
        return JobFolder(self.path / name)

    def similar(self, job: Job) -> Iterator[dict[str, Any]]:
        """List what job.json says of the jobs that differ from `job` in code or data alone."""
        for record in self.records(job.kind):
            if record["config"] == job.config and record["name"] != job.name:
                yield record

    def records(self, kind: Kind) -> list[dict[str, Any]]:
        """Read job.json of all jobs of a kind, the latest first."""
        if kind not in self._records:
            files = sorted(self.path.glob(f"{kind}-*/job.json"), key=lambda f: f.stat().st_mtime, reverse=True)
            self._records[kind] = [json.loads(file.read_text(encoding="utf-8")) for file in files]
        return self._records[kind]


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
