"""The built-in sample data: a rendered detection set and object-centric foregrounds, for trying the tool.

The pictures are synthetic. They show that a pipeline runs and learns something; they rank no methods.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from codo.data.sample_polygons import polygon_area, visible_polygons
from codo.data.sample_scenes import CLASSES, Scene, detection_scene, foreground_picture
from codo.errors import CodoError
from codo.runs.caching import atomic_folder, cache_root
from codo.runs.files import write_text

FORMAT_VERSION = 1
"""Raised when the same arguments would give other bytes; a cached set of an older format is then not used."""

SPLITS = ("train", "val")
CLASS_NAMES = tuple(f"{texture} {shape}" for texture, shape in CLASSES)

SMALLEST_VISIBLE = 0.25
"""An object of which less than this share can be seen (the rest hidden or outside) gets no annotation."""

JPEG_QUALITY = 90
SIZES = (64, 2048)
"""Smallest and largest long side of a detection picture, pixels."""

VAL_IDS_FROM = 1_000_000
"""Image ids of val begin here, so that no id means two pictures."""

_FOREGROUNDS = 2  # kind of picture in the generator's seed, after the splits' 0 and 1


def generate_sample_data(
    folder: Path,
    *,
    train: int = 200,
    val: int = 60,
    foregrounds: int = 600,
    size: int = 320,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Render the sample data into `folder`: `detection/` (COCO format, simple layout) and `foregrounds/`.

    **Classes**: eight, each a texture on a shape, such that every shape and every texture occurs in two classes.
    Colours are drawn without regard to the class. Clutter shares the shape or the texture of a class, never both.
    **Annotations**: box, polygons and area are of what can be seen, as COCO's are. An object that another one
    splits has several polygons; a hole in it is filled; under a quarter visible, it is not annotated.

    Every picture has a generator of its own, so a larger set begins with the pictures of a smaller one. The same
    arguments give the same bytes with the same NumPy and Pillow builds.

    Args:
        folder: a new or an empty folder; it appears when everything is written.
        train: training pictures, at least 1. From 8 on, every class is there.
        val: validation pictures, at least 1.
        foregrounds: unlabelled object-centric pictures, at least 1; their short side is 128 pixels.
        size: long side of the detection pictures in pixels, 64 to 2048.
        seed: at least 0.
        progress: called with (pictures done, pictures in all) after every picture.

    Raises:
        CodoError: an argument out of its range; `folder` is not empty or cannot be written.
    """
    arguments = _checked_arguments(train=train, val=val, foregrounds=foregrounds, size=size, seed=seed)
    total, done = train + val + foregrounds, 0

    def count_one() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    with atomic_folder(folder) as temporary:
        detection, unlabelled = temporary / "detection", temporary / "foregrounds"
        (detection / "images").mkdir(parents=True)
        unlabelled.mkdir()
        for kind, (split, pictures) in enumerate(zip(SPLITS, (train, val), strict=True)):
            data = _empty_coco(split, arguments)
            for index in range(pictures):
                scene = detection_scene(np.random.default_rng([seed, kind, index]), size, index % len(CLASSES))
                image_id = index + (VAL_IDS_FROM if kind else 1)
                name = f"{split}_{index:06d}.jpg"
                _save_jpeg(scene.pixels, detection / "images" / name)
                height, width = scene.owner.shape
                data["images"].append(
                    {"id": image_id, "file_name": name, "width": width, "height": height, "license": 1}
                )
                for annotation in scene_annotations(scene):
                    data["annotations"].append({"id": len(data["annotations"]) + 1, "image_id": image_id, **annotation})
                count_one()
            # One line: indented, every coordinate of every polygon would stand on a line of its own.
            write_text(detection / f"instances_{split}.json", json.dumps(data) + "\n")
        for index in range(foregrounds):
            picture = foreground_picture(np.random.default_rng([seed, _FOREGROUNDS, index]))
            _save_jpeg(picture, unlabelled / f"{index:06d}.jpg")
            count_one()


