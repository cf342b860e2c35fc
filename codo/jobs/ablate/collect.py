"""From finished jobs to results."""

from __future__ import annotations

import json
import re
import shlex
from os.path import relpath
from pathlib import Path
from statistics import fmean
from typing import Any

from codo.errors import CodoError
from codo.jobs.ablate.jobs import JobFolder, digest
from codo.jobs.ablate.places import shell, tidy, without_places
from codo.jobs.ablate.plan import CellKey, CellPlan, Plan
from codo.jobs.ablate.results import Cell, Point, Probed, Results, Row
from codo.jobs.pretrain.preview import preview
from codo.runs.console import warn
from codo.runs.record import RunFolder, environment

LOSS_POINTS = 200
SHEET_ROWS = 4
TRANSFERRED = ("metrics", "curve", "curve_area", "errors", "frozen_but_fresh", "fingerprint", "train_seconds")
"""What the summary.json of a transfer must have."""
ACCURACIES = ("queue_accuracy", "batch_accuracy")
"""What of a pretraining's summary.json are numbers to compare rows by: its losses have other terms in other rows."""
NEW = "NEW-FOLDER"
"""Stands for the output of a command, which may not be there yet."""


def collect(plan: Plan, folder: Path, failures: dict[str, str], command: str) -> Results:
    """Read what the jobs of a grid came to; cells that are missing are there too.

    Args:
        plan: of the grid.
        folder: of the grid's results, to which paths are relative.
        failures: job -> what went wrong.
        command: that makes the grid again.
    """
    grid = plan.grid
    names = sorted(plan.jobs)
    return Results(
        title=grid.file.title,
        question=grid.file.question,
        design=grid.file.design,
        reference=grid.reference,
        base=next((row.name for row in grid.rows if row.plan.changes == ()), None),
        rows=[
            Row(name=row.name, changes=tidy(row.changes), factors=row.plan.factors, tuned=tidy(row.tuned))
            for row in grid.rows
        ],
        protocols=list(grid.file.transfer),
        seeds=list(grid.file.seeds),
        repeats=grid.file.repeats,
        metric=grid.file.metric,
        cells=[_cell(plan, key, cell, folder, failures) for key, cell in plan.cells.items()],
        environment=_environment(digest(names), relpath(plan.store.path, folder)) | {"hardware": hardware_of(plan)},
        notices=[without_places(notice) for notice in plan.notices],
        samples={row: file for row, (file, _) in _sheets(plan).items() if (folder / file).is_file()},
        command=shell([without_places(word) for word in shlex.split(command)]),
    )


def hardware_of(plan: Plan) -> dict[str, list[str]]:
    """Collect what the finished jobs ran on, as their run folders say: kind of job -> all that differ, sorted."""
    found: dict[str, set[str]] = {}
    for name in plan.jobs:
        job = plan.store.folder(name)
        if job.done and (job.run / "environment.json").is_file():  # a probe has none
            now = RunFolder(job.run).environment()
            parts = [now, *now.get("earlier", [])]  # a run that was resumed may have moved
            found.setdefault(job.kind, set()).update(part["hardware"] for part in parts if "hardware" in part)
    return {kind: sorted(names) for kind, names in sorted(found.items())}


def draw_samples(plan: Plan, folder: Path) -> dict[str, str]:
    """Draw a contact sheet of each row whose pretraining is done; those that are drawn stay.

    Returns:
        Row -> file, relative to `folder`.
    """
    drawn: dict[str, str] = {}
    (folder / "samples").mkdir(parents=True, exist_ok=True)
    for row, (name, job) in _sheets(plan).items():
        if not (folder / name).is_file() and plan.store.folder(job).done:
            try:
                settings: Any = plan.jobs[job].settings  # of a pretraining: a PretrainConfig
                preview(settings, SHEET_ROWS, folder / name)
            except Exception as error:  # of a user's part, too: a sheet is an extra, the results stand without it
                what = "" if isinstance(error, CodoError) else f"{type(error).__name__}: "
                warn(f"no samples of row {row} are drawn: {what}{' '.join(str(error).split())}")
        if (folder / name).is_file():
            drawn[row] = name
    return drawn


def _sheets(plan: Plan) -> dict[str, tuple[str, str]]:
    """Name the contact sheet of each pretrained row, and the pretraining that it is of: row -> file, job."""
    found: dict[str, tuple[str, str]] = {}
    for key, cell in plan.cells.items():
        if cell.pretrain is not None and key.row not in found:
            slug = re.sub(r"[^a-z0-9]+", "-", key.row.lower()).strip("-")[:80] or "row"
            found[key.row] = f"samples/{slug}-{cell.pretrain[-16:-8]}.png", cell.pretrain
    return found


