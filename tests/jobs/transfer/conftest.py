"""A made-up COCO set with ids that have holes, a crowd and an image without boxes; and a detector of a second."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from transfer_parts import ARCHITECTURE, encoder_state, metadata

from codo.config.transfer import TransferConfig
from codo.data.masks import to_rle
from codo.runs.weights_file import save_weights
from tests.parts import TINY_DETECTION

CATEGORIES = [{"id": 90, "name": "dark square"}, {"id": 7, "name": "[light] square"}]
COUNTS = {"train": 6, "val": 3}


@pytest.fixture(scope="session")
def coco_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Squares on coarse patterns, boxes without segmentation; train image 5 is empty, val image 1 has a crowd."""
    root = tmp_path_factory.mktemp("data") / "squares"
    (root / "images").mkdir(parents=True)
    rng = np.random.default_rng(1)
    for split, count in COUNTS.items():
        images, annotations = [], []
        for i in range(count):
            width, height = (96, 80) if i % 2 else (80, 96)
            coarse = Image.fromarray(rng.integers(60, 200, (5, 6, 3), dtype=np.uint8))
            pixels = np.array(coarse.resize((width, height), Image.Resampling.BICUBIC))
            name, image_id = f"{split}_{i}.png", 10 * i + (500 if split == "val" else 0)
            images.append({"id": image_id, "file_name": name, "width": width, "height": height})
            for j, category in enumerate(CATEGORIES if (split, i) != ("train", 5) else []):
                side = int(rng.integers(24, 36))
                x, y = 40 * j + int(rng.integers(0, 40 - side + 1)), int(rng.integers(0, height - side))
                pixels[y : y + side, x : x + side] = 0 if category["id"] == 90 else 255
                annotations.append(
                    {
                        "id": len(annotations),  # from 0, as some tools number
                        "image_id": image_id,
                        "category_id": category["id"],
                        "bbox": [x, y, side, side],
                        "iscrowd": int((split, i, j) == ("val", 1, 1)),
                    }
                )
            Image.fromarray(pixels).save(root / "images" / name)
        content = {"images": images, "annotations": annotations, "categories": CATEGORIES}
        (root / f"instances_{split}.json").write_text(json.dumps(content))
    return root


@pytest.fixture
def make_config(coco_root: Path) -> Callable[..., TransferConfig]:
    """Make a config of a run of seconds; arguments are nested fields."""

    def make(**fields: Any) -> TransferConfig:
        tree: dict[str, Any] = {
            "data": {"root": str(coco_root)},
            "architecture": ARCHITECTURE.model_dump(),
            "detection": TINY_DETECTION,
            "optim": {"epochs": 2, "batch_size": 2, "lr": 0.02, "warmup_iterations": 2},
            "run": {"device": "cpu", "precision": "fp32", "workers": 0, "threads": 1, "log_every": 1},
        }
        for key, value in fields.items():
            tree[key] = {**tree.get(key, {}), **value} if isinstance(value, dict) else value
        return TransferConfig.model_validate(tree)

    return make


@pytest.fixture
def pretrained(tmp_path: Path) -> Path:
    """A pretraining run's folder."""
    save_weights(tmp_path / "pretrained" / "weights.safetensors", encoder_state(), metadata())
    (tmp_path / "pretrained" / "config.yaml").write_text("{}")
    return tmp_path / "pretrained"


@pytest.fixture
def masked_root(coco_root: Path, tmp_path: Path) -> Path:
    """A copy of `coco_root` with masks: polygons, compressed and uncompressed RLE in turns; one square has none."""
    root = tmp_path / "masked"
    shutil.copytree(coco_root, root)
    for split in COUNTS:
        file = root / f"instances_{split}.json"
        content = json.loads(file.read_text())
        sizes = {image["id"]: (image["width"], image["height"]) for image in content["images"]}
        for n, annotation in enumerate(content["annotations"]):
            x, y, w, h = annotation["bbox"]
            polygons = [[x, y, x + w, y, x + w, y + h, x, y + h]]
            rle = to_rle(polygons, *sizes[annotation["image_id"]])
            column = coco_mask.decode(rle).ravel(order="F").tolist()
            lengths = [len(list(run)) for _, run in itertools.groupby(column)]
            encodings: list[Any] = [
                polygons,
                {"size": rle["size"], "counts": rle["counts"].decode()},
                {"size": rle["size"], "counts": [0] * column[0] + lengths},
            ]
            if (split, n) != ("train", 4):
                annotation["segmentation"] = encodings[n % 3]
        file.write_text(json.dumps(content))
    return root
