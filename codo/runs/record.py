"""The run folder: what was run, on what, and what came out.

config.yaml        the resolved config
environment.json   fingerprint, command, versions, hardware, git state, data
metrics.jsonl      one JSON object a line
checkpoint.pt      the latest state, for --resume
weights.safetensors, summary.json   when the run is complete
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from codo._version import __version__
from codo.config.load import dump_yaml
from codo.errors import CodoError, Interrupted
from codo.runs.files import blocking_file, check_place, write_json, write_text
from codo.runs.hardware import Hardware
from codo.runs.lock import LOCK_FILE, held

START_FILES = {"config.yaml", "environment.json", "coverage.json"}
"""What a run writes before its first step."""

PACKAGES = ("torch", "torchvision", "timm", "numpy", "pillow", "pycocotools", "hotcoco", "pydantic", "safetensors")


class RunFolder:
    """A folder that one run writes to; made by `create` or `open`.

    Attributes:
        path: the folder.
        made: whether it was not there before.
    """

    def __init__(self, path: Path, *, made: bool = False) -> None:
        self.path, self.made = path, made

    @staticmethod
    def check_free(out: str | Path | None, *, resumable: bool = True) -> None:
        """Refuse a folder that holds something, before any work is done for it.

        Args:
            out: where to; None is a folder in `runs`.
            resumable: whether what asks for it can go on with the run that may be there.

        Raises:
            CodoError: `out` is a file, lies below one, cannot be written to, or exists and is not empty.
        """
        if out is None:
            try:
                check_place(Path("runs") / "config.yaml")
            except CodoError as error:
                raise CodoError(f"{error} with --out") from None
            return
        out = Path(out)
        if file := blocking_file(out / "config.yaml"):
            raise CodoError(f"--out {out}: {file} is a file; name another folder")
        # The lock alone: of a killed process.
        if os.path.isdir(out) and any(file.name != LOCK_FILE for file in out.iterdir()):
            more = resumable and (out / "config.yaml").is_file()
            how = f"--resume {shlex.quote(str(out))}"
            told = f", or continue that run with {how}"
            if RunFolder(out).complete:
                longer = f"; {how} with more epochs makes it longer" if (out / "checkpoint.pt").is_file() else ""
                told = f" (its run is complete{longer})"
            raise CodoError(f"--out {out} exists already; name another folder{told if more else ''}")
        try:
            check_place(out / "config.yaml")
        except CodoError as error:
            raise CodoError(f"--out {out}: {error}") from None

    @staticmethod
    def create(out: str | Path | None, kind: str) -> RunFolder:
        """Make a new run folder.

        Args:
            out: where; None takes the first free of `runs/KIND-1`, `runs/KIND-2`, ...
            kind: the command: `pretrain`, `transfer` or `predict`.

        Raises:
            CodoError: `out` exists and is not empty, or cannot be made.
        """
        out = Path(out) if out is not None else None
        try:
            if out is not None:
                RunFolder.check_free(out)
                made = not out.exists()
                out.mkdir(parents=True, exist_ok=True)
                return RunFolder(out, made=made)
            Path("runs").mkdir(exist_ok=True)
            number = 1
            while True:
                try:
                    path = Path("runs") / f"{kind}-{number}"
                    path.mkdir()
                    return RunFolder(path, made=True)
                except FileExistsError:
                    number += 1
        except OSError as error:
            file = blocking_file(out or Path("runs") / kind)
            why = f"{file} is a file" if file else error.strerror
            raise CodoError(f"cannot make the run folder {out or 'runs'}: {why}") from error

    @staticmethod
    def open(path: str | Path) -> RunFolder:
        """Open an existing run folder.

        Raises:
            CodoError: there is none at `path`.
        """
        path = Path(path)
        if not (path / "config.yaml").is_file():
            raise CodoError(f"{path} is not a run folder (no config.yaml in it)")
        return RunFolder(path)

    @contextmanager
    def begun(self) -> Iterator[None]:
        """Hold the folder while a new run is made in it.

        One that fails before it has logged or saved anything leaves nothing, so that the corrected command can have the
        folder; one that was interrupted can go on.

        Raises:
            Held: another process holds it.
        """
        failed = False
        try:
            with held(self.path):
                try:
                    yield
                except Exception as error:
                    failed = not isinstance(error, Interrupted)
                    if failed:
                        with suppress(OSError):  # the error itself is what is to be told
                            self._unwrite_start()
                    raise
        finally:
            if failed and self.made:
                with suppress(OSError):  # it is not empty
                    self.path.rmdir()

    def _unwrite_start(self) -> None:
        """Remove what a run wrote before its first step, where there is nothing else."""
        self.sweep()
        names = {file.name for file in self.path.iterdir()} - {LOCK_FILE}
        for name in names if names <= START_FILES else ():
            (self.path / name).unlink()

    def sweep(self) -> None:
        """Remove what a killed process left half-written."""
        for file in self.path.glob(".*.tmp"):
            file.unlink(missing_ok=True)

    def write_start(
        self,
        config: BaseModel,
        fingerprint: str,
        data: dict[str, Any],
        hardware: Hardware,
        more: dict[str, Any] | None = None,
    ) -> None:
        """Record what is about to run: the environment, with `more`, and then the resolved config."""
        now = environment(fingerprint, data, hardware) | (more or {})
        if (self.path / "environment.json").is_file():  # resumed: what it began with stays on record
            before = self.environment()
            now["earlier"] = [*before.pop("earlier", []), before]
        write_json(self.path / "environment.json", now)
        write_text(self.path / "config.yaml", dump_yaml(config))  # last: it makes the folder a run folder

    def environment(self, *keys: str) -> dict[str, Any]:
        """Read back what `write_start` recorded of the environment: `fingerprint`, and more that must be there."""
        return read_json(self.path / "environment.json", ("fingerprint", *keys))

    def log(self, record: dict[str, Any]) -> None:
        """Append one line to metrics.jsonl.

        Args:
            record: JSON values; a number that is not finite becomes null, as JSON has none.
        """
        try:
            with open(self.path / "metrics.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps(finite(record)) + "\n")
        except OSError as error:
            raise CodoError(f"cannot write {self.path / 'metrics.jsonl'}: {error.strerror}") from error

    def metrics(self) -> list[dict[str, Any]]:
        """Read metrics.jsonl; a last line that was cut off by a kill is left out.

        Raises:
            CodoError: another line is damaged; says which.
        """
        file = self.path / "metrics.jsonl"
        lines = file.read_bytes().split(b"\n")[:-1] if file.is_file() else []
        return [_metrics_of(line, f"{file}, line {number}") for number, line in enumerate(lines, 1)]

    def rewind_metrics(self, step: int) -> None:
        """Drop the metrics after `step`, which a resumed run is about to compute again."""
        kept = [json.dumps(record) + "\n" for record in self.metrics() if record["step"] <= step]
        write_text(self.path / "metrics.jsonl", "".join(kept))

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Write summary.json, which also says that the run is complete."""
        write_json(self.path / "summary.json", finite(summary))

    @property
    def complete(self) -> bool:
        """Whether the run came to its end."""
        return (self.path / "summary.json").is_file()


