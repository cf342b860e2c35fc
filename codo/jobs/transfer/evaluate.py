"""Detections of a data set, and what they are worth."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from pycocotools import mask as coco_mask
from torch.utils.data import DataLoader

from codo.data.coco import CocoDataset, CocoImage
from codo.jobs.transfer.base import Detector
from codo.jobs.transfer.coco_metrics import CocoMetrics, Kind, coco_metrics
from codo.jobs.transfer.dataset import DetectionDataset
from codo.jobs.transfer.trunk import announce
from codo.runs.console import warn
from codo.runs.hardware import Hardware
from codo.runs.loading import loading
from codo.runs.world import World


@dataclass
class Predictions:
    """Detections of a data set.

    Attributes:
        results: in COCO's result format: image_id, the data set's own category_id, bbox xywh in pixels of the
            original image, score; of a detector of masks `segmentation`, compressed RLE.
        unreadable: image id -> why it could not be read, or not be used.
        seconds: what it took.
    """

    results: list[dict[str, Any]] = field(default_factory=list)
    unreadable: dict[int, str] = field(default_factory=dict)
    seconds: float = 0.0

    def tell_unreadable(self) -> None:
        """Say why images were left out, of the first five."""
        for reason in list(self.unreadable.values())[:5]:
            warn(f"not evaluated on: {reason}")


@dataclass(frozen=True)
class Evaluation:
    """Detections and their metrics.

    Attributes:
        predictions: the detections.
        metrics: of boxes, `bbox`, and of masks, `segm`, where the detector finds them.
    """

    predictions: Predictions
    metrics: dict[Kind, CocoMetrics]

    @property
    def values(self) -> dict[str, float | None]:
        """The twelve numbers of boxes, and `mask_AP` where there are masks: a point of the AP curve."""
        more = {"mask_AP": self.metrics["segm"].values["AP"]} if "segm" in self.metrics else {}
        return {**self.metrics["bbox"].values, **more}

    def summary(self, names: Mapping[int, str]) -> dict[str, Any]:
        """Say it for summary.json; `names` are the categories'."""
        boxes, masks = self.metrics["bbox"], self.metrics.get("segm")
        found: dict[str, Any] = {"metrics": boxes.values, "errors": boxes.errors}
        if masks:
            found |= {"mask_metrics": masks.values, "mask_errors": masks.errors}
        found["per_class"] = [
            {
                "category_id": category,
                "name": names[category],
                "AP": ap,
                **({"mask_AP": masks.per_class[category]} if masks else {}),
            }
            for category, ap in boxes.per_class.items()
        ]
        return found


def assess(predictions: Predictions, truth: CocoDataset, masks: bool, *, breakdown: bool = True) -> Evaluation:
    """Compute the metrics of detections, and what the errors cost; images that cannot be read are left out."""
    kinds: tuple[Kind, ...] = ("bbox", "segm") if masks else ("bbox",)
    return Evaluation(
        predictions,
        {
            kind: coco_metrics(truth, predictions.results, predictions.unreadable, kind, breakdown=breakdown)
            for kind in kinds
        },
    )


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
    loader = DataLoader(dataset, batch_size=None, sampler=[(0, i) for i in rows], **hardware.loader_options())
    was_training = detector.training
    detector.eval()
    try:
        with loading(loader) as samples:
            for done, (row, sample) in enumerate(zip(rows, samples, strict=True), start=1):
                source = dataset.coco_images[sample.position]
                if sample.image.numel() == 0:
                    found.append((row, [], sample.unreadable[0]))
                else:
                    announce(detector, dataset, [sample])
                    found.append((row, detect(detector, sample.image, source, categories, hardware), None))
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


@torch.inference_mode()
def detect(
    detector: Detector,
    image: torch.Tensor,
    source: CocoImage,
    categories: Sequence[int],
    hardware: Hardware,
) -> list[dict[str, Any]]:
    """Run the detector on one image.

    Args:
        detector: in evaluation mode.
        image: `(3, H, W) uint8`, at the size that the detector takes.
        source: the image in full; boxes and masks come at its size.
        categories: category ids by label - 1.
        hardware: where, and how precisely.

    Returns:
        Results in COCO's format, see `Predictions`.
    """
    with hardware.autocast():
        detections = detector([to_input(image, hardware.device)])[0]
    ratio = (source.width / image.shape[2], source.height / image.shape[1])
    entries = _results(detections, source.id, categories, ratio)
    if "masks" in detections:
        _add_masks(entries, detections["masks"], source.width, source.height)
    return entries


def to_input(image: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Move an image `(3, H, W) uint8` to the device, as floats in 0..1."""
    return image.to(device, non_blocking=True).float() / 255


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


def _add_masks(entries: list[dict[str, Any]], masks: torch.Tensor, width: int, height: int) -> None:
    """Add the masks `(N, 1, h, w)`, probabilities at the detector's size, at the image's size: over a half."""
    for entry, mask in zip(entries, masks, strict=True):
        sized = F.interpolate(mask[None].float(), (height, width), mode="bilinear", align_corners=False)[0, 0]
        rle = coco_mask.encode(np.asfortranarray((sized > 0.5).cpu().numpy().astype(np.uint8)))
        entry["segmentation"] = {"size": [height, width], "counts": rle["counts"].decode()}
