"""Detections of a data set, and the COCO metrics of them (pycocotools is the reference)."""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch.utils.data import DataLoader

from codo.data.coco import CocoDataset
from codo.jobs.transfer.base import Detector
from codo.jobs.transfer.dataset import DetectionDataset, Sample
from codo.runs.hardware import Hardware
from codo.runs.interrupt import ignore_stop_signals
from codo.runs.world import World

METRIC_NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
"""COCO's twelve numbers, in pycocotools' order: s, m, l are areas under 32^2, under 96^2, and above, in pixels."""


@dataclass(frozen=True)
class CocoMetrics:
    """What COCO's evaluation says, in per cent (0-100); None where there is no box to find.

    Attributes:
        values: the twelve numbers by `METRIC_NAMES`.
        per_class: category id -> AP.
    """

    values: dict[str, float | None]
    per_class: dict[int, float | None]


@dataclass
class Predictions:
    """Detections of a data set.

    Attributes:
        results: in COCO's result format: image_id, the data set's own category_id, bbox xywh in pixels of the
            original image, score.
        unreadable: image id -> why it could not be read.
        seconds: what it took.
    """

    results: list[dict[str, Any]] = field(default_factory=list)
    unreadable: dict[int, str] = field(default_factory=dict)
    seconds: float = 0.0


@torch.inference_mode()
def evaluate(
    detector: Detector,
    dataset: DetectionDataset,
    categories: Sequence[int],
    hardware: Hardware,
    on_image: Callable[[int, int], None] | None = None,
    world: World | None = None,
) -> Predictions:
    """Run the detector on every image, one at a time: in a batch, padding would depend on the neighbours.

    Args:
        detector: on `hardware.device`; left in the mode it came in.
        dataset: built with `train=False`.
        categories: category ids by label - 1.
        hardware: precision and loader workers.
        on_image: called with (done, total) after each image; may raise to stop.
        world: the processes that share the images; each gets all that was found.
    """
    start, world = time.monotonic(), world or World()
    rows = range(world.rank, len(dataset), world.size)
    found: list[tuple[int, list[dict[str, Any]], str | None]] = []
    loader = DataLoader(dataset, batch_size=None, sampler=[(0, i) for i in rows], **loader_options(hardware))
    was_training = detector.training
    detector.eval()
    try:
        for done, (row, sample) in enumerate(zip(rows, loader, strict=True), start=1):
            source = dataset.coco_images[sample.position]
            if sample.image.numel() == 0:
                found.append((row, [], sample.unreadable[0]))
            else:
                with hardware.autocast():
                    detections = detector([to_input(sample, hardware.device)])[0]
                ratio = (source.width / sample.image.shape[2], source.height / sample.image.shape[1])
                found.append((row, _results(detections, source.id, categories, ratio), None))
            if on_image:
                on_image(done * world.size, len(dataset))
    finally:
        detector.train(was_training)
    everything = sorted((entry for part in world.collect(found) for entry in part), key=lambda entry: entry[0])
    return Predictions(
        [result for _, results, _ in everything for result in results],
        {dataset.coco_images[row].id: reason for row, _, reason in everything if reason is not None},
        time.monotonic() - start,
    )


def coco_metrics(
    ground_truth: CocoDataset, results: Sequence[dict[str, Any]], skip: Collection[int] = ()
) -> CocoMetrics:
    """Compute COCO's twelve box metrics and AP per class, quietly.

    Args:
        ground_truth: with crowds, which count as pycocotools counts them: found or missed, no matter.
        results: in COCO's result format; may be empty.
        skip: ids of images to leave out on both sides.
    """
    images = [image for image in ground_truth.images if image.id not in skip]
    truth = [a for image in images for a in ground_truth.annotations[image.id]]
    detections = [result for result in results if result["image_id"] not in skip]
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(
            _coco(images, truth, ground_truth.categories),
            _coco(images, detections, ground_truth.categories),
            "bbox",
        )
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    values = {name: _percent(value) for name, value in zip(METRIC_NAMES, evaluation.stats, strict=True)}
    # (IoU, recall, class, area, maxDets): all areas, 100 detections.
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    per_class = {}
    for k, category in enumerate(evaluation.params.catIds):
        defined = precision[:, :, k][precision[:, :, k] > -1]
        per_class[int(category)] = _percent(defined.mean() if defined.size else -1.0)
    return CocoMetrics(values, per_class)


def to_input(sample: Sample, device: torch.device) -> torch.Tensor:
    """Move an image to the device, as floats in 0..1."""
    return sample.image.to(device, non_blocking=True).float() / 255


def loader_options(hardware: Hardware) -> dict[str, Any]:
    """Collect what all our loaders have in common."""
    options: dict[str, Any] = {
        "num_workers": hardware.workers,
        "pin_memory": hardware.device.type == "cuda",
        # The loader draws a seed for its workers from a generator, by default the global one; nobody uses that seed.
        "generator": torch.Generator(),
    }
    if hardware.workers:
        options |= {"worker_init_fn": _quiet_worker, "prefetch_factor": 4}
    return options


def _quiet_worker(worker: int) -> None:
    """Leave Ctrl-C and SIGTERM to the training process, which finishes its step; and keep to one thread."""
    ignore_stop_signals()
    torch.set_num_threads(1)


def _results(
    detections: dict[str, torch.Tensor],
    image_id: int,
    categories: Sequence[int],
    ratio: tuple[float, float],
) -> list[dict[str, Any]]:
    """Write one image's detections in COCO's format."""
    boxes = detections["boxes"].float().cpu().numpy().astype(np.float64) * np.tile(ratio, 2)
    boxes[:, 2:] -= boxes[:, :2]
    rows = zip(boxes.tolist(), detections["labels"].tolist(), detections["scores"].tolist(), strict=True)
    return [
        {
            "image_id": image_id,
            "category_id": categories[label - 1],
            "bbox": [round(side, 2) for side in box],
            "score": round(score, 5),
        }
        for box, label, score in rows
    ]


def _coco(images: Sequence[Any], annotations: Sequence[dict[str, Any]], categories: dict[int, str]) -> COCO:
    """Build pycocotools' index; boxes alone are enough for it. Its own loader would refuse an empty result list."""
    coco = COCO()
    coco.dataset = {
        "images": [{"id": image.id, "width": image.width, "height": image.height} for image in images],
        "categories": [{"id": category, "name": name} for category, name in categories.items()],
        # Ids are numbered anew: pycocotools takes id 0 for "not matched".
        "annotations": [
            {
                "id": number,
                "image_id": a["image_id"],
                "category_id": a["category_id"],
                "bbox": a["bbox"],
                "area": a["area"] if "area" in a else a["bbox"][2] * a["bbox"][3],
                "iscrowd": a.get("iscrowd", 0),
                **({"score": a["score"]} if "score" in a else {}),
            }
            for number, a in enumerate(annotations, start=1)
        ],
    }
    coco.createIndex()
    return coco


def _percent(value: float) -> float | None:
    """Turn pycocotools' -1 for "nothing to find" into None."""
    return None if value < 0 else round(100 * float(value), 4)
