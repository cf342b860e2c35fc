"""Detections of pictures without labels: drawn, and in COCO's format."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from codo.data.coco import CocoImage
from codo.data.images import ImageError, decode, list_images
from codo.errors import CodoError
from codo.jobs.transfer.dataset import fit
from codo.jobs.transfer.draw import draw_detections
from codo.jobs.transfer.evaluate import detect
from codo.jobs.transfer.finished import open_run
from codo.runs.caching import atomic_folder
from codo.runs.console import counter, warn
from codo.runs.files import atomic_path, write_json, write_text
from codo.runs.record import RunFolder

QUALITY = 90
"""Of the JPEGs."""


@dataclass(frozen=True)
class Prediction:
    """What `predict` wrote.

    Attributes:
        path: the folder.
        images: pictures that were read.
        results: COCO's result format; an `image_id` is an id of images.json.
        unreadable: what was wrong with the others.
        weights: the file that the detector is of, and of which step it is.
    """

    path: Path
    images: int
    results: list[dict[str, Any]]
    unreadable: list[str]
    weights: str


def predict(
    run: Path,
    images: Sequence[Path],
    *,
    out: Path | None = None,
    score_threshold: float = 0.5,
    best: bool = False,
    changes: Mapping[str, Any] | None = None,
) -> Prediction:
    """Find objects in pictures with the detector of a finished transfer run.

    Writes `pictures/` (JPEGs with boxes, labels and masks), predictions.json (COCO's result format) and images.json
    (COCO's lists of images and categories, which the results refer to).

    Args:
        run: the run folder.
        images: files, or folders of which all images are taken.
        out: a new folder; None is `runs/predict-N`.
        score_threshold: detections below it are left out.
        best: take the detector of the highest AP in place of that of the end (`open_run`).
        changes: dotted field -> value of the run's config: `run.device`, `run.precision`.

    Raises:
        CodoError: no finished run, no images, or not one that can be read.

    Example:
        >>> predict(Path("runs/first"), [Path("photos")]).results[0]["score"]  # doctest: +SKIP
        0.97
    """
    RunFolder.check_free(out, resumable=False)
    files = _files(images)
    opened = open_run(run, {**(changes or {}), "detection.score_threshold": score_threshold}, best=best)
    listed: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    unreadable: list[str] = []
    with _new_folder(out) as (place, folder), counter("predicting") as tell:
        for done, (name, path) in enumerate(files.items(), start=1):
            tell(done - 1, len(files))
            try:
                pixels = decode(path)
            except ImageError as error:
                unreadable.append(str(error))
                warn(f"left out: {error}")
                continue
            height, width = pixels.shape[:2]
            source = CocoImage(done, name, path, width, height)
            planes = torch.from_numpy(fit(pixels, *opened.config.detection.sides).transpose(2, 0, 1).copy())
            found = detect(opened.detector, planes, source, list(opened.categories), opened.hardware)
            found = [result for result in found if result["score"] >= score_threshold]
            with atomic_path(folder / "pictures" / f"{name}.jpg") as temporary:
                draw_detections(pixels, found, opened.categories).save(temporary, format="JPEG", quality=QUALITY)
            listed.append({"id": done, "file_name": name, "width": width, "height": height})
            results += found
        tell(len(files), len(files))
        if not listed:
            raise CodoError(f"not one of {len(files)} images can be read, e.g. {unreadable[0]}")
        categories = [{"id": category, "name": name} for category, name in opened.categories.items()]
        write_json(folder / "images.json", {"images": listed, "categories": categories})
        write_text(folder / "predictions.json", json.dumps(results) + "\n")
    return Prediction(place, len(listed), results, unreadable, opened.weights)


@contextmanager
def _new_folder(out: Path | None) -> Iterator[tuple[Path, Path]]:
    """Yield where the results will be, and the folder to write them into; if the block fails, nothing is left."""
    place = RunFolder.create(None, "predict").path if out is None else out  # made at once, the number is taken
    try:
        with atomic_folder(place) as folder:
            yield place, folder
    except BaseException:
        if out is None:
            place.rmdir()
        raise


def _files(given: Sequence[Path]) -> dict[str, Path]:
    """List the images by the names that they get below `pictures/`: their own, or relative to the folder given."""
    if not given:
        raise CodoError("no images: name files or folders")
    found: dict[str, Path] = {}
    seen: set[Path] = set()
    for path in given:
        if path.is_dir():
            pairs = [(file.relative_to(path).as_posix(), file) for file in list_images(path)]
        elif path.is_file():
            pairs = [(path.name, path)]
        else:
            raise CodoError(f"no image or folder at {path}")
        for name, file in pairs:
            if file in seen:
                continue
            seen.add(file)
            number, free = 2, name
            while free in found:
                pure = PurePosixPath(name)
                free = str(pure.with_name(f"{pure.stem}-{number}{pure.suffix}"))
                number += 1
            found[free] = file
    return found
