"""hotcoco's numbers are pycocotools', to 1e-12, on real data and on what could go wrong."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from codo.data.coco import CocoDataset, CocoImage, load_coco
from codo.data.masks import has_mask, to_rle
from codo.jobs.transfer.coco_metrics import Figures, Kind, coco_figures, coco_metrics

WIDTH, HEIGHT = 160, 120
CATEGORIES = {3: "a", 11: "b", 90: "c"}
EXACT = 1e-12

Annotation = dict[str, Any]
Case = tuple[CocoDataset, list[Annotation]]


def polygon(box: list[float], kind: str, size: tuple[int, int] = (WIDTH, HEIGHT)) -> Any:
    """A hexagon inscribed in a box, as polygons or either RLE."""
    x, y, w, h = box
    points = [(0, 0.5), (0.25, 0), (0.75, 0), (1, 0.5), (0.75, 1), (0.25, 1)]
    flat = [[v for px, py in points for v in (x + px * w, y + py * h)]]
    if kind == "polygons":
        return flat
    rle = to_rle(flat, *size)
    if kind == "compressed":
        return {"size": rle["size"], "counts": rle["counts"].decode()}
    column = coco_mask.decode(rle).ravel(order="F")
    edges = np.flatnonzero(np.diff(column)) + 1
    runs = np.diff([0, *edges, column.size]).tolist()
    return {"size": rle["size"], "counts": [0, *runs] if column[0] else runs}


def truth(image: int, category: int, box: list[float], encoding: str = "polygons", **more: Any) -> Annotation:
    return {
        "image_id": image,
        "category_id": category,
        "bbox": box,
        "area": box[2] * box[3],
        "iscrowd": 0,
        "segmentation": polygon(box, encoding),
        **more,
    }


def detection(
    image: int, category: int, box: list[float], score: float, size: tuple[int, int] = (WIDTH, HEIGHT)
) -> Any:
    mask = polygon(box, "compressed", size)
    return {"image_id": image, "category_id": category, "bbox": box, "score": score, "segmentation": mask}


def dataset(annotations: list[Annotation], images: int = 3, categories: dict[int, str] | None = None) -> CocoDataset:
    ids = [7 * i for i in range(1, images + 1)]
    per_image = {i: [a for a in annotations if a["image_id"] == i] for i in ids}
    listed = [CocoImage(i, f"{i}.jpg", Path(f"{i}.jpg"), WIDTH, HEIGHT) for i in ids]
    return CocoDataset(listed, per_image, categories or CATEGORIES, {})


def moved(a: Annotation, rng: np.random.Generator, spread: float = 0.12) -> list[float]:
    x, y, w, h = a["bbox"]
    dx, dy, dw, dh = rng.normal(0, spread, 4)
    return [x + dx * w, y + dy * h, w * float(np.exp(dw)), h * float(np.exp(dh))]


def random_case(seed: int = 0, per_image: int = 9, copies: int = 3, scores: int = 1000, crowds: float = 0.1) -> Case:
    """Boxes of all sizes in three images; each found, doubled, misnamed or missed."""
    rng = np.random.default_rng(seed)
    annotations, found = [], []
    for image in (7, 14, 21):
        for _ in range(per_image):
            w, h = np.exp(rng.uniform(np.log(6), np.log(110), 2)).tolist()
            box = [*(rng.uniform(0, 1, 2) * (WIDTH - w, HEIGHT - h)).tolist(), w, h]
            crowd = int(rng.random() < crowds)
            encoding = "uncompressed" if crowd else str(rng.choice(["polygons", "compressed", "uncompressed"]))
            a = truth(image, int(rng.choice(list(CATEGORIES))), box, encoding, iscrowd=crowd)
            annotations.append(a)
            for _ in range(rng.integers(0, copies + 1)):
                category = a["category_id"] if rng.random() < 0.8 else int(rng.choice(list(CATEGORIES)))
                score = round(float(rng.integers(1, scores + 1)) / scores, 5)
                found.append(detection(image, category, moved(a, rng), score))
    return dataset(annotations), found


def at_the_bounds() -> Case:
    """Areas of 32^2 and 96^2 exactly, and a hair to either side: pycocotools counts both bounds on both sides."""
    annotations, found = [], []
    for image, side in ((7, 32.0), (14, 96.0)):
        for n, area in enumerate((side**2 - 1e-9, side**2, side**2 + 1e-9, float(np.nextafter(side**2, 0)))):
            box = [10.0 * n, 5.0, side, side]
            annotations.append(truth(image, 3, box, area=area))
            found += [detection(image, 3, [10.0 * n, 5.0 + shift, side, side], 0.9 - 0.1 * n) for shift in (0.0, 3.0)]
            # Unmatched, their own area decides whether they are ignored: boxes of exactly these sides.
            found.append(detection(image, 11, [10.0 * n, 5.0, side, side], 0.5))
            annotations.append(truth(image, 11, [120.0, 100.0, 12, 12]))
    return dataset(annotations), found


def many_detections() -> Case:
    """130 detections an image and class, the true ones among the last: 100 count."""
    coco, found = random_case(3, crowds=0.0)
    rng = np.random.default_rng(4)
    for image in (7, 14):
        for n in range(130):
            box = [*rng.uniform(0, 80, 2).tolist(), *rng.uniform(5, 40, 2).tolist()]
            found.append(detection(image, 3, box, round(0.5 + n / 300, 5)))
    return coco, found


def only_crowds() -> Case:
    coco, found = random_case(5, crowds=1.0)
    return coco, found


def nested_crowd() -> Case:
    """A crowd around objects of its class; detections of the objects, of parts of the crowd, and beside it."""
    objects = [truth(7, 3, [20.0 + 30 * n, 30.0, 20.0, 30.0]) for n in range(3)]
    crowd = truth(7, 3, [10.0, 10.0, 130.0, 90.0], "uncompressed", iscrowd=1)
    found = [detection(7, 3, a["bbox"], 0.6 + 0.1 * n) for n, a in enumerate(objects)]
    found += [detection(7, 3, [15.0 + 12 * n, 20.0, 18.0, 18.0], 0.95 - 0.05 * n) for n in range(6)]
    found += [detection(7, 3, [0.0, 0.0, 150.0, 110.0], 0.99), detection(7, 11, [15.0, 20.0, 18.0, 18.0], 0.99)]
    return dataset([crowd, *objects]), found


def equal_boxes() -> Case:
    """Ties of IoU beside ties of score: the same box many times, on two objects that are the same box too."""
    annotations = [truth(7, 3, [20.0, 20, 40, 40]) for _ in range(2)]
    annotations += [truth(14, 3, [20.0, 20, 40, 40]), truth(14, 3, [24.0, 20, 40, 40])]
    found = [detection(image, 3, [22.0, 20, 40, 40], 0.5) for image in (7, 14) for _ in range(4)]
    return dataset(annotations), found


def one_class_absent() -> Case:
    coco, found = random_case(6)
    kept = {i: [a for a in own if a["category_id"] != 11] for i, own in coco.annotations.items()}
    return replace(coco, annotations=kept), found


def empty_masks() -> Case:
    """A probability under a half everywhere gives an empty mask; an object of less than a pixel has one too."""
    coco, found = random_case(8)
    nothing = {
        "size": [HEIGHT, WIDTH],
        "counts": to_rle({"size": [HEIGHT, WIDTH], "counts": [WIDTH * HEIGHT]}, WIDTH, HEIGHT)["counts"].decode(),
    }
    speck = truth(7, 3, [30.0, 30, 0.2, 0.2], segmentation=[[30.0, 30, 30.2, 30, 30.2, 30.2, 30, 30.2]])
    coco.annotations[7].insert(0, speck)
    coco.annotations[14].append(truth(14, 3, [30.0, 30, 0.2, 0.2], iscrowd=1, segmentation=nothing))
    for n, result in enumerate(found[::4]):
        result |= {"segmentation": nothing} if n % 2 else {"segmentation": nothing, "bbox": [30.0, 30.0, 0.0, 0.0]}
    return coco, found


CASES: dict[str, Callable[[], Case]] = {
    "random": random_case,
    "ties in score": lambda: random_case(1, per_image=12, copies=5, scores=3),
    "all scores equal": lambda: random_case(2, per_image=12, copies=5, scores=1),
    "no detections": lambda: (random_case()[0], []),
    "no ground truth": lambda: (dataset([]), random_case()[1]),
    "neither": lambda: (dataset([]), []),
    "one class without ground truth": one_class_absent,
    "only crowds": only_crowds,
    "crowd around objects": nested_crowd,
    "areas at the bounds": at_the_bounds,
    "equal boxes": equal_boxes,
    "empty masks": empty_masks,
    "more than 100 detections": many_detections,
    "one image, no category found": lambda: (dataset([truth(7, 3, [1.0, 1, 9, 9])]), random_case()[1]),
}


def assert_equal(fast: Figures, slow: Figures) -> None:
    np.testing.assert_allclose(fast.stats, slow.stats, rtol=0, atol=EXACT)
    assert fast.precision.shape == slow.precision.shape
    np.testing.assert_allclose(fast.precision, slow.precision, rtol=0, atol=EXACT)


@pytest.mark.parametrize("kind", ["bbox", "segm"])
@pytest.mark.parametrize("name", CASES)
def test_adversarial_cases(name: str, kind: Kind) -> None:
    coco, found = CASES[name]()
    fast, slow = (coco_figures(coco, found, kind=kind, engine=engine) for engine in ("hotcoco", "pycocotools"))
    assert_equal(fast, slow)


def test_the_cases_are_no_trivial_ones() -> None:
    """They have something to find, and it is partly found."""
    for name in CASES.keys() - {"no detections", "no ground truth", "neither", "only crowds"}:
        for kind in ("bbox", "segm"):
            ap = coco_figures(*CASES[name](), kind=kind).stats[0]  # type: ignore[arg-type]
            assert (0 if name.startswith("one image") else 0.03) <= ap < 0.97, (name, kind, ap)
    assert len([d for d in many_detections()[1] if d["image_id"] == 7 and d["category_id"] == 3]) > 100


def official(coco: CocoDataset, found: list[Annotation], kind: Kind, folder: Path) -> np.ndarray:
    """The twelve numbers by pycocotools' own loaders; for masks without boxes in the results, as detectron2 does."""
    import copy
    import json

    annotations = [a for image in coco.images for a in coco.annotations[image.id] if kind == "bbox" or has_mask(a)]
    content = {
        "images": [{"id": i.id, "width": i.width, "height": i.height} for i in coco.images],
        "categories": [{"id": c, "name": n} for c, n in coco.categories.items()],
        "annotations": [{**a, "id": n} for n, a in enumerate(annotations, start=1)],
    }
    (folder / "truth.json").write_text(json.dumps(content))
    reference = COCO(str(folder / "truth.json"))
    results = [{k: v for k, v in r.items() if kind == "bbox" or k != "bbox"} for r in copy.deepcopy(found)]
    evaluation = COCOeval(reference, reference.loadRes(results), kind)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation.stats


