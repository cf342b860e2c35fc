"""A fine-tuning step of a detector: torchvision's, as users write it, beside codo's, in turns.

    python -m benchmarks.finetune            # ResNet-18 and ResNet-50; some minutes
    python -m benchmarks.finetune --small    # a try-out of seconds
    python -m benchmarks.finetune --ap       # both train to the end, three seeds each; a quarter of an hour

Both sides fine-tune `fasterrcnn_resnet50_fpn_v2` (RoIAlign, 4 convolutions and an fc as box head), or the same on
ResNet-18, with torchvision's defaults (512 boxes an image) at 240-320 px, batch 2 as in torchvision's reference script,
from the same weights, on the images of `bccd_320` in $CODO_DATA.

- *torchvision*: the detector of its builder, fp32, a PIL image and `to_tensor` from disk, `torch.optim.SGD`, zero_grad,
  backward, step: what its reference script does.
- *codo*: the step and the loading of `codo transfer`, `Training`'s own, as its config says by default.

Each is timed on a batch in memory (`step`) and with the batch read from disk in the same process (`with data`). The
first step's losses are compared, drawn with the same seed: also those of codo in fp32, where RoIs are the same.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor
from torchvision.models.detection.rpn import RPNHead
from torchvision.models.resnet import resnet18, resnet50
from torchvision.transforms import functional

from benchmarks.results_file import Row, versions, write
from codo.config.presets import TRANSFER_PRESETS
from codo.config.transfer import TransferConfig
from codo.jobs.bench.machine import machine, peaks
from codo.jobs.bench.timing import Times, in_turns
from codo.jobs.transfer.base import Detector
from codo.jobs.transfer.data import Data, load_data, training_annotations
from codo.jobs.transfer.dataset import DetectionDataset, batches, steps_per_epoch
from codo.jobs.transfer.evaluate import Evaluation, assess, evaluate
from codo.jobs.transfer.hardware import hardware_of
from codo.jobs.transfer.loop import Training
from codo.jobs.transfer.proof import normalisation
from codo.jobs.transfer.run import fresh_detector
from codo.jobs.transfer.schedule import learning_rate, total_steps
from codo.runs.console import JobProgress
from codo.runs.hardware import available_cores
from codo.runs.record import RunFolder
from codo.runs.seed import generator, integer_seed

DATA = "bccd_320"
TARGET = 2.5
BATCH = 2
"""Images a step, as in torchvision's reference script."""
GROUPS = {
    "convolutions": ("convolution", "conv2d"),
    "matrix products": ("aten::mm", "aten::addmm"),
    "RoIAlign": ("roi_align", "embedding_bag"),
    "norms, ReLU, pooling": ("batch_norm", "threshold", "clamp_min_", "relu", "max_pool"),
    "NMS": ("nms",),
}
"""What operations are summed up under; all others are `the rest`."""

Step = Callable[[], dict[str, float]]


def settings(backbone: str, small: bool, **fields: Any) -> TransferConfig:
    """Set up a transfer; `small` makes the detector and its lists small too."""
    preset = TRANSFER_PRESETS["small"]
    tree: dict[str, Any] = {
        "architecture": preset["architecture"] if small else {"backbone": backbone},
        "detection": preset["detection"] if small else {"min_size": (240,), "max_size": 320},
        "data": {"root": str(Path(os.environ.get("CODO_DATA", "shared/data")) / DATA)},
        "optim": {"epochs": 1, "batch_size": BATCH},
        "run": {"device": "cpu", "workers": 0, "threads": 1},
    }
    return TransferConfig.model_validate({**tree, **fields})


