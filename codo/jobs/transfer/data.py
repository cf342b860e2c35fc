"""The labelled data set of a transfer run: its two splits, its categories, and the share that is trained on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from codo.config.load import DATA_PATHS
from codo.config.transfer import TransferConfig
from codo.data.coco import CocoDataset, find_split, find_splits, load_coco
from codo.data.files import data_fingerprint
from codo.data.masks import check_mask, has_mask
from codo.data.sample import sample_data
from codo.errors import CodoError
from codo.jobs.transfer.detectors import kinds_of
from codo.runs.console import counter
from codo.runs.seed import generator

NO_MASK = "annotation without a mask"
"""A reason in `CocoDataset.skipped`."""


@dataclass(frozen=True)
class Data:
    """A data set, ready to train on.

    Attributes:
        name: of its folder.
        train: the images trained on, `fraction` taken.
        val: the images evaluated on.
        labels: category id -> label 1..K.
        masks: whether the detector learns masks; then they are there, and were checked.
        facts: counts and what was skipped, for the records.
        fingerprint: of both splits.
    """

    name: str
    train: CocoDataset
    val: CocoDataset
    labels: dict[int, int]
    masks: bool
    facts: dict[str, Any]
    fingerprint: str


def load_data(config: TransferConfig) -> Data:
    """Find and read both splits, and take the fraction.

    Raises:
        CodoError: absent, broken, contradictory, or without a box to learn from.
    """
    paths = _paths(config)
    whole = load_coco(paths.train_json, paths.train_images)
    val = load_coco(paths.val_json, paths.val_images)
    labels = label_map(whole, val)
    masks = "segm" in kinds_of(config.detector)
    if masks:
        for coco, path in ((whole, paths.train_json), (val, paths.val_json)):
            check_masks(coco, path)
    train = take_fraction(whole, config.data.fraction, config.seed)
    boxes = [len(training_annotations(train, image.id, masks)) for image in train.images]
    if not sum(boxes):
        crowds = sum(annotation["iscrowd"] for own in train.annotations.values() for annotation in own)
        found = whole.skipped | ({"crowd, which is no object's box": crowds} if crowds else {})
        why = "; ".join(f"{count} x {reason}" for reason, count in found.items())
        raise CodoError(
            f"data: the {len(boxes)} training images of {paths.train_json} have no boxes" + (f" ({why})" if why else "")
        )
    _check_pixels(train, paths.train_json)
    fingerprint = fingerprint_of(train, val, masks=masks)
    facts = {
        "name": paths.name,
        "layout": paths.layout,
        "train_images": len(train.images),
        "train_images_without_boxes": boxes.count(0),
        "train_boxes": sum(boxes),
        "val_images": len(val.images),
        "val_images_trained_on": len({i.path for i in whole.images} & {i.path for i in val.images}),
        "val_boxes": sum(len(training_annotations(val, image.id)) for image in val.images),
        "classes": len(labels),
        "fraction": config.data.fraction,
        "skipped": {"train": whole.skipped, "val": val.skipped},
        "fingerprint": fingerprint,
        "whole_fingerprint": fingerprint if config.data.fraction >= 1 else fingerprint_of(whole, val, masks=masks),
    }
    return Data(paths.name, train, val, labels, masks, facts, fingerprint)


def _check_pixels(coco: CocoDataset, path: Path) -> None:
    """Refuse boxes of which nearly all lie within the first pixel: they are shares of the image's sides.

    Raises:
        CodoError: nine tenths of them do, in the first thousand images.
    """
    looked_at = coco.images[:1000]
    boxes = [annotation["bbox"] for image in looked_at for annotation in coco.annotations[image.id]]
    inside = sum(x + w <= 1.01 and y + h <= 1.01 for x, y, w, h in boxes)
    if boxes and inside >= 0.9 * len(boxes):
        raise CodoError(
            f"{path}: {inside} of {len(boxes)} boxes lie within the first pixel: are they normalised? COCO's are x, y, "
            "width, height in pixels"
        )


@contextmanager
def moved_data_told(config: TransferConfig, how: str) -> Iterator[None]:
    """Add to an error of data that are not where a run's config says how to say where they are."""
    try:
        yield
    except CodoError as error:
        paths = config.data.model_dump(include=set(DATA_PATHS)).values()
        if all(path is None or Path(path).exists() for path in paths):
            raise
        raise CodoError(
            f"{error}; that is where the run had its data, as seen from {Path.cwd()}: say where they are now with {how}"
        ) from None


def training_annotations(coco: CocoDataset, image_id: int, masks: bool = False) -> list[dict]:
    """List the annotations of an image that are targets: all but crowds, whose box is no object's.

    With `masks`, those without a mask are left out too.
    """
    own = [annotation for annotation in coco.annotations[image_id] if not annotation["iscrowd"]]
    return [annotation for annotation in own if has_mask(annotation)] if masks else own


