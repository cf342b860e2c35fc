"""The two sides of benchmarks/finetune.py: a detector fine-tuned by torchvision's means, and by codo's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor
from torchvision.models.detection.rpn import RPNHead
from torchvision.models.resnet import resnet18, resnet50
from torchvision.transforms import functional

from benchmarks.pictures import real_images
from codo.config.presets import TRANSFER_PRESETS
from codo.config.transfer import TransferConfig
from codo.jobs.transfer.data import Data, training_annotations
from codo.jobs.transfer.dataset import DetectionDataset, steps_per_epoch
from codo.jobs.transfer.evaluate import Evaluation, assess, evaluate
from codo.jobs.transfer.hardware import hardware_of
from codo.jobs.transfer.loop import Training
from codo.jobs.transfer.proof import normalisation
from codo.jobs.transfer.run import fresh_detector
from codo.jobs.transfer.schedule import learning_rate, total_steps
from codo.runs.console import JobProgress
from codo.runs.record import RunFolder
from codo.runs.seed import generator, integer_seed

DATA = "bccd_320"
BATCH = 2
"""Images a step, as in torchvision's reference script."""


def settings(**fields: Any) -> TransferConfig:
    """Set up a transfer on this machine's processor; `fields` are sections, or parts of them."""
    data = real_images()
    tree: dict[str, Any] = {
        "data": {"root": str(data / DATA) if data else None},
        "optim": {"epochs": 1, "batch_size": BATCH},
        "run": {"device": "cpu", "workers": 0, "threads": 1},
    }
    for name, value in fields.items():
        tree[name] = {**tree.get(name, {}), **value} if isinstance(value, dict) else value
    return TransferConfig.model_validate(tree)


def full(backbone: str) -> dict[str, Any]:
    """Size the timed detector: torchvision's own but for the images' sides."""
    return {"architecture": {"backbone": backbone}, "detection": {"min_size": (240,), "max_size": 320}}


def small(min_size: int, max_size: int) -> dict[str, Any]:
    """Size a detector for a try-out: the `small` preset's."""
    preset = TRANSFER_PRESETS["small"]
    return {
        "architecture": preset["architecture"],
        "detection": {**preset["detection"], "min_size": (min_size,), "max_size": max_size},
    }


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
        sides = config.detection.sides
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
