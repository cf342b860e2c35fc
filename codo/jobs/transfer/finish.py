"""The end of a transfer run: the detector, its predictions, the curve and the summary."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codo._version import __version__
from codo.config.transfer import TransferConfig
from codo.jobs.transfer.curve import best_point, curve_area, steps_to_ap
from codo.jobs.transfer.data import Data
from codo.jobs.transfer.evaluate import Evaluation, assess
from codo.jobs.transfer.loop import Training
from codo.jobs.transfer.plot import plot_curves
from codo.runs.files import write_text
from codo.runs.record import RunFolder
from codo.runs.weights_file import save_weights

FINAL = ("summary.json", "weights.safetensors", "best.safetensors")
"""What only a complete run has, and a longer one writes anew."""


@dataclass(frozen=True)
class TransferResult:
    """What a run came to.

    Attributes:
        path: the run folder.
        summary: what summary.json says: `metrics` (the twelve COCO numbers of boxes, 0-100), `mask_metrics`
            where the detector finds masks, `errors` (TIDE), `per_class`, `curve`, ...

    Example:
        >>> TransferResult(Path("runs/t"), {"metrics": {"AP": 31.4}}).summary["metrics"]["AP"]
        31.4
    """

    path: Path
    summary: dict[str, Any]


def finish(
    config: TransferConfig,
    folder: RunFolder,
    data: Data,
    training: Training,
    latest: Evaluation,
    facts: dict[str, Any],
) -> TransferResult:
    """Write weights.safetensors (the detector as it ended), best.safetensors (that of the highest AP, if it was another
    one), predictions.json (of the end), summary.json, and curve.png and .svg.

    Args:
        config: of the run.
        folder: where to.
        data: what it was trained and evaluated on.
        training: at its end.
        latest: the last evaluation.
        facts: of the summary: `fingerprint`, `weights` (what they are), `frozen_but_fresh`, `training`, `features`.
    """
    predictions, names = latest.predictions, data.train.categories
    final = assess(predictions, data.val, data.masks)  # with the breakdown of errors, which the curve does without
    detector, world, best = training.detector, training.world, best_point(training.curve)
    metadata = {
        "codo_version": __version__,
        "fingerprint": facts["fingerprint"],
        "detector": config.detector,
        "architecture": config.architecture.model_dump_json(),
        "detection": config.detection.model_dump_json(),
        "categories": json.dumps([[category, names[category]] for category in data.labels]),
        "norm": config.norm,
        "mean": json.dumps(list(detector.transform.image_mean)),
        "std": json.dumps(list(detector.transform.image_std)),
    }
    predictions.tell_unreadable()
    unreadable = set().union(*world.collect(training.unreadable))
    file_names = {image.id: image.file_name for image in data.val.images}
    summary = {
        "kind": "transfer",
        "detector": config.detector,
        "fingerprint": facts["fingerprint"],
        "data": data.facts,
        "trained_on": "train",
        "evaluated_on": "val",
        "seed": config.seed,
        "protocol": config.protocol,
        "weights": facts["weights"],
        "frozen_but_fresh": facts["frozen_but_fresh"],
        **final.summary(names),
        "curve": training.curve,
        "curve_area": curve_area(training.curve),
        "best": best,
        "steps_to_ap": steps_to_ap(training.curve),
        "training": facts["training"],
        "features": facts["features"],
        "steps": training.step,
        "train_seconds": round(training.seconds, 2),
        "evaluation_seconds": round(predictions.seconds, 2),
        "unreadable_images": {
            "train": len(unreadable),
            "val": [file_names[image] for image in predictions.unreadable],
        },
    }
    if world.first:
        save_weights(folder.path / "weights.safetensors", detector.state_dict(), metadata)
        if best is not None and best["step"] != training.step and training.best_state is not None:
            told = {"step": str(best["step"]), "AP": f"{best['AP']:.4f}"}
            save_weights(folder.path / "best.safetensors", training.best_state, metadata | told)
        write_text(folder.path / "predictions.json", json.dumps(predictions.results) + "\n")
        folder.write_summary(summary)  # before the picture, which may fail: it is drawn from the summary
        title = f"{data.name} val, {config.protocol}, weights {facts['weights']['source']}"
        plot_curves(folder.path, {"AP": training.curve}, title)
    world.wait()
    return TransferResult(folder.path, summary)
