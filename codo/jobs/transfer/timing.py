"""How long a transfer would take, from a few steps and images."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from codo.config.transfer import TransferConfig
from codo.jobs.transfer.data import load_data
from codo.jobs.transfer.dataset import DetectionDataset, steps_per_epoch
from codo.jobs.transfer.evaluate import Evaluation, assess, evaluate
from codo.jobs.transfer.hardware import hardware_of
from codo.jobs.transfer.loop import Training
from codo.jobs.transfer.proof import normalisation
from codo.jobs.transfer.run import fresh_detector
from codo.jobs.transfer.schedule import count_evaluations, total_steps
from codo.runs.record import RunFolder

STEPS, IMAGES = 3, 8
"""What is timed: training steps, of which the first does not count, and evaluated images."""


def time_transfer(config: TransferConfig) -> float:
    """Estimate the seconds of a transfer: its steps, and its evaluations.

    The weights are fresh: what they hold does not change how long a step takes. Of a probe it is the time of its first
    epoch, before the frozen trunk's features are kept.

    Args:
        config: of the transfer; its `weights` are not read.

    Raises:
        CodoError: as `transfer`.
    """
    data = load_data(config)
    hardware = hardware_of(config)
    hardware.apply()
    detector = fresh_detector(config, len(data.labels), *normalisation(None))
    detector.to(hardware.device).to(memory_format=torch.channels_last)
    sides = config.detection.sides
    train_set = DetectionDataset(data.train, data.labels, *sides, train=True, seed=config.seed, masks=data.masks)
    few = replace(data.val, images=data.val.images[:IMAGES])
    val_set = DetectionDataset(few, data.labels, *sides, train=False)
    spent: list[float] = []

    def evaluate_few(on_image: Callable[[int, int], None] | None = None) -> Evaluation:
        start = time.monotonic()
        found = evaluate(detector, val_set, list(data.labels), hardware)
        spent.append(time.monotonic() - start)
        return assess(found, few, data.masks)

    optim = config.optim.model_copy(update={"epochs": None, "iterations": STEPS, "eval_every": STEPS})
    run = config.run.model_copy(update={"log_every": 1})
    short = config.model_copy(update={"optim": optim, "run": run})
    with tempfile.TemporaryDirectory() as folder:
        Training(short, detector.train(), train_set, evaluate_few, hardware, RunFolder(Path(folder))).run()
        rates = [r["images_per_s"] for r in RunFolder(Path(folder)).metrics() if "images_per_s" in r][1:]
    per_epoch = steps_per_epoch(len(train_set), config.optim.batch_size)
    total = total_steps(config.optim, per_epoch)
    steps = total * config.optim.batch_size * len(rates) / sum(rates)
    return steps + count_evaluations(config.optim, per_epoch) * spent[-1] / len(few.images) * len(data.val.images)
