import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from codo.data.coco import CocoDataset, CocoImage, load_coco
from codo.data.masks import to_rle
from codo.jobs.transfer.coco_metrics import METRIC_NAMES, coco_metrics

SIDE = 200


def dataset(annotations: list[dict[str, Any]], images: int = 2) -> CocoDataset:
    """Images 1, 2, ..., categories 3 and 11."""
    ids = range(1, images + 1)
    per_image = {i: [{"iscrowd": 0, **a} for a in annotations if a["image_id"] == i] for i in ids}
    return CocoDataset(
        [CocoImage(i, f"{i}.jpg", Path(f"{i}.jpg"), SIDE, SIDE) for i in ids], per_image, {3: "a", 11: "b"}, {}
    )


def box(image_id: int, category: int, *bbox: float, **more: Any) -> dict[str, Any]:
    return {"image_id": image_id, "category_id": category, "bbox": list(bbox), **more}


TRUTH = [box(1, 3, 10, 10, 50, 60), box(1, 11, 80, 80, 100, 100), box(2, 11, 5, 5, 40, 40)]


def found(truth: list[dict[str, Any]], score: float = 0.9) -> list[dict[str, Any]]:
    return [{**a, "score": score} for a in truth]


def test_perfect_detections_under_ids_with_holes() -> None:
    metrics = coco_metrics(dataset(TRUTH), found(TRUTH))
    assert list(metrics.values) == list(METRIC_NAMES)
    assert metrics.values["AP"] == metrics.values["AR100"] == 100
    assert metrics.values["APs"] is None  # there is no small box
    assert metrics.per_class == {3: 100, 11: 100}


def test_no_detections_is_zero_and_not_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    metrics = coco_metrics(dataset(TRUTH), [])
    assert metrics.values["AP"] == metrics.values["AR1"] == 0
    assert metrics.per_class == {3: 0, 11: 0}
    assert capsys.readouterr().out == ""


def test_no_boxes_at_all_has_no_metrics() -> None:
    metrics = coco_metrics(dataset([]), found(TRUTH))
    assert set(metrics.values.values()) == {None}
    assert metrics.per_class == {3: None, 11: None}


def test_the_first_annotation_counts() -> None:
    """pycocotools takes an id of 0 for "no match"."""
    truth = [{**a, "id": i} for i, a in enumerate(TRUTH)]
    assert coco_metrics(dataset(truth), found(TRUTH)).values["AP"] == 100


def test_detections_in_a_crowd_are_no_mistakes() -> None:
    inside = [box(2, 3, 20 + 5 * i, 20, 30, 30, score=0.95) for i in range(5)]
    crowd = box(2, 3, 0, 0, 150, 150, iscrowd=1)
    assert coco_metrics(dataset([*TRUTH, crowd]), [*found(TRUTH), *inside]).per_class[3] == 100
    without = coco_metrics(dataset(TRUTH), [*found(TRUTH), *inside]).per_class[3]
    assert without is not None
    assert without < 50


def test_skipped_images_count_on_neither_side() -> None:
    results = [*found(TRUTH[:2]), box(2, 3, 0, 0, 9, 9, score=0.99)]
    assert coco_metrics(dataset(TRUTH), results, skip={2}).values["AP"] == 100
    all_images = coco_metrics(dataset(TRUTH), results).values["AP"]
    assert all_images is not None
    assert all_images < 100


def test_a_missing_area_is_the_boxs() -> None:
    with_area = [{**a, "area": a["bbox"][2] * a["bbox"][3]} for a in TRUTH]
    assert coco_metrics(dataset(TRUTH), found(TRUTH)) == coco_metrics(dataset(with_area), found(TRUTH))
    other = [{**a, "area": 10.0} for a in TRUTH]
    assert coco_metrics(dataset(other), found(TRUTH)).values["APs"] == 100


