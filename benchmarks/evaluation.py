"""COCO's metrics: pycocotools beside codo's (hotcoco), on one machine, in turns.

    python -m benchmarks.evaluation            # the COCO-val-sized workload; some minutes
    python -m benchmarks.evaluation --small    # a try-out of seconds; writes nothing

Annotations are made up, of a COCO-like mix of sizes and classes, 1% crowds, and detections from them
(`codo.jobs.bench.made_up`), 100 an image. Both sides begin with the same dicts (COCO's annotations and results) and end
with the twelve numbers, which must be equal; codo's side is what every evaluation of a transfer run calls. A small
workload warms both up, as one round of pycocotools' takes a minute.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from benchmarks.results_file import Row, facts, table, versions, write
from codo.data.coco import CocoDataset, CocoImage
from codo.jobs.bench.machine import machine, peaks
from codo.jobs.bench.made_up import detections
from codo.jobs.bench.timing import Times, in_turns
from codo.jobs.transfer.coco_metrics import Kind, coco_figures

WIDTH, HEIGHT, CLASSES, PER_IMAGE, DETECTIONS = 640, 480, 80, 7, 100
IMAGES: dict[Kind, int] = {"bbox": 5000, "segm": 1000}
TARGETS: dict[Kind, float] = {"bbox": 40, "segm": 20}
"""How many times faster than pycocotools it should be."""
NOTES: dict[Kind, str] = {
    "bbox": "",
    "segm": "four fifths of codo's processor time are hotcoco's own (.38 of .47 s: matching .22, areas .08, columns "
    ".04, accumulation .04), the rest reads the dicts",
}
"""Where it misses: what a profile said."""
NAMES: dict[Kind, str] = {"bbox": "boxes", "segm": "masks"}


def workload(kind: Kind, images: int, seed: int = 0) -> tuple[CocoDataset, list[dict[str, Any]]]:
    """Make up annotations and detections of `images` images."""
    rng = np.random.default_rng(seed)
    listed = [CocoImage(i, f"{i}.jpg", Path(f"{i}.jpg"), WIDTH, HEIGHT) for i in range(1, images + 1)]
    annotations: dict[int, list[dict[str, Any]]] = {}
    for image in listed:
        count = max(1, int(rng.poisson(PER_IMAGE)))
        boxes, crowds = _boxes(rng, count), rng.random(count) < 0.01
        annotations[image.id] = [
            {"image_id": image.id, "category_id": int(c), "bbox": b, "area": b[2] * b[3], "iscrowd": int(crowd)}
            for b, c, crowd in zip(boxes.tolist(), rng.integers(1, CLASSES + 1, count), crowds, strict=True)
        ]
    truth = CocoDataset(listed, annotations, {c: str(c) for c in range(1, CLASSES + 1)}, {})
    if kind == "segm":
        for own in annotations.values():
            for a in own:
                a["segmentation"] = _rle(a["bbox"]) if a["iscrowd"] else [_outline(a["bbox"])]
    results = detections(truth, DETECTIONS, seed)
    if kind == "segm":
        for result in results:
            result["segmentation"] = _rle(result["bbox"])
    return truth, results


def _boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    sides = np.exp(rng.uniform(np.log(8), np.log(320), (count, 2)))
    corners = rng.random((count, 2)) * (np.array([WIDTH, HEIGHT]) - sides)
    return np.concatenate([corners, sides], 1)


def _outline(box: list[float]) -> list[float]:
    """A polygon of 24 points, a wobbly ellipse in the box."""
    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    radius = 0.5 * (0.85 + 0.15 * np.cos(5 * angles))
    x, y, w, h = box
    points = np.stack([x + w * (0.5 + radius * np.cos(angles)), y + h * (0.5 + radius * np.sin(angles))], 1)
    return points.round(2).ravel().tolist()


def _rle(box: list[float]) -> dict[str, Any]:
    rle = coco_mask.frPyObjects([_outline(box)], HEIGHT, WIDTH)[0]
    return {"size": rle["size"], "counts": rle["counts"].decode()}


def by_pycocotools(truth: CocoDataset, results: list[dict[str, Any]], kind: Kind) -> Callable[[], np.ndarray]:
    """Prepare one run: it writes into the dicts it is given, so each run has its own (copied outside the clock)."""
    number = iter(range(1, 10**9))
    content = {
        "images": [{"id": i.id, "width": i.width, "height": i.height} for i in truth.images],
        "categories": [{"id": c, "name": n} for c, n in truth.categories.items()],
        "annotations": [{**a, "id": next(number)} for own in truth.annotations.values() for a in own],
    }
    found = [{k: v for k, v in r.items() if kind == "bbox" or k != "bbox"} for r in results]

    def run() -> np.ndarray:
        coco = COCO()
        coco.dataset = content
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(found), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        return evaluation.stats

    return run


def measure(kind: Kind, images: int, rounds: int) -> dict[str, Any]:
    """Time the sides in turns, and compare their numbers."""
    truth, results = workload(kind, images)
    fresh = [by_pycocotools(truth, results, kind) for _ in range(rounds)]
    stats: dict[str, np.ndarray] = {}
    processor: dict[str, list[float]] = defaultdict(list)

    def side(name: str, run: Callable[[], np.ndarray]) -> Callable[[], None]:
        def timed() -> None:
            used = time.process_time()
            with contextlib.redirect_stdout(io.StringIO()):
                stats[name] = run()
            processor[name].append(time.process_time() - used)
            print(f"{NAMES[kind]}, {images} images: {name} done", flush=True)

        return timed

    def codo(breakdown: bool) -> np.ndarray:
        return coco_figures(truth, results, kind=kind, engine="hotcoco", breakdown=breakdown).stats

    sides = {
        "pycocotools": side("pycocotools", lambda: fresh.pop()()),
        "codo": side("codo", lambda: codo(False)),
        "codo with TIDE": side("codo with TIDE", lambda: codo(True)),
    }
    times = in_turns(sides, rounds=rounds, warm_up=0)
    used = Times(processor)
    return {
        "kind": kind,
        "images": images,
        "detections": len(results),
        "annotations": sum(map(len, truth.annotations.values())),
        "AP": float(stats["codo"][0]),
        "difference": max(float(np.abs(stats["pycocotools"] - found).max()) for found in stats.values()),
        "seconds": dict(times.seconds),
        "processor_seconds": dict(processor),
        "times_faster": times.ratio("pycocotools", "codo"),
        "times_faster_spread": times.spread("pycocotools", "codo"),
        "times_faster_with_tide": times.ratio("pycocotools", "codo with TIDE"),
        "times_less_processor_time": used.ratio("pycocotools", "codo"),
        "median_seconds": {name: times.median(name) for name in sides},
        "median_processor_seconds": {name: used.median(name) for name in sides},
    }


def rows_of(found: dict[str, Any]) -> list[Row]:
    """Compare one workload with its targets."""
    kind: Kind = found["kind"]
    slow, fast = (found["median_seconds"][name] for name in ("pycocotools", "codo"))
    work = f"COCO metrics of {NAMES[kind]}, {found['images']:,} images, {found['detections']:,} detections"
    figures = f"pycocotools {slow:.1f} s, codo {fast:.2f} s"
    low, high = found["times_faster_spread"]
    return [
        Row(
            work, f"{figures} (rounds {low:.0f} to {high:.0f})", found["times_faster"], TARGETS[kind], note=NOTES[kind]
        ),
        Row(f"{work}: largest difference of the twelve", "", found["difference"], 0, at_most=True, unit=""),
    ]


def details(found: dict[str, Any]) -> str:
    """Say what the rows leave out."""
    used = found["median_processor_seconds"]
    return (
        f"- {NAMES[found['kind']]}: processor time {used['pycocotools']:.1f} s against {used['codo']:.2f} s, "
        f"{found['times_less_processor_time']:.0f} times less; with TIDE's breakdown of errors, which pycocotools "
        f"lacks, {found['median_seconds']['codo with TIDE']:.2f} s, {found['times_faster_with_tide']:.0f} times faster"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--small", action="store_true", help="few images; write nothing")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    about = machine() | peaks(rounds=1 if arguments.small else 5) | versions("numpy", "pycocotools", "hotcoco")
    print(about, flush=True)
    for kind in IMAGES:
        measure(kind, 10, 1)  # warms up
    rounds = 1 if arguments.small else arguments.rounds
    found = [measure(kind, 20 if arguments.small else count, rounds) for kind, count in IMAGES.items()]
    rows = [row for one in found for row in rows_of(one)]
    lines = [f"Medians of {rounds} rounds in turns.", "", *map(details, found)]
    if arguments.small:
        print("\n".join([*table(facts(rows)), "", *lines]))
        return
    command = "python -m benchmarks.evaluation"
    title = "COCO metrics: codo (hotcoco) beside pycocotools"
    print(write("evaluation", title, command, about, rows, workloads=found, lines=lines))


if __name__ == "__main__":
    main()
