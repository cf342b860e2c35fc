"""COCO's metrics of detections: by hotcoco, which computes pycocotools' numbers many times faster, or by pycocotools.

hotcoco (Rust, MIT, wheels for Linux, macOS and Windows, numpy alone beneath it) has pycocotools' API; the tests hold
it to pycocotools' numbers, 1e-12, on real and adversarial cases. Where it is not installed, pycocotools is used.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from codo.data.coco import CocoDataset
from codo.data.masks import has_mask, polygons_of

METRIC_NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
"""COCO's twelve numbers, in pycocotools' order: s, m, l are areas under 32^2, under 96^2, and above, in pixels."""

TIDE_NAMES = {
    "Cls": "classification",
    "Loc": "localisation",
    "Both": "both",
    "Dupe": "duplicate",
    "Bkg": "background",
    "Miss": "missed",
}

Kind = Literal["bbox", "segm"]
Engine = Literal["auto", "hotcoco", "pycocotools"]


@dataclass(frozen=True)
class CocoMetrics:
    """What COCO's evaluation says, in per cent (0-100); None where there is no box to find.

    Attributes:
        values: the twelve numbers by `METRIC_NAMES`.
        per_class: category id -> AP.
        errors: what mending each kind of error would add to AP50 (TIDE): `classification` (right place, wrong class),
            `localisation` (right class, IoU .1 to .5), `both`, `duplicate`, `background` (IoU under .1), `missed`.
            Empty where it was not asked for, or hotcoco is not installed.

    Source:
        TIDE: Bolya et al., arXiv 2008.08115.
    """

    values: dict[str, float | None]
    per_class: dict[int, float | None]
    errors: dict[str, float]


class Figures(NamedTuple):
    """What an engine computes, as it comes: -1 where there is nothing to find.

    Attributes:
        stats: the twelve numbers, 0..1.
        precision: `(IoU, recall, class, area, maxDets)`.
        errors: TIDE's, 0..1, by its own names.
    """

    stats: np.ndarray
    precision: np.ndarray
    errors: dict[str, float]


def coco_metrics(
    ground_truth: CocoDataset,
    results: Sequence[dict[str, Any]],
    skip: Collection[int] = (),
    kind: Kind = "bbox",
    engine: Engine = "auto",
    *,
    breakdown: bool = True,
) -> CocoMetrics:
    """Compute COCO's twelve metrics, AP per class, and the breakdown of errors, quietly.

    Args:
        ground_truth: with crowds, which count as pycocotools counts them: found or missed, no matter.
        results: in COCO's result format, of images of `ground_truth`; may be empty. For `segm` each has a
            `segmentation`, compressed RLE of its image's size, and its area is the mask's, as in detectron2.
        skip: ids of images to leave out on both sides.
        kind: boxes or masks. For masks, annotations without one are left out.
        engine: `auto` takes hotcoco where it is installed.
        breakdown: compute `errors`, the slowest part.

    Raises:
        ImportError: `engine` is hotcoco, and it is not installed.
    """
    figures = coco_figures(ground_truth, results, skip, kind, engine, breakdown=breakdown)
    values = {name: _percent(value) for name, value in zip(METRIC_NAMES, figures.stats, strict=True)}
    per_class = {}
    for k, category in enumerate(sorted(ground_truth.categories)):
        precision = figures.precision[:, :, k, 0, -1]  # all areas, 100 detections
        defined = precision[precision > -1]
        per_class[category] = _percent(defined.mean() if defined.size else -1.0)
    errors = {name: round(100 * figures.errors[key], 4) for key, name in TIDE_NAMES.items() if key in figures.errors}
    return CocoMetrics(values, per_class, errors)


def coco_figures(
    ground_truth: CocoDataset,
    results: Sequence[dict[str, Any]],
    skip: Collection[int] = (),
    kind: Kind = "bbox",
    engine: Engine = "auto",
    *,
    breakdown: bool = True,
) -> Figures:
    """Compute what `coco_metrics` rounds and names; the same arguments."""
    fast = _hotcoco() if engine != "pycocotools" else None
    if engine == "hotcoco" and fast is None:
        raise ImportError("hotcoco is not installed")
    images = [image for image in ground_truth.images if image.id not in skip]
    truth = [a for image in images for a in ground_truth.annotations[image.id] if kind == "bbox" or has_mask(a)]
    found = [result for result in results if result["image_id"] not in skip]
    ranks = Ranks(
        _ranked({image.id for image in images} | {result["image_id"] for result in found}),
        _ranked({*ground_truth.categories, *(result["category_id"] for result in found)}),
    )
    sizes = [{"id": ranks.images[image.id], "width": image.width, "height": image.height} for image in images]
    names = sorted(ground_truth.categories.items())
    classes = [{"id": ranks.classes[category], "name": name} for category, name in names]
    with contextlib.redirect_stdout(io.StringIO()):
        pair = (_hotcoco_pair if fast else _pycocotools_pair)(sizes, classes, truth, found, ranks, kind)
        evaluation = (fast.COCOeval if fast else COCOeval)(*pair, kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        errors = evaluation.tide_errors()["delta_ap"] if fast and breakdown else {}
    return Figures(np.asarray(evaluation.stats), evaluation.eval["precision"], errors)


def _hotcoco() -> Any:
    try:
        import hotcoco
    except ImportError:
        return None
    return hotcoco


Entries = list[dict[str, Any]]


class Ranks(NamedTuple):
    """Numbers 1, 2, ... in place of ids: the engines take no negative ones, and round those beyond 2^53.

    Attributes:
        images: id -> number, in the ids' order, which decides between equal scores.
        classes: likewise.
    """

    images: dict[int, int]
    classes: dict[int, int]


def _ranked(ids: set[int]) -> dict[int, int]:
    return {found: rank for rank, found in enumerate(sorted(ids), start=1)}


def _hotcoco_pair(
    images: Entries, classes: Entries, truth: Entries, found: Entries, ranks: Ranks, kind: Kind
) -> tuple[Any, Any]:
    """Hand both sides over as columns: a dict an annotation would take longer to build than the metrics take."""
    import hotcoco

    coco = hotcoco.COCO.from_arrays(
        images,
        classes,
        np.array([ranks.images[a["image_id"]] for a in truth], np.int64),
        np.array([ranks.classes[a["category_id"]] for a in truth], np.int64),
        _boxes(truth),
        area=np.array([_area(a) for a in truth], np.float64),
        iscrowd=np.array([a.get("iscrowd", 0) for a in truth], np.int64),
        segmentation=[_clean(a["segmentation"]) for a in truth] if kind == "segm" else None,
    )
    rows = np.empty((len(found), 7))
    rows[:, 0] = [ranks.images[r["image_id"]] for r in found]
    rows[:, 1:5] = _boxes(found)
    rows[:, 5] = [r["score"] for r in found]
    rows[:, 6] = [ranks.classes[r["category_id"]] for r in found]
    if kind == "bbox":
        return coco, coco.load_res(rows)
    masks = [r["segmentation"] for r in found]
    detections = coco.load_res(rows, segmentation=masks)
    if masks:
        areas = np.asarray(hotcoco.mask.area(masks), np.float64)
        detections.update_anns(ids=np.arange(1, len(masks) + 1), area=areas)
    return coco, detections


def _pycocotools_pair(
    images: Entries, classes: Entries, truth: Entries, found: Entries, ranks: Ranks, kind: Kind
) -> tuple[Any, Any]:
    """Build pycocotools' index of both sides; its own loader would refuse an empty result list."""
    pair = []
    for entries in (truth, found):
        coco = COCO()
        annotations = []
        for number, a in enumerate(entries, start=1):  # pycocotools takes an id of 0 for "not matched"
            entry = {**a, "id": number, "iscrowd": a.get("iscrowd", 0), "area": _area(a)}
            entry |= {"image_id": ranks.images[a["image_id"]], "category_id": ranks.classes[a["category_id"]]}
            if kind == "segm":
                entry["segmentation"] = _clean(a["segmentation"])
                if "area" not in a:
                    entry["area"] = float(coco_mask.area(entry["segmentation"]))
            annotations.append(entry)
        coco.dataset = {"images": images, "categories": classes, "annotations": annotations}
        coco.createIndex()
        pair.append(coco)
    return pair[0], pair[1]


def _boxes(entries: Entries) -> np.ndarray:
    return np.array([a["bbox"] for a in entries], np.float64).reshape(-1, 4)


def _area(annotation: dict[str, Any]) -> float:
    """Take the area that the data set states (COCO's is the mask's, for boxes too), or else the box's."""
    area = annotation.get("area")
    return annotation["bbox"][2] * annotation["bbox"][3] if area is None else area


def _clean(segmentation: Any) -> Any:
    """Leave out what is no polygon; four numbers would be taken for a box."""
    return polygons_of(segmentation) if isinstance(segmentation, list) else segmentation


def _percent(value: float) -> float | None:
    """Turn pycocotools' -1 for "nothing to find" into None."""
    return None if value < 0 else round(100 * float(value), 4)
