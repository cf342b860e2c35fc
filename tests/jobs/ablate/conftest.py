"""A grid of seconds: two rows, two seeds, real jobs of tiny networks on made-up images."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from tests.parts import TINY_DETECTION

BASE: dict[str, Any] = {
    "preset": "codo",
    "canvas": 64,
    "views": 1,
    "model": {
        "backbone": "resnet10t",
        "fpn_channels": 16,
        "box_head_convs": 1,
        "box_head_channels": 16,
        "box_head_fc": 32,
        "projector_hidden": 32,
        "embedding": 16,
        "bn_groups": 2,
    },
    "loss": {"queue_size": 32, "negatives": "both"},
    "optim": {"epochs": 2, "batch_size": 4},
    "run": {"log_every": 1, "device": "cpu", "precision": "fp32", "workers": 0},
}

TRANSFER: dict[str, Any] = {
    "detection": TINY_DETECTION,
    "epochs": 2,
    "batch_size": 2,
    "optim": {"warmup_iterations": 2},
    "run": {"log_every": 1, "device": "cpu", "precision": "fp32", "workers": 0},
}


@pytest.fixture(scope="session")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A COCO set of six images: dark squares on grey."""
    root = tmp_path_factory.mktemp("ablate") / "squares"
    (root / "images").mkdir(parents=True)
    rng = np.random.default_rng(1)
    for split, count in {"train": 4, "val": 2}.items():
        images, annotations = [], []
        for i in range(count):
            pixels = rng.integers(90, 200, (80, 96, 3), dtype=np.uint8)
            x, y, side = (int(rng.integers(0, 40)) for _ in range(3))
            side += 24
            side = min(side, 80 - y, 96 - x)
            pixels[y : y + side, x : x + side] = 0
            name = f"{split}_{i}.png"
            Image.fromarray(pixels).save(root / "images" / name)
            images.append({"id": i, "file_name": name, "width": 96, "height": 80})
            annotations.append({"id": i, "image_id": i, "category_id": 1, "bbox": [x, y, side, side], "iscrowd": 0})
        content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "square"}]}
        (root / f"instances_{split}.json").write_text(json.dumps(content))
    return root


@pytest.fixture
def write_grid(images: Path, squares: Path, tmp_path: Path) -> Callable[..., Path]:
    """Write a grid; arguments replace its keys, None leaves one out."""

    def write(name: str = "grid", **keys: Any) -> Path:
        tree: dict[str, Any] = {
            "title": "Tiny",
            "design": "one_at_a_time",
            "base": BASE,
            "data": {"foregrounds": str(images / "foregrounds"), "backgrounds": str(squares)},
            "axes": {"no hierarchy": {"hierarchy": False}},
            "seeds": [0, 1],
            "transfer": {"tuned": TRANSFER},
        }
        tree = {key: value for key, value in (tree | keys).items() if value is not None}
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(tree, sort_keys=False))
        return path

    return write
