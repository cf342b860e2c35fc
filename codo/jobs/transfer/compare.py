"""Transfer runs side by side, where they followed one protocol."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codo.config.load import MOVABLE, differences, load_run_config
from codo.config.transfer import TransferConfig
from codo.errors import CodoError
from codo.jobs.ablate.statistics import compare as paired_difference
from codo.jobs.ablate.statistics import spread_of
from codo.runs.record import RunFolder, read_json

FREE = ("seed", "weights", "load", "run.", *MOVABLE)
"""What compared runs may differ in: the seed, the weights and which parts of them are loaded, where things lie and
where they ran. That the data are the same is seen by their fingerprint."""

COURSE = ("curve_area", "best", "steps_to_ap", "steps", "train_seconds")
"""What a summary.json says of the course of AP, and what it took."""

NEEDED = (
    *("data.name", "data.fraction", "data.whole_fingerprint", "weights.source", "evaluated_on", "seed", "detector"),
    *("metrics", "per_class", *COURSE),
)
"""What a summary.json must have."""


@dataclass(frozen=True)
class SideBySide:
    """Runs side by side.

    Attributes:
        runs: of each: `run`, `group` (the path given, of one run or of several seeds), `data`, `split`, `fraction`,
            `seed`, `weights` and their `fingerprint`, `load`, `protocol`, `detector`, `hardware`, `metrics` and
            `errors` (TIDE's: kind -> AP50 that mending it would add), `mask_metrics` and `mask_errors` (of masks),
            `per_class` (name -> AP), `curve_area`, `best`, `steps_to_ap` (AP -> step), `steps`, `train_seconds`.
        over_seeds: metric -> what each group comes to: `group`, `n` seeds, `mean` and `std`; of all but the first the
            `difference` from it over the `pairs` of one seed, with its 95% interval `low`, `high` and `p` (paired
            t-test, not corrected); None where there are too few. Empty where no group has several runs. Seeds of one
            pretraining say nothing of another's.
        differing: field -> the value of each run, of the protocol's fields in which they differ.
    """

    runs: list[dict[str, Any]]
    over_seeds: dict[str, list[dict[str, Any]]]
    differing: dict[str, list[Any]]

    def as_dict(self) -> dict[str, Any]:
        """Give all, for JSON."""
        return {"runs": self.runs, "over_seeds": self.over_seeds, "differing": self.differing}


def compare(paths: Sequence[str | Path], force: bool = False) -> SideBySide:
    """Read finished transfer runs, and compare them if they followed one protocol.

    Args:
        paths: run folders; a folder of several seeds stands for all of its runs.
        force: compare runs of different protocols too.

    Raises:
        CodoError: not a finished transfer run; fewer than two; different protocols, with the fields that differ.

    Example:
        >>> codo.compare_transfers(["runs/none", "runs/codo"]).runs[0]["metrics"]["AP"]  # doctest: +SKIP
    """
    found = [(str(path), folder) for path in paths for folder in _runs_of(Path(path))]
    if len(found) < 2:
        raise CodoError(f"compare: two or more runs are needed, {len(found)} given")
    read = [_read(folder) for _, folder in found]
    differing: dict[str, list[Any]] = {}
    for key in {key: None for _, _, protocol in read for key in protocol}:
        values = [protocol.get(key) for _, _, protocol in read]
        if any(value != values[0] for value in values):
            differing[key] = values
    for key in {key: None for _, config, _ in read for key in differences(read[0][1], config)}:
        if not key.startswith(FREE):
            differing[key] = [_value(config, key) for _, config, _ in read]
    if differing and not force:
        told = "; ".join(f"{key}: {', '.join(map(str, values))}" for key, values in differing.items())
        widths = any(key.startswith("architecture.") for key in differing)
        like = "; codo transfer --weights none --like RUN builds what the weights of RUN are for" if widths else ""
        raise CodoError(
            f"compare: the runs followed different protocols ({told}){like}; --force compares them all the same"
        )
    rows = [{**row, "group": group} for (row, _, _), (group, _) in zip(read, found, strict=True)]
    return SideBySide(rows, over_seeds(rows), differing)


def over_seeds(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Find each group's mean over its seeds, and its difference from the first group's, of every metric."""
    groups = list(dict.fromkeys(row["group"] for row in rows))
    if len(groups) == len(rows):
        return {}
    found: dict[str, list[dict[str, Any]]] = {}
    for name in [*rows[0]["metrics"], "curve_area"]:
        values: dict[str, dict[int, float]] = {group: {} for group in groups}
        for row in rows:
            value = {**row["metrics"], "curve_area": row["curve_area"]}.get(name)
            if value is not None:
                values[row["group"]][row["seed"]] = value
        spreads = {group: spread_of(values[group], {}) for group in groups}
        found[name] = [{"group": group, "n": s.n, "mean": s.mean, "std": s.std} for group, s in spreads.items()]
        for entry in found[name][1:]:
            paired = paired_difference("", spreads[entry["group"]], spreads[groups[0]], "")
            entry |= {"difference": paired.mean, "pairs": paired.n}
            entry |= {"low": paired.low, "high": paired.high, "p": paired.p}
    return found


def _runs_of(path: Path) -> list[Path]:
    """List the runs that a path stands for: itself, or those of several seeds."""
    if (path / "config.yaml").is_file() or not path.is_dir():
        return [path]
    found = [file.parent for file in path.glob("seed-*/config.yaml")]
    return sorted(found, key=lambda folder: (len(folder.name), folder.name)) or [path]


def _read(folder: Path) -> tuple[dict[str, Any], TransferConfig, dict[str, Any]]:
    """Read a run: its row, its config, and what else belongs to its protocol."""
    run = RunFolder.open(folder)
    file = folder / "summary.json"
    if not run.complete:
        raise CodoError(
            f"{folder} is not finished: it has no summary.json; go on with --resume {shlex.quote(str(folder))}"
        )
    if read_json(file, ["kind"])["kind"] != "transfer":
        raise CodoError(f"{folder} is no transfer run; compare takes those")
    summary = read_json(file, NEEDED)
    config = load_run_config(TransferConfig, folder)
    environment = run.environment("hardware", "processes", "extended")
    data, weights = summary["data"], summary["weights"]
    row: dict[str, Any] = {
        "run": str(folder),
        "data": data["name"],
        "split": summary["evaluated_on"],
        "fraction": data["fraction"],
        "seed": summary["seed"],
        "weights": weights["source"],
        "fingerprint": weights.get("run_fingerprint") or weights.get("sha256"),
        "load": ",".join(config.load) if config.weights != "none" else None,
        "protocol": config.protocol,
        "detector": summary["detector"],
        "hardware": environment["hardware"],
        "metrics": summary["metrics"],
        **{key: summary[key] for key in ("errors", "mask_metrics", "mask_errors") if key in summary},
        "per_class": {entry["name"]: entry["AP"] for entry in summary["per_class"]},
        **{key: summary[key] for key in COURSE},
    }
    # Runs of one data set with several seeds have trained on other shares of it: the fingerprint is the whole set's.
    protocol = {
        "data": data["whole_fingerprint"],
        "evaluated_on": summary["evaluated_on"],
        "processes": environment["processes"],
        "extended": environment["extended"],
    }
    return row, config, protocol


def _value(config: TransferConfig, key: str) -> Any:
    found: Any = config.model_dump(mode="json")
    for name in key.split("."):
        found = found.get(name) if isinstance(found, dict) else None
    return found