def reference_detector(config: TransferConfig, classes: int) -> FasterRCNN:
    """Build torchvision's detector: `fasterrcnn_resnet50_fpn_v2`, or the same of another size (its builder's lines)."""
    architecture, detection = config.architecture, config.detection
    body = {"resnet18": resnet18, "resnet50": resnet50}[architecture.backbone](norm_layer=torch.nn.BatchNorm2d)
    backbone = _resnet_fpn_extractor(body, 5, norm_layer=torch.nn.BatchNorm2d)
    channels = architecture.fpn_channels
    if channels != backbone.out_channels:
        backbone.fpn = type(backbone.fpn)(
            [body.inplanes // 8 * 2**i for i in range(4)], channels, backbone.fpn.extra_blocks, torch.nn.BatchNorm2d
        )
        backbone.out_channels = channels
    anchors = AnchorGenerator(tuple((side,) for side in (32, 64, 128, 256, 512)), ((0.5, 1.0, 2.0),) * 5)
    return FasterRCNN(
        backbone,
        min_size=detection.min_size[0],
        max_size=detection.max_size,
        rpn_anchor_generator=anchors,
        rpn_head=RPNHead(channels, anchors.num_anchors_per_location()[0], conv_depth=2),
        rpn_pre_nms_top_n_train=detection.rpn_pre_nms_train,
        rpn_pre_nms_top_n_test=detection.rpn_pre_nms_test,
        rpn_post_nms_top_n_train=detection.rpn_post_nms_train,
        rpn_post_nms_top_n_test=detection.rpn_post_nms_test,
        box_head=FastRCNNConvFCHead(
            (channels, 7, 7),
            [architecture.box_head_channels] * architecture.box_head_convs,
            [architecture.box_head_fc],
            norm_layer=torch.nn.BatchNorm2d,
        ),
        box_predictor=FastRCNNPredictor(architecture.box_head_fc, classes + 1),
        box_batch_size_per_image=detection.roi_batch_size,
        box_score_thresh=detection.score_threshold,
        box_detections_per_img=detection.detections_per_image,
    )


class Reference:
    """Fine-tuning as torchvision's reference script has it; order, flips and draws are those of codo's run.

    Args:
        config: what codo's side trains by.
        data: the same.
    """

    def __init__(self, config: TransferConfig, data: Data) -> None:
        self.config, self.data = config, data
        self.detector = reference_detector(config, len(data.labels))
        self.detector.load_state_dict(
            fresh_detector(config, len(data.labels), *normalisation(None)).state_dict(), strict=True
        )
        optim = config.optim
        self.total = total_steps(optim, steps_per_epoch(len(data.train.images), optim.batch_size))
        self.optimizer = torch.optim.SGD(
            self.detector.parameters(), lr=optim.lr, momentum=optim.momentum, weight_decay=optim.weight_decay
        )

    def load(self, keys: Sequence[tuple[int, int]]) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
        """Read images and targets from disk."""
        images, targets = [], []
        for epoch, index in keys:
            source = self.data.train.images[index]
            with Image.open(source.path) as file:
                image = functional.to_tensor(file.convert("RGB"))
            own = training_annotations(self.data.train, source.id)
            boxes = torch.tensor([a["bbox"] for a in own], dtype=torch.float32).reshape(-1, 4)
            boxes[:, 2:] += boxes[:, :2]
            if generator("transfer image", self.config.seed, epoch, index).random() < self.config.optim.flip_p:
                image = functional.hflip(image)
                boxes[:, [0, 2]] = source.width - boxes[:, [2, 0]]
            labels = torch.tensor([self.data.labels[a["category_id"]] for a in own], dtype=torch.int64)
            images.append(image)
            targets.append({"boxes": boxes, "labels": labels})
        return images, targets

    def step(self, images: list[Tensor], targets: list[dict[str, Tensor]], number: int = 0) -> dict[str, float]:
        """Train on a batch as step `number`; return the losses."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config.optim, number, self.total)
        torch.manual_seed(integer_seed("transfer step", self.config.seed, number))
        losses = self.detector(images, targets)
        self.optimizer.zero_grad()
        sum(losses.values()).backward()
        self.optimizer.step()
        return {name: loss.item() for name, loss in losses.items()}


class Codo:
    """Codo's own training, as `codo transfer` sets it up.

    Args:
        config: of the run.
        data: what it trains on.
        folder: an empty folder.
    """

    def __init__(self, config: TransferConfig, data: Data, folder: Path) -> None:
        hardware = hardware_of(config)
        detector = fresh_detector(config, len(data.labels), *normalisation(None))
        detector.to(memory_format=torch.channels_last)
        sides = config.detection.min_size[-1], config.detection.max_size
        self.dataset = DetectionDataset(
            data.train, data.labels, *sides, train=True, flip_p=config.optim.flip_p, seed=config.seed
        )
        val = DetectionDataset(data.val, data.labels, *sides, train=False)

        def assess_now(_: Any = None) -> Evaluation:
            return assess(evaluate(detector, val, list(data.labels), hardware), data.val, masks=False, breakdown=False)

        self.training = Training(config, detector.train(), self.dataset, assess_now, hardware, RunFolder(folder))
        self.precision, self.bar = hardware.precision, JobProgress(1, "benchmark")

    def losses(self, keys: Sequence[tuple[int, int]]) -> dict[str, float]:
        """Compute the losses of the first step; the weights stay."""
        found = self.training._accumulate([self.dataset[key] for key in keys])
        return {name: float(value) for name, value in found.items()}


def measure(backbone: str, small: bool, rounds: int, threads: int) -> dict[str, Any]:
    """Time both sides' steps, alone and with loading, in turns."""
    torch.set_num_threads(threads)
    config = settings(backbone, small)
    data = load_data(config)
    keys = next(iter(batches(len(data.train.images), BATCH, config.seed, 0, 1)))
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = Codo(config, data, Path(folder)), Reference(config, data)
        exact = Codo(settings(backbone, small, run={**dict(config.run), "precision": "fp32"}), data, Path(folder))
        losses = {"codo": ours.losses(keys), "codo, fp32": exact.losses(keys)}
        del exact
        batch, samples = theirs.load(keys), [ours.dataset[key] for key in keys]
        losses["torchvision"] = theirs.step(*batch)
        sides: dict[str, Callable[[], Any]] = {
            "torchvision, step": lambda: theirs.step(*batch),
            "codo, step": lambda: ours.training._train_step(samples, 0.0, ours.bar),
            "torchvision, with data": lambda: theirs.step(*theirs.load(keys)),
            "codo, with data": lambda: ours.training._train_step([ours.dataset[key] for key in keys], 0.0, ours.bar),
        }
        times = in_turns(sides, rounds=rounds)
        shares = {name.split(",")[0]: breakdown(sides[name]) for name in list(sides)[:2]}
    return {
        "backbone": config.architecture.backbone,
        "threads": threads,
        "precision": ours.precision,
        "batch": BATCH,
        "boxes_per_image": config.detection.roi_batch_size,
        "seconds": dict(times.seconds),
        "first_losses": losses,
        "milliseconds_by_operation": shares,
        **{
            f"times_faster_{what.replace(' ', '_')}": {
                "median": times.ratio(*pair),
                "range": times.spread(*pair),
            }
            for what in ("step", "with data")
            for pair in ((f"torchvision, {what}", f"codo, {what}"),)
        },
    }


def breakdown(step: Callable[[], Any]) -> dict[str, float]:
    """Sum the milliseconds of one step by kind of operation."""
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        step()
    found = dict.fromkeys([*GROUPS, "optimiser", "the rest"], 0.0)
    for entry in profiled.key_averages():
        group = next((g for g, names in GROUPS.items() if any(n in entry.key for n in names)), "the rest")
        found[group] += entry.self_cpu_time_total / 1e3
        if entry.key.startswith("Optimizer.step"):
            found["optimiser"] = entry.cpu_time_total / 1e3
    found["the rest"] -= found["optimiser"]
    return {name: round(value, 1) for name, value in found.items()}