def read_json(file: Path, keys: Iterable[str] = ()) -> dict[str, Any]:
    """Read a JSON object that codo wrote.

    Args:
        file: of a run folder.
        keys: what it must have; `data.fingerprint` is `fingerprint` in the object `data`.

    Raises:
        CodoError: it cannot be read, is no JSON object, or lacks a key; says which.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise CodoError(f"cannot read {file}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise CodoError(f"cannot read {file}: {error}") from error
    if not isinstance(content, dict):
        raise CodoError(f"cannot read {file}: it is no JSON object")
    for key in keys:
        found: Any = content
        for name in key.split("."):
            if not isinstance(found, dict) or name not in found:
                raise CodoError(f'cannot read {file}: it lacks "{key}"')
            found = found[name]
    return content


def _metrics_of(line: bytes, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict) or not isinstance(record.get("step"), int):
        raise CodoError(f"{where} is damaged; remove that line")
    return record


def environment(fingerprint: str, data: dict[str, Any], hardware: Hardware | None) -> dict[str, Any]:
    """Describe what a run depends on besides its config; without hardware for what computes nothing itself."""
    return {
        "fingerprint": fingerprint,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "codo": __version__,
        "git": git_state(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "processor": processor(),
        "cores": os.cpu_count(),
        **({} if hardware is None else {"hardware": hardware.describe()}),
        "data": data,
    }


def _version(package: str) -> str | None:
    """Read an installed package's version; None where it is not installed (hotcoco may be missing)."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def git_state() -> dict[str, Any] | None:
    """Name the commit of codo's own checkout, and whether it was changed; None for an installed package."""
    here = Path(__file__).resolve().parents[2]
    if not (here / ".git").exists():
        return None
    try:
        commit, status = (
            subprocess.run(
                ["git", "-C", str(here), *args], capture_output=True, text=True, timeout=10, check=True
            ).stdout
            for args in (["rev-parse", "HEAD"], ["status", "--porcelain"])
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit.strip() or None, "dirty": bool(status.strip())}


def processor() -> str:
    """Name the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def finite(value: Any) -> Any:
    """Put null for numbers that JSON does not have, at any depth."""
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
