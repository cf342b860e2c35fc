"""Evaluate a finished run on any COCO data set that has its categories."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from codo.config.transfer import TransferConfig
from codo.data.coco import CocoDataset, load_coco
from codo.data.masks import has_mask
from codo.errors import CodoError
from codo.jobs.transfer.data import check_masks, fingerprint_of, moved_data_told, val_paths
from codo.jobs.transfer.dataset import DetectionDataset
from codo.jobs.transfer.evaluate import assess, evaluate
from codo.jobs.transfer.finished import open_run
from codo.runs.console import counter
from codo.runs.files import check_place, write_json, write_text
from codo.runs.record import RunFolder


def evaluate_run(
    path: Path,
    *,
    data: str | None = None,
    annotations: str | None = None,
    images: str | None = None,
    out: Path | None = None,
    best: bool = False,
    changes: Mapping[str, Any] | None = None,
    on_found: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Evaluate the detector of a finished transfer run.

    Args:
        path: the run folder.
        data: a COCO data set, whose validation split is taken; None is the run's own.
        annotations: a COCO JSON in place of the validation split's.
        images: the folder of its images.
        out: a new folder for evaluation.json and predictions.json (COCO's result format, the data set's category ids).
        best: take the detector of the highest AP in place of that of the end (`open_run`).
        changes: dotted field -> value of the run's config: `run.device`, `run.precision`.
        on_found: told what is returned, also where it cannot be written (a full disk).

    Returns:
        What evaluation.json says: `data`, `metrics`, `errors`, `per_class`, where there are masks `mask_metrics` ...

    Raises:
        CodoError: no finished run, no such data, or categories that the run does not know.

    Example:
        >>> evaluate_run(Path("runs/first"), data="dataset/")["metrics"]["AP"]  # doctest: +SKIP
        31.4
    """
    if out is not None:
        RunFolder.check_free(out, resumable=False)
    run = open_run(path, changes, best=best)
    config = _data_config(run.config, data, annotations, images)
    with nullcontext() if config is not run.config else moved_data_told(config, "--data DIR"):
        name, json_path, folder = val_paths(config)
        coco = load_coco(json_path, folder)
    known = match_categories(run.categories, coco, json_path)
    masks = run.masks and any(has_mask(a) for own in coco.annotations.values() for a in own)
    if masks:
        check_masks(coco, json_path)
    order = list(run.categories)
    labels = {category: 1 + order.index(own) for category, own in known.items()}
    dataset = DetectionDataset(coco, labels, *run.config.detection.sides, train=False)
    fingerprint = RunFolder(path).environment()["fingerprint"]
    if out is not None:
        check_place(out / "evaluation.json")
    with counter("evaluating") as tell:
        found = evaluate(run.detector, dataset, order, run.hardware, tell)
    found.tell_unreadable()
    # From the run's category ids to the data set's; what the data set has no category for is no mistake there.
    theirs = {own: category for category, own in known.items()}
    found.results[:] = [
        {**r, "category_id": theirs[r["category_id"]]} for r in found.results if r["category_id"] in theirs
    ]
    evaluation = assess(found, coco, masks)
    files = {image.id: image.file_name for image in coco.images}
    summary = {
        "kind": "evaluation",
        "run": str(path),
        "weights": run.weights,
        "run_fingerprint": fingerprint,
        "detector": run.config.detector,
        "data": {
            "name": name,
            "annotations": json_path.name,
            "images": len(coco.images),
            "boxes": sum(map(len, coco.annotations.values())),
            "classes": len(coco.categories),
            "classes_absent": [n for c, n in run.categories.items() if c not in theirs],
            "skipped": coco.skipped,
            "fingerprint": fingerprint_of(coco, masks=masks),
        },
        "masks": "evaluated" if masks else "the data set has none" if run.masks else "the detector finds none",
        **evaluation.summary(coco.categories),
        "evaluation_seconds": round(found.seconds, 2),
        "unreadable_images": [files[image] for image in found.unreadable],
    }
    try:
        if out is not None:
            write_text(out / "predictions.json", json.dumps(found.results) + "\n")
            write_json(out / "evaluation.json", summary)
    finally:  # a full disk leaves it to be told, a closed pipe lets it be written
        if on_found:
            on_found(summary)
    return summary


def match_categories(run: Mapping[int, str], coco: CocoDataset, path: Path) -> dict[int, int]:
    """Find each category of a data set among the run's: by id and name, or else by name.

    Returns:
        The data set's category id -> the run's.

    Raises:
        CodoError: one is not there, or names are ambiguous.
    """
    data = coco.categories
    if not data:
        raise CodoError(f"{path} lists no categories")
    if data.items() <= run.items():
        return {category: category for category in data}
    by_name = {name: category for category, name in run.items()}
    unknown = [f"{category} {name!r}" for category, name in data.items() if name not in by_name]
    if unknown:
        raise CodoError(
            f"{path}: the run knows no category {', '.join(unknown[:5])}{', ...' if len(unknown) > 5 else ''}; "
            f"it was trained on {', '.join(map(repr, list(run.values())[:10]))}{', ...' if len(run) > 10 else ''}"
        )
    if len(set(data.values())) < len(data) or len(by_name) < len(run):
        raise CodoError(f"{path}: category ids other than the run's, and names that occur twice")
    return {category: by_name[name] for category, name in data.items()}


def _data_config(
    config: TransferConfig, data: str | None, annotations: str | None, images: str | None
) -> TransferConfig:
    """Put the data set asked for in place of the run's own."""
    if (annotations is None) != (images is None) and data is None:
        raise CodoError("--json and --images go together, unless --data gives the other one")
    if data is None and annotations is None:
        return config
    given = {"root": data, "val_json": annotations, "val_images": images}
    section = type(config.data)(**{key: value for key, value in given.items() if value is not None})
    return config.model_copy(update={"data": section})
