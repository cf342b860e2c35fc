"""Which images the probes look at: drawn by the probe's seed, the same for every method."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from codo.data.coco import split_paths
from codo.data.images import ImageError, list_images
from codo.errors import CodoError
from codo.runs.seed import generator

INSTANCES, BACKGROUNDS = 64, 8
"""How many are taken where no number is asked for."""


@dataclass(frozen=True)
class ProbeImages:
    """Images in the order in which they are tried; of those that can be read the first ones are taken.

    Attributes:
        folder: of the foregrounds.
        foregrounds: paths.
        instances: how many of them to take.
        backgrounds: paths.
        backgrounds_per_instance: how many of them to take.
        fewest: of both how many will do, where some cannot be read: as many as were asked for, or 2.
        held_out: whether the run has trained on none of them.
        described: where they come from, for records.
    """

    folder: Path
    foregrounds: list[Path]
    instances: int
    backgrounds: list[Path]
    backgrounds_per_instance: int
    fewest: tuple[int, int]
    held_out: bool
    described: dict[str, str]


def choose_images(
    foregrounds: Path,
    backgrounds: Path | None,
    *,
    trained: Collection[Path] | None,
    pasted: Collection[Path] | None,
    instances: int | None = None,
    backgrounds_per_instance: int | None = None,
    seed: int = 0,
) -> ProbeImages:
    """Choose the probe's images.

    Foregrounds: those that the run did not train on where enough remain, else all. Backgrounds: the validation images
    of a COCO-format data set; else all images of the folder; without a folder other foregrounds. The order depends on
    the seed and the folders' names alone, so that methods trained on the same images are probed on the same ones.

    Args:
        foregrounds: folder.
        backgrounds: COCO-format data set or folder, or None.
        trained: the foregrounds that the run was trained on; None where that cannot be told.
        pasted: the backgrounds that the run pasted on; None where that cannot be told.
        instances: N; None takes 64, or as many as there are.
        backgrounds_per_instance: M; None takes 8, or as many as there are.
        seed: of the probe.

    Raises:
        CodoError: a folder that cannot be used, or fewer images than asked for.
    """
    everything = list_images(foregrounds)
    order = generator("probe foregrounds", seed).permutation(len(everything))
    candidates = [everything[i] for i in order]
    known, covered = ({_identity(path) for path in paths or ()} for paths in (trained, pasted))
    unseen = [path for path in candidates if _identity(path) not in known]
    needed = (instances or INSTANCES) * (1 if backgrounds is not None else 2)
    fresh = trained is not None and len(unseen) >= needed
    candidates = unseen if fresh else candidates
    validation = split_paths(backgrounds, "val") if backgrounds is not None else ()
    scenes: Sequence[Path]
    if backgrounds is None:  # half of the foregrounds are the others' backgrounds
        half = len(candidates) // 2
        name, scenes = "other foregrounds", candidates[half:]
        candidates = candidates[:half]
    elif validation:
        name, scenes = f"{backgrounds.name}, validation images", validation
    else:
        name, scenes = backgrounds.name, list_images(backgrounds)
    seen = known | covered  # a foreground may be pasted on, and be among the scenes here
    held_out = None not in (trained, pasted) and seen.isdisjoint(map(_identity, (*candidates, *scenes)))
    scenes = [scenes[i] for i in generator("probe backgrounds", seed).permutation(len(scenes))]
    return ProbeImages(
        foregrounds,
        candidates,
        _number(instances, INSTANCES, len(candidates), "--instances", "foregrounds"),
        scenes,
        _number(backgrounds_per_instance, BACKGROUNDS, len(scenes), "--backgrounds-per-instance", "backgrounds"),
        (instances or 2, backgrounds_per_instance or 2),
        held_out,
        {"foregrounds": foregrounds.name + (", not trained on" if fresh else ""), "backgrounds": name},
    )


def _number(asked: int | None, default: int, there: int, flag: str, what: str) -> int:
    if there < max(2, asked or 2):
        if asked is None:
            raise CodoError(f"a probe needs 2 {what} or more, there are {there}")
        raise CodoError(f"{flag}: {max(2, asked)} {what} are needed, there are {there}")
    return asked or min(default, there)


@cache
def _folder(path: str) -> str:
    return os.path.realpath(path)


def _identity(path: Path) -> tuple[str, str]:
    """Name a file however its folder is spelt, without a look at each file."""
    return _folder(os.path.dirname(os.path.abspath(path))), path.name


def take(
    paths: Sequence[Path], count: int, load: Callable[[Path], np.ndarray], least: int | None = None
) -> tuple[list[Path], np.ndarray]:
    """Load the first `count` images that can be read.

    Raises:
        CodoError: there are fewer than `least`, by default `count`.
    """
    found: list[Path] = []
    pixels: list[np.ndarray] = []
    for path in paths:
        if len(found) == count:
            break
        try:
            pixels.append(load(path))
            found.append(path)
        except ImageError:
            continue
    needed = count if least is None else least
    if len(found) < needed:
        raise CodoError(f"probe: {needed} images are needed, only {len(found)} of {len(paths)} can be read")
    return found, np.stack(pixels)


def find_manifest(foregrounds: Path) -> Path | None:
    """Find `manifest.csv` in the folder of foregrounds or beside it."""
    for folder in (foregrounds, foregrounds.parent):
        if (folder / "manifest.csv").is_file():
            return folder / "manifest.csv"
    return None


def read_labels(manifest: Path, foregrounds: Path) -> dict[Path, str]:
    """Read the labels of the images in a folder.

    Args:
        manifest: CSV with the columns `file` (posix path relative to the folder) and `label`.
        foregrounds: the folder. Names that are not in its listing are passed over: nothing else is opened.

    Returns:
        Path, as `list_images` gives it -> label.

    Raises:
        CodoError: not such a file, or it names none of the folder's images.
    """
    try:
        with open(manifest, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            missing = {"file", "label"} - set(reader.fieldnames or ())
            if missing:
                raise CodoError(f"{manifest}: no column {' and '.join(sorted(missing))}; there must be file and label")
            rows = {row["file"]: row["label"] for row in reader if row["label"]}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise CodoError(f"cannot read the manifest {manifest}: {error}") from error
    paths = list_images(foregrounds)
    labels = {path: rows[name] for path in paths if (name := path.relative_to(foregrounds).as_posix()) in rows}
    if not labels:
        raise CodoError(f"{manifest}: none of its {len(rows)} files is an image in {foregrounds}")
    return labels