def check_masks(coco: CocoDataset, path: Path) -> None:
    """Check every mask; count in `coco.skipped` the targets that have none.

    Raises:
        CodoError: none has one, or one does not fit its image; names the annotation.
    """
    found = missing = 0
    for image in coco.images:
        for annotation in coco.annotations[image.id]:
            if not has_mask(annotation):
                missing += not annotation["iscrowd"]
                continue
            found += 1
            try:
                check_mask(annotation["segmentation"], image.width, image.height)
            except CodoError as error:
                raise CodoError(f"{path}: annotation {annotation.get('id')}: {error}") from None
    if not found:
        raise CodoError(f"{path} has no masks, which the detector learns; use one of boxes (--detector faster_rcnn)")
    if missing:
        coco.skipped[NO_MASK] = missing


def label_map(train: CocoDataset, val: CocoDataset) -> dict[int, int]:
    """Number the data set's own category ids 1..K, in their order.

    Raises:
        CodoError: the two splits disagree on a category.
    """
    if not train.categories:
        raise CodoError("data: the training annotations list no categories")
    for category, name in val.categories.items():
        known = train.categories.get(category)
        if known != name:
            says = f"calls it {known!r}" if known is not None else "does not list it"
            raise CodoError(
                f"data: category {category} is {name!r} in the validation annotations; the training file {says}"
            )
    return {category: label for label, category in enumerate(train.categories, start=1)}


def take_fraction(coco: CocoDataset, fraction: float, seed: int) -> CocoDataset:
    """Keep a share of the images, at least one.

    The images are shuffled by the seed and the first share is kept, so that a smaller share is part of a larger one.
    """
    if fraction >= 1:
        return coco
    by_id = sorted(coco.images, key=lambda image: image.id)
    order = generator("transfer fraction", seed).permutation(len(by_id))
    kept = [by_id[i] for i in order[: max(1, round(fraction * len(by_id)))]]
    return replace(coco, images=kept, annotations={image.id: coco.annotations[image.id] for image in kept})


def fingerprint_of(*splits: CocoDataset, masks: bool = False) -> str:
    """Fingerprint what is trained and evaluated on: 16 hex digits over images, boxes, areas, categories, and `masks`.

    File names and sizes stand for the pixels; folders are left out, so that a copy elsewhere keeps its fingerprint.
    """
    digest = hashlib.sha256()
    for coco in splits:
        digest.update(json.dumps(coco.categories).encode())
        for image in coco.images:
            boxes = [(a["category_id"], a["bbox"], a["iscrowd"], a["area"]) for a in coco.annotations[image.id]]
            digest.update(json.dumps([image.id, image.file_name, image.width, image.height, boxes]).encode())
            if masks:
                own = [a.get("segmentation") for a in coco.annotations[image.id]]
                digest.update(json.dumps(own).encode())
        digest.update(data_fingerprint([image.path for image in coco.images]).encode())
    return digest.hexdigest()[:16]


def val_paths(config: TransferConfig) -> tuple[str, Path, Path]:
    """Find what a run is evaluated on: the data set's name, the annotations, the folder of the images.

    The training split is not asked for.

    Raises:
        CodoError: there is no data set, or no validation split.
    """
    data = config.data
    images = data.val_images or data.images
    if data.val_json and images:
        return Path(data.val_json).resolve().parent.name, Path(data.val_json), Path(images)
    root, name = _root(config)
    json_path, folder = _val_split(root)
    return name, Path(data.val_json) if data.val_json else json_path, Path(images) if images else folder


@dataclass(frozen=True)
class _Paths:
    """The two files and two folders, and what to call the set."""

    name: str
    train_json: Path
    train_images: Path
    val_json: Path
    val_images: Path
    layout: str | None = None


def _paths(config: TransferConfig) -> _Paths:
    """Settle where the data set lies: the fields that are set, `root` for the others, else the sample data."""
    data = config.data
    if data.train_json and data.val_json and data.images:
        name = Path(data.train_json).resolve().parent.name
        return _Paths(
            name,
            Path(data.train_json),
            Path(data.images),
            Path(data.val_json),
            Path(data.val_images or data.images),
        )
    root, name = _root(config)
    found = find_splits(root)
    val_images = data.val_images or data.images
    return _Paths(
        name,
        Path(data.train_json) if data.train_json else found.train_json,
        Path(data.images) if data.images else found.train_images,
        Path(data.val_json) if data.val_json else found.val_json,
        Path(val_images) if val_images else found.val_images,
        found.layout,
    )


def _root(config: TransferConfig) -> tuple[Path, str]:
    """Settle the data set's folder and what to call it: the sample data where none is named."""
    if config.data.root is None:
        with counter("rendering sample data") as show:
            return sample_data(progress=show) / "detection", "sample-data"
    root = Path(config.data.root)
    return root, root.resolve().name


def _val_split(root: Path) -> tuple[Path, Path]:
    """Find the validation annotations and their images; of several years as `find_split`.

    Raises:
        CodoError: no folder `root`, or no such split in it.
    """
    found = find_split(root, "val")
    if found is None:
        raise CodoError(
            f"{root} has no validation annotations: instances_val.json beside images/, or "
            "annotations/instances_val2017.json beside val2017/ (any year), is expected"
        )
    return found
