"""No field of TransferConfig is dead: each is here, with a value that changes losses, detections or evaluations."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from codo.config.transfer import TransferConfig
from codo.jobs.transfer.caching import CachePlan, plan_cache
from codo.jobs.transfer.coco_metrics import METRIC_NAMES, CocoMetrics
from codo.jobs.transfer.data import load_data
from codo.jobs.transfer.dataset import DetectionDataset
from codo.jobs.transfer.evaluate import Evaluation, Predictions, evaluate
from codo.jobs.transfer.loop import Training
from codo.jobs.transfer.run import load_detector
from codo.jobs.transfer.schedule import total_steps
from codo.runs import hardware
from codo.runs.hardware import Hardware
from codo.runs.record import RunFolder
from codo.runs.world import World
from tests.parts import leaves

CHANGED: dict[str, Any] = {
    "seed": 5,
    "detector": "fcos",
    "weights": "PRETRAINED",
    "norm": "gn",
    "load": ["backbone"],
    "freeze": ["fpn"],
    "freeze_stages": 2,
    "frozen_norm": "batch",
    "data.fraction": 0.4,
    "architecture.backbone": "resnet14t",
    "architecture.fpn_channels": 24,
    "architecture.box_head_convs": 2,
    "architecture.box_head_channels": 24,
    "architecture.box_head_fc": 48,
    "detection.min_size": [48],
    "detection.max_size": 64,
    "detection.rpn_pre_nms_train": 10,
    "detection.rpn_pre_nms_test": 5,
    "detection.rpn_post_nms_train": 4,
    "detection.rpn_post_nms_test": 4,
    "detection.roi_batch_size": 4,
    "detection.detections_per_image": 3,
    "detection.score_threshold": 0.34,
    "optim.epochs": 2,
    "optim.batch_size": 3,
    "optim.lr": 0.5,
    "optim.momentum": 0.0,
    "optim.weight_decay": 0.9,
    "optim.milestones": [0.1],
    "optim.warmup_iterations": 0,
    "optim.flip_p": 1.0,
    "optim.accumulate": 2,
    "optim.eval_every": 0.34,
    "run.precision": "bf16",
    "run.log_every": 2,
}
"""Field -> another value."""

DATA = {
    "data.root": ("", {"train images", "train boxes", "val images", "val boxes"}),
    "data.train_json": ("instances_train.json", {"train boxes"}),
    "data.val_json": ("instances_val.json", {"val boxes"}),
    "data.images": ("images", {"train images", "val images"}),
    "data.val_images": ("images", {"val images"}),
}
"""Field -> what it names within a copy of the data set that has a box less in each split, and what that changes."""

RESOLVED: dict[str, tuple[Any, Callable[[TransferConfig], Any]]] = {
    "optim.iterations": (7, lambda config: total_steps(config.optim, 5)),
    "run.device": ("cuda:1", lambda config: hardware_of(config).device),
    "run.workers": (2, lambda config: hardware_of(config).workers),
    "run.threads": (3, lambda config: hardware_of(config).threads),
    "run.feature_cache": (0, lambda config: cache_of(config).reason),
}
"""Field -> another value, and what the run takes from it."""

WITH: dict[str, dict[str, Any]] = {"frozen_norm": {"freeze": ["backbone"]}, "load": {"weights": "PRETRAINED"}}
"""What a field needs beside it to matter."""


def test_every_field_is_listed() -> None:
    assert sorted(leaves(TransferConfig)) == sorted([*CHANGED, *DATA, *RESOLVED])


def data_of(config: TransferConfig) -> dict[str, Any]:
    """Where the images are that are trained and evaluated on, and how many boxes they have."""
    data = load_data(config)
    found: dict[str, Any] = {}
    for name, split in (("train", data.train), ("val", data.val)):
        found[f"{name} images"] = [image.path for image in split.images]
        found[f"{name} boxes"] = sum(map(len, split.annotations.values()))
    return found


@pytest.mark.parametrize("field", DATA)
def test_no_field_of_the_data_is_dead(
    field: str, make_config: Callable[..., TransferConfig], coco_root: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(coco_root, tmp_path / "other")
    for split in ("train", "val"):
        file = other / f"instances_{split}.json"
        content = json.loads(file.read_text())
        file.write_text(json.dumps({**content, "annotations": content["annotations"][1:]}))
    inside, changed = DATA[field]
    section, _, name = field.partition(".")
    before, after = data_of(make_config()), data_of(make_config(**{section: {name: str(other / inside)}}))
    assert {key for key in before if before[key] != after[key]} == changed


def hardware_of(config: TransferConfig) -> Hardware:
    return Hardware.resolve(config.run, heavy_loading=False)


def cache_of(config: TransferConfig) -> CachePlan:
    """Whether the features of its frozen trunk would be kept."""
    config = config.model_copy(update={"freeze": ("backbone", "fpn")})
    data = load_data(config)
    detector, _ = load_detector(config, data)
    sets = [DetectionDataset(part, data.labels, 64, 96, train=part is data.train) for part in (data.train, data.val)]
    found = plan_cache(config, detector, (sets[0], sets[1]), hardware_of(config), World())
    assert found is not None
    return found


@pytest.mark.parametrize("field", RESOLVED)
def test_no_field_of_length_and_machine_is_dead(
    field: str, make_config: Callable[..., TransferConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "available_cores", lambda: 8)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    value, read = RESOLVED[field]
    section, _, name = field.partition(".")
    fields = {name: value} | ({"epochs": None} if name == "iterations" else {})
    assert read(make_config(**{section: fields})) != read(make_config())


def outcome(config: TransferConfig, folder: Path) -> tuple[Any, ...]:
    """The losses of the logged steps, at which steps it would evaluate, and the detections at the end."""
    data = load_data(config)
    detector, _ = load_detector(config, data)
    machine = hardware_of(config)
    sides = config.detection.sides
    train, val = (
        DetectionDataset(part, data.labels, *sides, train=training, flip_p=config.optim.flip_p, seed=config.seed)
        for part, training in ((data.train, True), (data.val, False))
    )
    none = CocoMetrics(dict.fromkeys(METRIC_NAMES), {}, {})
    folder.mkdir()
    run = Training(
        config,
        detector.train(),
        train,
        lambda _: Evaluation(Predictions(), {"bbox": none}),
        machine,
        RunFolder(folder),
    )
    run.save = lambda: None  # type: ignore[method-assign]
    run.run()
    losses = [line["loss"] for line in run.folder.metrics() if "loss" in line]
    found = evaluate(detector, val, list(data.labels), machine)
    return losses, [point["step"] for point in run.curve], found.results


def nested(fields: dict[str, Any], pretrained: Path) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, value in fields.items():
        section, _, name = key.rpartition(".")
        (tree.setdefault(section, {}) if section else tree)[name] = str(pretrained) if value == "PRETRAINED" else value
    return tree


@pytest.fixture(scope="module")
def known() -> dict[str, Any]:
    """Outcomes of what fields are compared with, each computed once."""
    return {}


@pytest.mark.parametrize("field", CHANGED)
def test_no_field_is_dead(
    field: str, make_config: Callable[..., TransferConfig], pretrained: Path, tmp_path: Path, known: dict[str, Any]
) -> None:
    base = {"optim.epochs": 1, **WITH.get(field, {})}
    key = str(sorted(base.items()))
    if key not in known:
        known[key] = outcome(make_config(**nested(base, pretrained)), tmp_path / "base")
    assert outcome(make_config(**nested({**base, field: CHANGED[field]}, pretrained)), tmp_path / "other") != known[key]