@pytest.mark.parametrize("kind", ["bbox", "segm"])
@pytest.mark.parametrize("name", ["random", "crowd around objects", "areas at the bounds"])
def test_both_equal_pycocotools_own_route_through_files(name: str, kind: Kind, tmp_path: Path) -> None:
    coco, found = CASES[name]()
    for engine in ("hotcoco", "pycocotools"):
        ours = coco_figures(coco, found, kind=kind, engine=engine).stats  # type: ignore[arg-type]
        np.testing.assert_allclose(ours, official(coco, found, kind, tmp_path), rtol=0, atol=EXACT)


@pytest.mark.parametrize("kind", ["bbox", "segm"])
@pytest.mark.parametrize(
    ("folder", "file"), [("coco_mini", "instances_val_masks.json"), ("tiny_coco", "instances_val.json")]
)
def test_real_data_with_crowds(real_data: Path, folder: str, file: str, kind: Kind, tmp_path: Path) -> None:
    """Detections are the annotations, moved, some under another name, in random order of score."""
    coco = load_coco(real_data / folder / file, real_data / folder / "images")
    rng = np.random.default_rng(0)
    found = []
    ids = list(coco.categories)
    for image in coco.images:
        for a in coco.annotations[image.id]:
            for _ in range(rng.integers(0, 3)):
                category = a["category_id"] if rng.random() < 0.8 else int(rng.choice(ids))
                score = round(float(rng.random()), 2)
                found.append(detection(image.id, category, moved(a, rng, 0.06), score, (image.width, image.height)))
    fast, slow = (coco_figures(coco, found, kind=kind, engine=engine) for engine in ("hotcoco", "pycocotools"))
    assert_equal(fast, slow)
    np.testing.assert_allclose(fast.stats, official(coco, found, kind, tmp_path), rtol=0, atol=EXACT)
    assert 0.05 < fast.stats[0] < 0.95


