"""A fine-tuning step of a detector: torchvision's, as users write it, beside codo's, in turns.

    python -m benchmarks.finetune            # ResNet-18 and ResNet-50; some minutes
    python -m benchmarks.finetune --small    # a try-out of seconds
    python -m benchmarks.finetune --ap       # both train to the end, three seeds each; a quarter of an hour

Both sides fine-tune `fasterrcnn_resnet50_fpn_v2` (RoIAlign, 4 convolutions and an fc as box head), or the same on
ResNet-18, with torchvision's defaults (512 boxes an image) at 240-320 px, batch 2 as in torchvision's reference script,
from the same weights, on the images of `bccd_320` in $CODO_DATA (where they are not here: on the built-in sample data).

- *torchvision*: the detector of its builder, fp32, a PIL image and `to_tensor` from disk, `torch.optim.SGD`, zero_grad,
  backward, step: what its reference script does.
- *codo*: the step and the loading of `codo transfer`, `Training`'s own, as its config says by default.

The step on a batch in memory and the loading of the batch from disk are timed apart; `with data` is their sum, as in a
process without loader workers. The first step's losses, drawn with the same seed, are compared too, and those of codo
in fp32: there only rounding differs, which now and then chooses other proposals among nearly equal scores.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.finetune_sides import BATCH, Codo, Reference, full, settings, small
from benchmarks.results_file import RESULTS, Row, versions, write
from codo.jobs.bench.machine import machine, peaks
from codo.jobs.bench.timing import Times, in_turns
from codo.jobs.transfer.base import Detector
from codo.jobs.transfer.data import load_data
from codo.jobs.transfer.dataset import DetectionDataset, batches
from codo.jobs.transfer.evaluate import assess, evaluate
from codo.jobs.transfer.hardware import hardware_of
from codo.runs.hardware import available_cores

TARGET = 2.5
GROUPS = {
    "convolutions": ("convolution", "conv2d"),
    "matrix products": ("aten::mm", "aten::addmm"),
    "RoIAlign": ("roi_align", "embedding_bag"),
    "norms, ReLU, pooling": ("batch_norm", "threshold", "clamp_min_", "relu", "max_pool"),
    "NMS": ("nms",),
}
"""What operations are summed up under; all others are `the rest`."""


def measure(size: dict[str, Any], rounds: int, threads: int) -> dict[str, Any]:
    """Time both sides' steps, alone and with loading, in turns."""
    torch.set_num_threads(threads)
    config = settings(**size)
    data = load_data(config)
    keys = next(iter(batches(len(data.train.images), BATCH, config.seed, 0, 1)))
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = Codo(config, data, Path(folder)), Reference(config, data)
        exact = Codo(settings(**size, run={"precision": "fp32"}), data, Path(folder))
        losses = {"codo": ours.losses(keys), "codo, fp32": exact.losses(keys)}
        del exact
        batch, samples = theirs.load(keys), [ours.dataset[key] for key in keys]
        losses["torchvision"] = theirs.step(*batch)
        sides: dict[str, Callable[[], Any]] = {
            "torchvision, step": lambda: theirs.step(*batch),
            "codo, step": lambda: ours.training._train_step(samples, 0.0, ours.bar),
            "torchvision, loading": lambda: theirs.load(keys),
            "codo, loading": lambda: [ours.dataset[key] for key in keys],
        }
        seconds = dict(in_turns(sides, rounds=rounds).seconds)
        shares = {name.split(",")[0]: breakdown(sides[name]) for name in list(sides)[:2]}
    for side in ("torchvision", "codo"):  # with no worker, a step waits for its batch
        parts = zip(seconds[f"{side}, step"], seconds[f"{side}, loading"], strict=True)
        seconds[f"{side}, with data"] = [sum(part) for part in parts]
    times = Times(seconds)
    return {
        "backbone": config.architecture.backbone,
        "threads": threads,
        "precision": ours.precision,
        "batch": BATCH,
        "boxes_per_image": config.detection.roi_batch_size,
        "seconds": seconds,
        "first_losses": losses,
        "milliseconds_by_operation": shares,
        **{
            f"times_faster_{what.replace(' ', '_')}": {
                "median": times.ratio(*pair),
                "range": times.spread(*pair),
            }
            for what in ("step", "with data")
            for pair in ((f"torchvision, {what}", f"codo, {what}"),)
        },
    }


def breakdown(step: Callable[[], Any]) -> dict[str, float]:
    """Sum the milliseconds of one step by kind of operation."""
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        step()
    found = dict.fromkeys([*GROUPS, "optimiser", "the rest"], 0.0)
    for entry in profiled.key_averages():
        group = next((g for g, names in GROUPS.items() if any(n in entry.key for n in names)), "the rest")
        found[group] += entry.self_cpu_time_total / 1e3
        if entry.key.startswith("Optimizer.step"):
            found["optimiser"] = entry.cpu_time_total / 1e3
    found["the rest"] -= found["optimiser"]
    return {name: round(value, 1) for name, value in found.items()}