def test_equals_pycocotools_own_route_through_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    truth, results = [], []
    for image in range(1, 21):
        for _ in range(6):
            x, y, w, h = rng.uniform(0, 90, 2).tolist() + rng.uniform(10, 110, 2).tolist()
            category = int(rng.choice([3, 11]))
            truth.append(box(image, category, x, y, w, h, area=w * h * 0.7, iscrowd=int(rng.random() < 0.1)))
            if rng.random() < 0.8:
                moved = (np.array([x, y, w, h]) + rng.normal(0, 4, 4)).clip(1).tolist()
                results.append(box(image, category, *moved, score=float(rng.random())))
    content = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "width": SIDE, "height": SIDE} for i in range(1, 21)],
        "categories": [{"id": 3, "name": "a"}, {"id": 11, "name": "b"}],
        "annotations": [{"id": n + 1, **a} for n, a in enumerate(copy.deepcopy(truth))],
    }
    (tmp_path / "truth.json").write_text(json.dumps(content))
    reference = COCO(str(tmp_path / "truth.json"))
    evaluation = COCOeval(reference, reference.loadRes(copy.deepcopy(results)), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    capsys.readouterr()
    ours = coco_metrics(dataset(truth, images=20), results)
    expected = [100 * v if v >= 0 else None for v in evaluation.stats]
    assert list(ours.values.values()) == pytest.approx(expected, abs=1e-3)
    assert 20 < ours.values["AP"] < 90  # type: ignore[operator]
    mean = sum(v for v in ours.per_class.values() if v is not None) / 2
    assert mean == pytest.approx(ours.values["AP"], abs=1e-3)


LARGE, FAR = (80, 80, 100, 100), (5, 120, 60, 60)


@pytest.mark.parametrize(
    ("name", "results"),
    [
        ("classification", [box(1, 3, *LARGE, score=0.9)]),
        ("localisation", [box(1, 11, 140, 80, 60, 100, score=0.9)]),
        ("both", [box(3, 11, 140, 80, 60, 100, score=0.9), box(2, 11, 5, 5, 40, 40, score=0.8)]),
        ("background", [box(1, 11, *FAR, score=0.9), box(1, 11, *LARGE, score=0.5)]),
        (
            "duplicate",
            [*found([box(1, 11, *LARGE)] * 2), box(2, 11, 5, 5, 40, 40, score=0.1)],
        ),
        ("missed", [box(2, 11, 5, 5, 40, 40, score=0.9)]),
    ],
)
def test_the_breakdown_names_the_error(name: str, results: list[dict[str, Any]]) -> None:
    """One kind of error in each, and perhaps objects not found: mending it would add AP50."""
    coco = dataset([box(1, 11, *LARGE), box(2, 11, 5, 5, 40, 40), box(3, 3, *LARGE)], images=3)
    errors = coco_metrics(coco, results).errors
    assert list(errors) == ["classification", "localisation", "both", "duplicate", "background", "missed"]
    assert errors[name] > 5
    others = {"classification", "localisation", "both", "duplicate", "background"} - {name}
    assert all(errors[other] == 0 for other in others)
    assert coco_metrics(coco, results, breakdown=False).errors == {}


def test_mask_metrics_look_at_masks() -> None:
    """The box is right and the mask covers a quarter of it: the box metrics see no mistake."""
    whole = [[80, 80, 180, 80, 180, 180, 80, 180]]
    quarter = [[80, 80, 130, 80, 130, 130, 80, 130]]
    coco = dataset([box(1, 11, *LARGE, segmentation=whole), box(2, 11, 5, 5, 40, 40)])
    found = [box(1, 11, *LARGE, score=0.9, segmentation=text_of(quarter)), box(2, 11, 5, 5, 40, 40, score=0.8)]
    assert coco_metrics(coco, found).values["AP"] == 100
    masks = coco_metrics(coco, found[:1], kind="segm")  # the object without a mask is left out
    assert masks.values["AP"] == 0
    found[0]["segmentation"] = text_of(whole)
    assert coco_metrics(coco, found[:1], kind="segm").values["AP"] == 100


def text_of(polygons: list[list[int]]) -> dict[str, Any]:
    rle = to_rle(polygons, SIDE, SIDE)
    return {"size": rle["size"], "counts": rle["counts"].decode()}


@pytest.mark.parametrize("name", ["bccd_320", "cards", "coco_mini", "tiny_coco"])
def test_real_ground_truth_is_its_own_best_detection(real_data: Path, name: str) -> None:
    coco = load_coco(real_data / name / "instances_val.json", real_data / name / "images")
    boxes = [{**a, "score": 1.0} for image in coco.images for a in coco.annotations[image.id] if not a["iscrowd"]]
    metrics = coco_metrics(coco, boxes)
    assert metrics.values["AP50"] == pytest.approx(100, abs=0.5)
    assert metrics.values["AR100"] == pytest.approx(100, abs=0.5)
