"""COCO's metrics: pycocotools beside codo's (hotcoco), on one machine, in turns.

    python -m benchmarks.evaluation            # the COCO-val-sized workload; some minutes
    python -m benchmarks.evaluation --small    # a try-out of seconds

Detections are made up: annotations of a COCO-like mix of sizes and classes, 1% crowds; each image has 100 detections,
which are its annotations moved, some under another class. Both sides begin with the same dicts (COCO's annotations and
results) and end with the twelve numbers, which must agree to 1e-12; codo's side is what every evaluation of a transfer
run calls. Medians of the rounds.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import io
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from codo.data.coco import CocoDataset, CocoImage
from codo.jobs.transfer.coco_metrics import Kind, coco_figures
from codo.runs.files import write_json, write_text
from codo.runs.record import processor

RESULTS = Path(__file__).parent / "results"
WIDTH, HEIGHT, CLASSES, PER_IMAGE, DETECTIONS = 640, 480, 80, 7, 100
GOALS = {"bbox": 40, "segm": 20}
"""How many times faster than pycocotools it should be."""


def workload(kind: Kind, images: int, seed: int = 0) -> tuple[CocoDataset, list[dict[str, Any]]]:
    """Make up annotations and detections of `images` images."""
    rng = np.random.default_rng(seed)
    listed = [CocoImage(i, f"{i}.jpg", Path(f"{i}.jpg"), WIDTH, HEIGHT) for i in range(1, images + 1)]
    annotations: dict[int, list[dict[str, Any]]] = {}
    results: list[dict[str, Any]] = []
    for image in listed:
        count = max(1, int(rng.poisson(PER_IMAGE)))
        boxes = _boxes(rng, count)
        classes = rng.integers(1, CLASSES + 1, count)
        crowds = rng.random(count) < 0.01
        annotations[image.id] = [
            {"image_id": image.id, "category_id": int(c), "bbox": b, "area": b[2] * b[3], "iscrowd": int(crowd)}
            for b, c, crowd in zip(boxes.tolist(), classes, crowds, strict=True)
        ]
        rows = rng.integers(0, count, DETECTIONS)
        moved = _clip(boxes[rows] + rng.normal(0, 0.12, (DETECTIONS, 4)) * np.tile(boxes[rows][:, 2:], 2)).round(2)
        named = np.where(rng.random(DETECTIONS) < 0.7, classes[rows], rng.integers(1, CLASSES + 1, DETECTIONS))
        scores = rng.random(DETECTIONS).round(5)
        results += [
            {"image_id": image.id, "category_id": int(c), "bbox": b, "score": float(s)}
            for b, c, s in zip(moved.tolist(), named, scores, strict=True)
        ]
    if kind == "segm":
        for own in annotations.values():
            for a in own:
                a["segmentation"] = _rle(a["bbox"]) if a["iscrowd"] else [_outline(a["bbox"])]
        for result in results:
            result["segmentation"] = _rle(result["bbox"])
    return CocoDataset(listed, annotations, {c: str(c) for c in range(1, CLASSES + 1)}, {}), results


def _boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    sides = np.exp(rng.uniform(np.log(8), np.log(320), (count, 2)))
    corners = rng.random((count, 2)) * (np.array([WIDTH, HEIGHT]) - sides)
    return np.concatenate([corners, sides], 1)


def _clip(boxes: np.ndarray) -> np.ndarray:
    low = boxes[:, :2].clip(0, (WIDTH - 2, HEIGHT - 2))
    high = (low + boxes[:, 2:].clip(1)).clip(None, (WIDTH, HEIGHT))
    return np.concatenate([low, high - low], 1)


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
    """Prepare its run: it writes into the dicts it is given, so each run has its own (copied outside the clock)."""
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
    """Time the two sides in turns, and compare their numbers."""
    truth, results = workload(kind, images)
    seconds: dict[str, list[float]] = {"pycocotools": [], "codo": [], "codo_with_tide": []}
    processor_seconds: dict[str, list[float]] = {name: [] for name in seconds}
    difference = 0.0
    for _ in range(rounds):
        sides: dict[str, Callable[[], np.ndarray]] = {
            "pycocotools": by_pycocotools(truth, results, kind),
            "codo": lambda: coco_figures(truth, results, kind=kind, engine="hotcoco", breakdown=False).stats,
            "codo_with_tide": lambda: coco_figures(truth, results, kind=kind, engine="hotcoco").stats,
        }
        stats = {}
        for name, side in sides.items():
            start, used = time.perf_counter(), time.process_time()
            with contextlib.redirect_stdout(io.StringIO()):
                stats[name] = side()
            seconds[name].append(time.perf_counter() - start)
            processor_seconds[name].append(time.process_time() - used)
            figures = f"{seconds[name][-1]:.2f} s, {processor_seconds[name][-1]:.2f} s of processor time"
            print(f"{kind} {images} images: {name} {figures}", flush=True)
        difference = max(difference, *(float(np.abs(stats["pycocotools"] - s).max()) for s in stats.values()))
    assert difference <= 1e-12, f"the two sides differ by {difference}"
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    used_medians = {name: statistics.median(values) for name, values in processor_seconds.items()}
    return {
        "kind": kind,
        "images": images,
        "detections": len(results),
        "annotations": sum(map(len, truth.annotations.values())),
        "rounds": rounds,
        "AP": float(stats["codo"][0]),
        "largest_difference": difference,
        "seconds": seconds,
        "processor_seconds": processor_seconds,
        "median_seconds": medians,
        "median_processor_seconds": used_medians,
        "times_faster": medians["pycocotools"] / medians["codo"],
        "times_faster_with_tide": medians["pycocotools"] / medians["codo_with_tide"],
        "times_less_processor_time": used_medians["pycocotools"] / used_medians["codo"],
        "goal": GOALS[kind],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--small", action="store_true", help="few images; write nothing")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    machine = {
        "processor": processor(),
        "cores": os.cpu_count(),
        "load": [round(x, 2) for x in os.getloadavg()],
        "python": platform.python_version(),
        "packages": {n: importlib.metadata.version(n) for n in ("numpy", "pycocotools", "hotcoco")},
    }
    print(machine)
    plan: list[tuple[Kind, int]] = [("bbox", 5000), ("segm", 1000)]
    rows = [measure(kind, 50 if arguments.small else images, arguments.rounds) for kind, images in plan]
    table = [
        "| | images | detections | pycocotools | codo | times faster | processor time | with TIDE | difference |",
        "|---|---|---|---|---|---|---|---|---|",
        *(
            f"| {'boxes' if r['kind'] == 'bbox' else 'masks'} | {r['images']:,} | {r['detections']:,} "
            f"| {r['median_seconds']['pycocotools']:.1f} s | {r['median_seconds']['codo']:.2f} s "
            f"| **{r['times_faster']:.0f}** (goal {r['goal']}) "
            f"| {r['median_processor_seconds']['pycocotools']:.1f} s, {r['median_processor_seconds']['codo']:.2f} s: "
            f"{r['times_less_processor_time']:.0f} times less "
            f"| {r['median_seconds']['codo_with_tide']:.2f} s, {r['times_faster_with_tide']:.0f} times faster "
            f"| {r['largest_difference']:.0e} |"
            for r in rows
        ),
    ]
    print("\n".join(table))
    if arguments.small:
        return
    write_json(RESULTS / "evaluation.json", {"machine": machine, "workloads": rows})
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    about = [
        "# COCO metrics: codo (hotcoco) beside pycocotools",
        "",
        "`python -m benchmarks.evaluation`; made-up detections, see its docstring. Medians of "
        f"{arguments.rounds} rounds in turns, from the same dicts to the twelve numbers.",
        "",
        f"{machine['processor']}, {machine['cores']} cores (load {machine['load'][0]} at the start); {packages}.",
        "",
    ]
    write_text(RESULTS / "evaluation.md", "\n".join([*about, *table]) + "\n")


if __name__ == "__main__":
    main()
