"""The main job on real images: preview, pretraining, transfer, evaluation, through the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from pycocotools.coco import COCO

from tests.cli.test_cli import SETS, codo

DETECTOR = [
    "--set", "detection.min_size=[96]", "--set", "detection.max_size=128", "--set", "detection.rpn_post_nms_train=50",
    "--set", "detection.rpn_post_nms_test=20", "--set", "run.workers=0", "--set", "run.threads=1",
]  # fmt: skip


def sources(real_data: Path) -> list[str]:
    return ["--foregrounds", str(real_data / "objects_open" / "images"), "--backgrounds", str(real_data / "cards")]


@pytest.fixture(scope="module")
def pretrained(real_data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("spine")
    done = codo(
        "pretrain", *sources(real_data),
        *SETS, "--set", "data.limit=16", "--epochs", "1", "--out", "first", cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder / "first"


def test_preview_of_real_images(real_data, tmp_path):
    sources = [
        "--foregrounds",
        str(real_data / "objects_open" / "images"),
        "--backgrounds",
        str(real_data / "bccd_320"),
    ]
    done = codo("preview", *sources, *SETS, "--samples", "2", "--set", "data.limit=8", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "preview.png") as sheet:
        assert sheet.size == (8 + 5 * 200, 36 + 2 * 200)


@pytest.mark.parametrize(
    ("name", "fraction"), [("cards", 0.02), ("bccd_320", 0.02), ("coco_mini", 0.05), ("tiny_coco", 0.1)]
)
def test_transfer_to_every_real_set(real_data, pretrained, tmp_path, name, fraction):
    done = codo(
        "transfer", "--detector", "faster_rcnn", "--weights", str(pretrained), "--data", str(real_data / name),
        "--fraction", str(fraction), "--epochs", "1", *DETECTOR, "--out", "run", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "AP per class" in done.stdout
    coverage = json.loads((tmp_path / "run" / "coverage.json").read_text())
    for group in ("backbone", "fpn", "box_head"):
        counts = coverage["groups"][group]["counts"]
        assert counts["matched"] > 0
        assert counts["missing"] == counts["unexpected"] == counts["reshaped"] == 0
    truth = COCO(str(real_data / name / "instances_val.json"))
    predictions = json.loads((tmp_path / "run" / "predictions.json").read_text())
    assert {p["category_id"] for p in predictions} <= set(truth.getCatIds())
    assert {p["image_id"] for p in predictions} <= set(truth.getImgIds())
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert len(summary["metrics"]) == 12
    assert len(summary["per_class"]) == len(truth.getCatIds())


@pytest.mark.parametrize("flag", ["--no-alignment", "--no-background"])
def test_ablated_runs_transfer_too(real_data, tmp_path, flag):
    done = codo(
        "pretrain", *sources(real_data),
        *SETS, "--set", "data.limit=8", "--epochs", "1", flag, "--out", "pre", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    done = codo(
        "transfer", "--weights", "pre", "--data", str(real_data / "cards"), "--dry-run", *DETECTOR, cwd=tmp_path
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "backbone" in done.stdout