def _cell(plan: Plan, key: CellKey, cell: CellPlan, folder: Path, failures: dict[str, str]) -> Cell:
    transfers = {f"transfer {i + 1}" if i else "transfer": name for i, name in enumerate(cell.transfers)}
    names = {"pretrain": cell.pretrain, **transfers, "probe": cell.probe}
    jobs = {kind: plan.store.folder(name) for kind, name in names.items() if name is not None}
    found: dict[str, Any] = {
        **key._asdict(),
        "status": "missing",
        "commands": [command_of(job, plan.grid.file.processes) for job in jobs.values()],
        "folders": {kind: relpath(job.run, folder) for kind, job in jobs.items() if kind != "probe"},
    }
    found["failures"] = {kind: without_places(failures[job.name]) for kind, job in jobs.items() if job.name in failures}
    failed = [why for kind, why in found["failures"].items() if kind != "probe"]
    if failed:
        found |= {"status": "failed", "failure": failed[0]}
    fingerprints: dict[str, str] = {}
    seconds: dict[str, float] = {}
    metrics: dict[str, float | None] = {}
    if "pretrain" in jobs and jobs["pretrain"].done:
        summary = jobs["pretrain"].summary("fingerprint", "seconds")
        fingerprints["pretrain"], seconds["pretrain"] = summary["fingerprint"], summary["seconds"]
        found["warned"] = summary.get("warnings", {})
        metrics |= {f"pretrain/{name}": summary[name] for name in ACCURACIES if summary.get(name) is not None}
        found["loss"] = loss_curve(jobs["pretrain"].run)
        found["probe_curves"] = probe_curves(jobs["pretrain"].run)
    if "probe" in jobs and jobs["probe"].done:
        asked = plan.grid.file.probes
        summary = jobs["probe"].summary("probes", "chance", "held_out", "settings.images")
        for name, value in _numbers(summary["probes"]).items():
            if isinstance(asked, bool) or name in asked:
                metrics[f"probe/{name}"] = value
        chance = _numbers(summary["chance"])
        found["probed"] = Probed(
            held_out=summary["held_out"],
            images=summary["settings"]["images"],
            chance={f"probe/{n}": v for n, v in chance.items() if v is not None and f"probe/{n}" in metrics},
        )
    summaries = {kind: jobs[kind].summary(*TRANSFERRED) for kind in transfers if jobs[kind].done}
    for kind, summary in summaries.items():
        fingerprints[kind], seconds[kind] = summary["fingerprint"], summary["train_seconds"]
    if len(summaries) == len(transfers):
        repeats = [_transferred(summary) for summary in summaries.values()]
        found |= {"status": "done", "curve": _mean_curve([summary["curve"] for summary in summaries.values()])}
        found |= {"errors": _means([summary["errors"] for summary in summaries.values()])}
        found |= {"repeats": repeats if len(repeats) > 1 else []}
        found |= {"frozen_but_fresh": next(iter(summaries.values()))["frozen_but_fresh"]}
        metrics |= _means(repeats)
    return Cell(**found, metrics=metrics, fingerprints=fingerprints, seconds=seconds)


def _transferred(summary: dict[str, Any]) -> dict[str, float | None]:
    """Take the numbers of a transfer."""
    masks = {f"mask_{name}": value for name, value in _numbers(summary.get("mask_metrics") or {}).items()}
    return {**_numbers(summary["metrics"]), **masks, "curve_area": summary["curve_area"]}


def _means(trees: list[dict[str, float | None]]) -> dict[str, float | None]:
    """Average numbers by name; None where one of them is."""
    found: dict[str, float | None] = {}
    for name in trees[0]:
        values = [value for tree in trees if (value := tree.get(name)) is not None]
        found[name] = fmean(values) if len(values) == len(trees) else None
    return found


def _mean_curve(curves: list[list[dict[str, Any]]]) -> list[Point]:
    """Average curves of AP, where they all have a point: at the same epochs."""
    by_epoch = [{point["epoch"]: point["AP"] for point in curve} for curve in curves]
    found = []
    for point in curves[0]:
        epoch = point["epoch"]
        if all(epoch in at for at in by_epoch):
            mean = _means([{"AP": at[epoch]} for at in by_epoch])["AP"]
            found.append(Point(step=point["step"], epoch=epoch, AP=mean))
    return found


def loss_curve(run: Path) -> list[tuple[int, float]]:
    """Read a pretraining's loss, thinned to about LOSS_POINTS steps."""
    points = [(r["step"], r["loss"]) for r in RunFolder(run).metrics() if r.get("loss") is not None]
    every = max(1, -(-len(points) // LOSS_POINTS))
    return points[::-1][::every][::-1]  # the last one is kept


def probe_curves(run: Path) -> dict[str, list[tuple[float, float]]]:
    """Read what the probes measured in the course of a pretraining: `probe/NAME` -> epoch, value."""
    found: dict[str, list[tuple[float, float]]] = {}
    for record in RunFolder(run).metrics():
        for name, value in record.items():
            if name.startswith("probe/") and value is not None:
                found.setdefault(name, []).append((record["epoch"], value))
    return found


def _numbers(tree: dict[str, Any]) -> dict[str, float | None]:
    return {k: v for k, v in tree.items() if v is None or (isinstance(v, int | float) and not isinstance(v, bool))}


def command_of(job: JobFolder, processes: int) -> str:
    """Compose the command that makes a job anew, beside the one that was made."""
    words = job.command()
    words[words.index("--out") + 1] = NEW if job.kind != "probe" else f"{NEW}/probe.json"
    several = processes > 1 and job.kind != "probe"
    start = ["torchrun", "--standalone", "--nproc-per-node", str(processes), "-m", "codo.cli"] if several else ["codo"]
    return shell([*start, *map(without_places, words)])


def _environment(fingerprint: str, store: str) -> dict[str, Any]:
    """Describe the machine, without the command, which has its own place."""
    found = environment(fingerprint, {"store": store}, None)
    return json.loads(json.dumps({name: value for name, value in found.items() if name != "command"}, default=str))
