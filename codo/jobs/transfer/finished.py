"""A finished transfer run, opened to be used: its detector, its categories, its settings."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codo.config.load import load_run_config
from codo.config.sections import ArchitectureSection
from codo.config.transfer import TransferConfig
from codo.errors import CodoError
from codo.jobs.transfer.base import Detector
from codo.jobs.transfer.detectors import build_detector, kinds_of
from codo.jobs.transfer.hardware import hardware_of
from codo.runs.hardware import Hardware, available_cores
from codo.runs.record import RunFolder
from codo.runs.weights_file import read_weights


@dataclass(frozen=True)
class FinishedRun:
    """A trained detector and what it is.

    Attributes:
        config: of the run, with the changes asked for.
        detector: trained, on the hardware's device, in evaluation mode.
        categories: category id -> name, in the order of the labels 1..K.
        hardware: what it runs on.
        weights: the file that the detector is of, and of which step it is.
    """

    config: TransferConfig
    detector: Detector
    categories: dict[int, str]
    hardware: Hardware
    weights: str

    @property
    def masks(self) -> bool:
        """Whether it finds masks."""
        return "segm" in kinds_of(self.config.detector)


def open_run(path: Path, changes: Mapping[str, Any] | None = None, *, best: bool = False) -> FinishedRun:
    """Open a finished run.

    Args:
        path: the run folder.
        changes: dotted field -> value; of `run` and `detection`, None values are skipped.
        best: take best.safetensors, the detector of the highest AP; where that was the end there is no such file.

    Raises:
        CodoError: no run there, not finished, a pretraining run, or its files do not fit each other.
    """
    RunFolder.open(path)
    named = shlex.quote(str(path))
    file = path / "weights.safetensors"
    if not file.is_file():
        load_run_config(TransferConfig, path)  # of a pretraining it says so
        raise CodoError(f"{path} has no weights.safetensors: not finished; go on with: codo transfer --resume {named}")
    told = "weights.safetensors, the end of training"
    if best:
        other = path / "best.safetensors"
        file, told = (other, other.name) if other.is_file() else (file, f"{told}; there is no {other.name}")
    state, metadata = read_weights(file)
    if "detector" not in metadata:
        raise CodoError(f"{path} is a pretraining run, without a detector; train one: codo transfer --weights {named}")
    given = {key: value for key, value in (changes or {}).items() if value is not None}
    config = load_run_config(TransferConfig, path, given)
    here = {"workers": "auto", "threads": config.run.threads if _fits(config.run.threads) else "auto"}
    here |= {key: getattr(config.run, key) for key in here if f"run.{key}" in given}
    config = config.model_copy(update={"run": config.run.model_copy(update=here)})
    try:
        if file.name == "best.safetensors":
            told += f", of step {metadata['step']}, AP {metadata['AP']} on the run's own data"
        categories = {int(category): str(name) for category, name in json.loads(metadata["categories"])}
        mean, std = (list(map(float, json.loads(metadata[key]))) for key in ("mean", "std"))
        architecture = ArchitectureSection.model_validate_json(metadata["architecture"])
    except (KeyError, ValueError, TypeError) as error:
        raise CodoError(f"{file}: its metadata is no codo detector's ({type(error).__name__}: {error})") from None
    if architecture != config.architecture:  # a backbone in it may name code, which the config alone may do
        raise CodoError(f"{file} is not the detector that config.yaml describes: it has another architecture")
    hardware = hardware_of(config)
    detector = build_detector(config, len(categories), mean, std)
    try:
        detector.load_state_dict(state)
    except RuntimeError as error:
        line = " ".join(str(error).split())
        raise CodoError(f"{file} is not the detector that config.yaml describes: {line[:300]}") from None
    hardware.apply()
    return FinishedRun(config, detector.to(hardware.device).eval(), categories, hardware, told)


def _fits(threads: int | str) -> bool:
    """Whether this machine has the cores: the run may be another's."""
    return threads in range(1, available_cores() + 1)