def train_both(epochs: int, seeds: Sequence[int]) -> dict[str, Any]:
    """Train both sides to the end of a short schedule, from the same weights, over the same batches; evaluate by codo.

    The detector is the `small` preset's at 168-224 px. Both are evaluated in fp32.
    """
    found: dict[str, list[float]] = {"torchvision": [], "codo": []}
    exactly = hardware_of(settings(run={"precision": "fp32"}))
    for seed in seeds:
        schedule = {"epochs": epochs, "batch_size": 4, "lr": 0.08, "warmup_iterations": 50, "eval_every": epochs}
        config = settings(**small(168, 224), optim=schedule, seed=seed)
        data = load_data(config)
        with tempfile.TemporaryDirectory() as folder:
            theirs, ours = Reference(config, data), Codo(config, data, Path(folder))
            for number, keys in enumerate(batches(len(data.train.images), 4, seed, 0, theirs.total)):
                theirs.step(*theirs.load(keys), number)
            ours.training.run()
        val = DetectionDataset(data.val, data.labels, 168, 224, train=False)
        for name, detector in (("torchvision", theirs.detector), ("codo", ours.training.detector)):
            predictions = evaluate(cast(Detector, detector), val, list(data.labels), exactly)
            ap = assess(predictions, data.val, masks=False, breakdown=False).values["AP"]
            found[name].append(float(ap or 0))
        print(f"seed {seed}: torchvision AP {found['torchvision'][-1]:.2f}, codo {found['codo'][-1]:.2f}", flush=True)
    gaps = [b - a for a, b in zip(found["torchvision"], found["codo"], strict=True)]
    deviations = {name: statistics.stdev(values) for name, values in found.items()}
    return {
        "data": data.name,
        "processor": machine()["processor"],
        "epochs": epochs,
        "seeds": list(seeds),
        "AP": found,
        "mean": {name: statistics.mean(values) for name, values in found.items()},
        "standard_deviation": deviations,
        "mean_difference": statistics.mean(gaps),
        "standard_error": (sum(d**2 for d in deviations.values()) / len(gaps)) ** 0.5,
    }


def report(results: list[dict[str, Any]], trained: dict[str, Any] | None) -> tuple[list[Row], list[str]]:
    """Write rows for the table of targets, which is of one thread, and lines of Markdown."""
    rows, lines = [], []
    for r in (r for r in results if r["threads"] == 1):
        pair = [1e3 * statistics.median(r["seconds"][f"{side}, step"]) / r["batch"] for side in ("torchvision", "codo")]
        rows.append(
            Row(
                f"detector fine-tuning step, 320 px, {r['backbone']}",
                f"{pair[0]:.0f} ms an image against {pair[1]:.0f} ({r['precision']})",
                r["times_faster_step"]["median"],
                TARGET,
            )
        )
    lines += ["| | step | range | with data | range |", "|---|---:|---|---:|---|"]
    for r in results:
        cells = [
            cell
            for what in ("step", "with_data")
            for f in (r[f"times_faster_{what}"],)
            for cell in (f"{f['median']:.2f} x", "{:.2f}-{:.2f}".format(*f["range"]))
        ]
        lines.append(f"| {r['backbone']}, {threads_of(r)} | {' | '.join(cells)} |")
    lines += ["", "Milliseconds of one profiled step, by kind of operation:", ""]
    kinds = list(results[0]["milliseconds_by_operation"]["codo"])
    lines += [f"| | {' | '.join(kinds)} |", "|---|" + "---:|" * len(kinds)]
    for r in results:
        for side, spent in r["milliseconds_by_operation"].items():
            lines.append(
                f"| {r['backbone']}, {threads_of(r)}, {side} | {' | '.join(f'{spent[k]:.0f}' for k in kinds)} |"
            )
    lines += ["", "Losses of the first step, from the same weights, batch and seed:", ""]
    terms = list(results[0]["first_losses"]["codo"])
    lines += [f"| | {' | '.join(terms)} |", "|---|" + "---:|" * len(terms)]
    for r in results:
        for side, losses in r["first_losses"].items():
            lines.append(
                f"| {r['backbone']}, {threads_of(r)}, {side} | {' | '.join(f'{losses[t]:.4f}' for t in terms)} |"
            )
    if trained:
        said = ", ".join(
            f"{name} {trained['mean'][name]:.2f} ± {trained['standard_deviation'][name]:.2f}" for name in trained["AP"]
        )
        lines += [
            "",
            f"AP on the validation images of {trained['data']} after {trained['epochs']} epochs of `small`'s "
            f"detector at 168-224 px, {len(trained['seeds'])} seeds, mean and standard deviation (`--ap`, trained on "
            f"{trained['processor']}): {said}. The "
            f"difference of the means is {trained['mean_difference']:+.2f}, its standard error "
            f"{trained['standard_error']:.2f}.",
        ]
    return rows, lines


def threads_of(result: dict[str, Any]) -> str:
    """Say `1 thread`."""
    return f"{result['threads']} thread{'s' if result['threads'] > 1 else ''}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--small", action="store_true", help="a small detector, one round; write nothing")
    parser.add_argument("--ap", action="store_true", help="train both sides too, and keep their AP with the results")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.small:
        print("\n".join(report([measure(small(96, 128), 1, 1)], None)[1]))
        return
    about = {**machine(), **peaks(), **versions("torch", "torchvision")}
    print(about, flush=True)
    kept = RESULTS / "finetune.json"
    trained = json.loads(kept.read_text()).get("trained") if kept.exists() else None
    if arguments.ap:
        trained = train_both(epochs=3, seeds=range(3))
    results = [measure(full(backbone), arguments.rounds, 1) for backbone in ("resnet18", "resnet50")]
    if available_cores() > 1:
        results.append(measure(full("resnet50"), arguments.rounds, 2))
    rows, lines = report(results, trained)
    command = "python -m benchmarks.finetune"
    print(
        write(
            "finetune",
            "A detector's fine-tuning step",
            command,
            about,
            rows,
            results=results,
            trained=trained,
            lines=lines,
        )
    )


if __name__ == "__main__":
    main()