@pytest.mark.parametrize("engine", ["hotcoco", "pycocotools"])
@pytest.mark.parametrize("kind", ["bbox", "segm"])
@pytest.mark.parametrize("shift", [lambda n: n - 20, lambda n: n + 2**53, lambda n: n + 2**63 - 200])
def test_what_the_ids_are_does_not_matter(shift: Callable[[int], int], kind: Kind, engine: Any) -> None:
    """Negative ones, and those that a float rounds to one and the same."""
    coco, found = random_case(2, scores=20)

    def renamed(entries: list[Annotation]) -> list[Annotation]:
        return [{**a, "image_id": shift(a["image_id"]), "category_id": shift(a["category_id"])} for a in entries]

    other = CocoDataset(
        [replace(image, id=shift(image.id)) for image in coco.images],
        {shift(image): renamed(own) for image, own in coco.annotations.items()},
        {shift(category): name for category, name in coco.categories.items()},
        {},
    )
    before = coco_metrics(coco, found, skip={14}, kind=kind, engine=engine)
    after = coco_metrics(other, renamed(found), skip={shift(14)}, kind=kind, engine=engine)
    assert (after.values, after.errors) == (before.values, before.errors)
    assert after.per_class == {shift(category): ap for category, ap in before.per_class.items()}
    assert 0 < (before.values["AP"] or 0) < 100


def test_without_hotcoco_pycocotools_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    coco, found = random_case()
    with_it = coco_metrics(coco, found)
    monkeypatch.setitem(sys.modules, "hotcoco", None)
    without = coco_metrics(coco, found)
    assert (without.values, without.per_class) == (with_it.values, with_it.per_class)
    assert with_it.errors
    assert without.errors == {}
    with pytest.raises(ImportError, match="hotcoco is not installed"):
        coco_metrics(coco, found, engine="hotcoco")
