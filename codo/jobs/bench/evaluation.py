"""What an evaluation of a detector takes: inference image by image, and COCO's metrics."""

from __future__ import annotations

import statistics
import time
from contextlib import suppress
from typing import Any

import torch

from codo.config.transfer import TransferConfig
from codo.jobs.bench.made_up import detections
from codo.jobs.bench.timing import repeated, synchronise
from codo.jobs.transfer.data import Data
from codo.jobs.transfer.dataset import DetectionDataset, steps_per_epoch
from codo.jobs.transfer.evaluate import Predictions, assess, evaluate
from codo.jobs.transfer.hardware import hardware_of
from codo.jobs.transfer.run import load_detector
from codo.jobs.transfer.schedule import count_evaluations


class _Enough(Exception):
    """Ends an evaluation that has been timed for long enough."""


def time_evaluation(config: TransferConfig, data: Data, seconds: float) -> dict[str, Any]:
    """Time the detector on some of the validation images, and the metrics on made-up detections of all of them.

    Args:
        config: of the transfer; its weights are loaded where it names some.
        data: from `codo.jobs.transfer.data.load_data`.
        seconds: about as many for the inference.

    Returns:
        `images_per_s` of the inference on `timed_images`, `metrics_s`, `images` of the validation set, `seconds` of one
        evaluation, `evaluations` of a transfer, `detector`, `hardware`, `sides` in pixels, `data`.
    """
    hardware = hardware_of(config)
    hardware.apply()
    detector, _ = load_detector(config, data)
    detector.to(hardware.device).to(memory_format=torch.channels_last)
    sides = config.detection.sides
    dataset = DetectionDataset(data.val, data.labels, *sides, train=False)
    stamps: list[float] = []

    def stamp(done: int, total: int) -> None:
        synchronise(hardware.device)
        stamps.append(time.perf_counter())
        if len(stamps) > 3 and stamps[-1] - stamps[0] > seconds:
            raise _Enough

    while len(stamps) < 2:  # of very few images, more than once
        with suppress(_Enough):
            evaluate(detector, dataset, list(data.labels), hardware, stamp)
    rate = (len(stamps) - 1) / (stamps[-1] - stamps[0])  # the first image warms up

    found = Predictions(detections(data.val, config.detection.detections_per_image, masks=data.masks))
    times = repeated(lambda: assess(found, data.val, data.masks, breakdown=False), seconds=1.0, at_least=1)
    metrics_s = statistics.median(times)
    per_epoch = steps_per_epoch(len(data.train.images), config.optim.batch_size)
    images = len(data.val.images)
    return {
        "images_per_s": rate,
        "metrics_s": metrics_s,
        "images": images,
        "timed_images": len(stamps) - 1,
        "seconds": images / rate + metrics_s,
        "evaluations": count_evaluations(config.optim, per_epoch),
        "detector": config.detector,
        "hardware": hardware.describe(),
        "sides": list(sides),
        "data": data.name,
    }
