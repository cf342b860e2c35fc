"""COCO's metrics of detections: by hotcoco, which computes pycocotools' numbers many times faster, or by pycocotools.

hotcoco (Rust, MIT, wheels for Linux, macOS and Windows, numpy alone beneath it) has pycocotools' API; the tests hold
it to pycocotools' numbers, 1e-12, on real and adversarial cases. Where it is not installed, pycocotools is used.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from codo.data.coco import CocoDataset
from codo.data.masks import has_mask, to_rle

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
            Empty where hotcoco is not installed.

    Source:
        TIDE: Bolya et al., arXiv 2008.08115.
    """

    values: dict[str, float | None]
    per_class: dict[int, float | None]
    errors: dict[str, float]


def coco_metrics(
    ground_truth: CocoDataset,
    results: Sequence[dict[str, Any]],
    skip: Collection[int] = (),
    kind: Kind = "bbox",
    engine: Engine = "auto",
) -> CocoMetrics:
    """Compute COCO's twelve metrics, AP per class, and the breakdown of errors, quietly.

    Args:
        ground_truth: with crowds, which count as pycocotools counts them: found or missed, no matter.
        results: in COCO's result format, with `segmentation` (compressed RLE) for `segm`; may be empty.
        skip: ids of images to leave out on both sides.
        kind: boxes or masks. For masks, annotations without one are left out.
        engine: `auto` takes hotcoco where it is installed.
    """
    images = [image for image in ground_truth.images if image.id not in skip]
    sizes = {image.id: (image.width, image.height) for image in images}
    truth = [a for image in images for a in ground_truth.annotations[image.id]]
    detections = [result for result in results if result["image_id"] not in skip]
    if kind == "segm":
        truth = [a for a in truth if has_mask(a)]
    content = {
        "images": [{"id": image.id, "width": image.width, "height": image.height} for image in images],
        "categories": [{"id": category, "name": name} for category, name in ground_truth.categories.items()],
    }
    fast = _hotcoco() if engine != "pycocotools" else None
    if engine == "hotcoco" and fast is None:
        raise ImportError("hotcoco is not installed")
    with contextlib.redirect_stdout(io.StringIO()):
        pair = [
            (fast.COCO if fast else _coco)({**content, "annotations": _annotations(entries, kind, sizes)})
            for entries in (truth, detections)
        ]
        evaluation = (fast.COCOeval if fast else COCOeval)(*pair, kind)
        evaluation.evaluate()
        evaluation.accumulate()
        stats = _stats(evaluation)
        errors = evaluation.tide_errors()["delta_ap"] if fast else {}
    values = {name: _percent(value) for name, value in zip(METRIC_NAMES, stats, strict=True)}
    # (IoU, recall, class, area, maxDets): all areas, 100 detections.
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    per_class = {}
    for k, category in enumerate(evaluation.params.catIds):
        defined = precision[:, :, k][precision[:, :, k] > -1]
        per_class[int(category)] = _percent(defined.mean() if defined.size else -1.0)
    named = {name: round(100 * errors[key], 4) for key, name in TIDE_NAMES.items() if key in errors}
    return CocoMetrics(values, per_class, named)


def _hotcoco() -> Any:
    try:
        import hotcoco
    except ImportError:
        return None
    return hotcoco


def _stats(evaluation: Any) -> Sequence[float]:
    """Summarise, without printing."""
    evaluation.summarize()
    return evaluation.stats


def _annotations(entries: Sequence[dict[str, Any]], kind: Kind, sizes: dict[int, tuple[int, int]]) -> list[Any]:
    """Keep of annotations or results what the metrics read; ids are numbered anew (pycocotools: 0 is "not matched")."""
    found = []
    for number, a in enumerate(entries, start=1):
        box = a["bbox"]
        entry = {
            "id": number,
            "image_id": a["image_id"],
            "category_id": a["category_id"],
            "bbox": box,
            "iscrowd": a.get("iscrowd", 0),
            "area": a["area"] if "area" in a else box[2] * box[3],
        }
        if "score" in a:
            entry["score"] = a["score"]
        if kind == "segm":
            rle = to_rle(a["segmentation"], *sizes[a["image_id"]])
            entry["segmentation"] = {"size": rle["size"], "counts": rle["counts"].decode()}
            if "area" not in a:
                entry["area"] = float(coco_mask.area(rle))
        found.append(entry)
    return found


def _coco(content: dict[str, Any]) -> COCO:
    """Build pycocotools' index; its own loader would refuse an empty result list."""
    coco = COCO()
    coco.dataset = content
    coco.createIndex()
    return coco


def _percent(value: float) -> float | None:
    """Turn pycocotools' -1 for "nothing to find" into None."""
    return None if value < 0 else round(100 * float(value), 4)
