"""No field of TransferConfig is dead: each is here, with a value that changes losses, detections or evaluations."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from codo.config.transfer import TransferConfig
from codo.jobs.transfer.coco_metrics import METRIC_NAMES, CocoMetrics
from codo.jobs.transfer.data import load_data
from codo.jobs.transfer.dataset import DetectionDataset
from codo.jobs.transfer.evaluate import Evaluation, Predictions, evaluate
from codo.jobs.transfer.loop import Training
from codo.jobs.transfer.run import load_detector
from codo.runs.hardware import Hardware
from codo.runs.record import RunFolder

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
}
"""Field -> another value."""

ELSEWHERE = {
    "data.root": "test_dataset.py",
    "data.train_json": "test_dataset.py",
    "data.val_json": "test_dataset.py",
    "data.images": "test_dataset.py",
    "data.val_images": "test_dataset.py",
    "optim.iterations": "test_transfer_run.py",
    "run.device": "../../runs/test_hardware.py",
    "run.precision": "../../runs/test_hardware.py",
    "run.workers": "test_transfer_run.py",
    "run.threads": "../../runs/test_hardware.py",
    "run.log_every": "test_transfer_run.py",
    "run.feature_cache": "test_probe.py",
}

WITH: dict[str, dict[str, Any]] = {"frozen_norm": {"freeze": ["backbone"]}, "load": {"weights": "PRETRAINED"}}
"""What a field needs beside it to matter."""


def leaves(kind: type[BaseModel], prefix: str = "") -> list[str]:
    names = []
    for name, field in kind.model_fields.items():
        nested = isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
        names += leaves(field.annotation, f"{prefix}{name}.") if nested else [prefix + name]
    return names


def test_every_field_is_listed_and_read_by_the_test_named() -> None:
    assert set(leaves(TransferConfig)) == set(CHANGED) | set(ELSEWHERE)
    for field, file in ELSEWHERE.items():
        assert field.rpartition(".")[2] in (Path(__file__).parent / file).read_text(encoding="utf-8"), field


def outcome(config: TransferConfig, folder: Path) -> tuple[Any, ...]:
    """The losses of the steps, at which steps it would evaluate, and the detections at the end."""
    data = load_data(config)
    detector, _ = load_detector(config, data)
    hardware = Hardware.resolve(config.run, heavy_loading=False)
    sides = config.detection.min_size[-1], config.detection.max_size
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
        hardware,
        RunFolder(folder),
    )
    run.save = lambda: None  # type: ignore[method-assign]
    run.run()
    losses = [line["loss"] for line in run.folder.metrics() if "loss" in line]
    found = evaluate(detector, val, list(data.labels), hardware)
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