def sample_data(
    cache_dir: Path | None = None,
    *,
    train: int = 200,
    val: int = 60,
    foregrounds: int = 600,
    size: int = 320,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Return the folder of the cached sample data, rendering it the first time these arguments are asked for.

    Two processes may ask at once: each renders into a folder of its own, the first to finish gives the set.

    Args:
        cache_dir: where sets are kept, default `cache_root()`.
        train: training pictures, at least 1.
        val: validation pictures, at least 1.
        foregrounds: unlabelled object-centric pictures, at least 1.
        size: long side of the detection pictures in pixels, 64 to 2048.
        seed: at least 0.
        progress: as for `generate_sample_data`; not called when the set is there already.

    Raises:
        CodoError: as `generate_sample_data`.
    """
    arguments = _checked_arguments(train=train, val=val, foregrounds=foregrounds, size=size, seed=seed)
    key = hashlib.sha256(json.dumps({"format": FORMAT_VERSION, **arguments}, sort_keys=True).encode())
    folder = (cache_root() if cache_dir is None else Path(cache_dir)) / f"sample-{key.hexdigest()[:16]}"
    if not _is_whole(folder):
        try:
            generate_sample_data(folder, **arguments, progress=progress)
        except CodoError:
            if not _is_whole(folder):  # else another process was first, and its set is the same
                raise
    return folder


@dataclass(frozen=True)
class SampleCounts:
    """What a sample data folder holds.

    Attributes:
        images: split, or `foregrounds` -> pictures.
        boxes: split -> class name -> annotations.
    """

    images: dict[str, int]
    boxes: dict[str, dict[str, int]]


def count_sample_data(folder: Path) -> SampleCounts:
    """Count the pictures and boxes that `generate_sample_data` wrote to `folder`."""
    images, boxes = {}, {}
    for split in SPLITS:
        data = json.loads((folder / "detection" / f"instances_{split}.json").read_text(encoding="utf-8"))
        names = {category["id"]: category["name"] for category in data["categories"]}
        images[split] = len(data["images"])
        boxes[split] = dict.fromkeys(names.values(), 0)
        for annotation in data["annotations"]:
            boxes[split][names[annotation["category_id"]]] += 1
    images["foregrounds"] = len(list((folder / "foregrounds").glob("*.jpg")))
    return SampleCounts(images, boxes)


def scene_annotations(scene: Scene) -> list[dict[str, Any]]:
    """List the scene's objects in COCO's annotation format, without ids of image and annotation; xywh boxes."""
    annotations = []
    for index, item in enumerate(scene.items):
        if item.label is None or scene.visible_fraction(index) < SMALLEST_VISIBLE:
            continue
        polygons = [polygon.round(2) for polygon in visible_polygons(scene.owner == index)]
        if not polygons:
            continue
        corners = np.concatenate(polygons)
        (x0, y0), (x1, y1) = corners.min(axis=0), corners.max(axis=0)
        annotations.append(
            {
                "category_id": item.label + 1,
                "bbox": [float(x0), float(y0), round(float(x1 - x0), 2), round(float(y1 - y0), 2)],
                "area": round(sum(polygon_area(polygon) for polygon in polygons), 2),
                "iscrowd": 0,
                "segmentation": [polygon.ravel().tolist() for polygon in polygons],
            }
        )
    return annotations


def _is_whole(folder: Path) -> bool:
    # Folders appear by renaming, when everything is in them; the look inside tells one from an empty folder.
    return (folder / "detection").is_dir() and (folder / "foregrounds").is_dir()


def _checked_arguments(**arguments: int) -> dict[str, int]:
    low, high = SIZES
    for name, value in arguments.items():
        if name == "size" and not low <= value <= high:
            raise CodoError(f"sample data: size is {value}; give {low} to {high} pixels")
        least = 0 if name == "seed" else 1
        if value < least:
            raise CodoError(f"sample data: {name} is {value}; give {least} or more")
    return arguments


def _empty_coco(split: str, arguments: dict[str, int]) -> dict[str, Any]:
    return {
        "info": {
            "description": "Synthetic pictures rendered by codo for trying the tool; no photographs, no basis for "
            "conclusions about methods",
            "version": str(FORMAT_VERSION),
            "split": split,
            "arguments": arguments,
        },
        "licenses": [{"id": 1, "name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"}],
        "images": [],
        "annotations": [],
        "categories": [
            {"id": number, "name": name, "supercategory": name.split()[1]}
            for number, name in enumerate(CLASS_NAMES, start=1)
        ],
    }


def _save_jpeg(pixels: NDArray[np.uint8], path: Path) -> None:
    Image.fromarray(pixels).save(path, quality=JPEG_QUALITY)
