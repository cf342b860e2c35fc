"""How codo's time grows: per step with batch, canvas, levels, views, queue, processes; at the start with listed files.

    python -m benchmarks.scaling            # all sweeps, some minutes; plots in results/scaling/
    python -m benchmarks.scaling --small    # two points a sweep, of a tiny network; writes nothing

The step is that of `codo-small` (ResNet-18, FPN 128, 96 px) on a batch that lies on the device, with made-up pictures.
The points of a sweep run in turns (A B C A B C ...), warmed up; medians. The exponent is the slope of a least-squares
line through the logarithms.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.pictures import link_pictures, write_pictures
from benchmarks.results_file import RESULTS, versions, write
from codo.config import PretrainConfig, load_pretrain_config
from codo.jobs.bench.machine import machine, peaks
from codo.jobs.bench.pretraining import resident
from codo.jobs.bench.timing import Times, in_turns
from codo.jobs.pretrain.build import build_dataset, find_sources
from codo.jobs.pretrain.samples import StepSampler, sample_loader
from codo.jobs.pretrain.training import Run
from codo.runs.files import atomic_path
from codo.runs.hardware import Hardware
from codo.runs.world import World

LEVELS = {1: [5], 2: [4, 5], 3: [3, 4, 5], 4: [2, 3, 4, 5]}


@dataclass(frozen=True)
class Sweep:
    """One thing that is varied.

    Attributes:
        name: of the plot's file.
        axis: what is varied, with its unit.
        fields: of a value, what it sets in the config.
        values: of it.
        about: what the exponent should be, and why.
    """

    name: str
    axis: str
    fields: Callable[[int], dict[str, Any]]
    values: Sequence[int]
    about: str


SWEEPS = (
    Sweep(
        "batch", "samples a step", lambda n: {"optim.batch_size": n}, (8, 16, 32, 64), "1: the work is that of samples"
    ),
    Sweep(
        "canvas",
        "canvas, pixels a side",
        lambda n: {"canvas": n, "optim.batch_size": 16},
        (64, 96, 128, 192),
        "under 2: the backbone's pixels, and box heads that do not grow (batch 16)",
    ),
    Sweep(
        "levels", "levels", lambda n: {"loss.levels": LEVELS[n]}, (1, 2, 3, 4), "under 1: one backbone, more box heads"
    ),
    Sweep(
        "views", "query views", lambda n: {"views": n}, (1, 2, 3, 4), "under 1: V + 1 views, the key without gradient"
    ),
    Sweep(
        "queue",
        "keys in each of the four queues",
        lambda n: {"loss.negatives": "queue", "loss.queue_size": n},
        (1024, 4096, 16384, 65536),
        "near 0: a matrix product of 128 a key",
    ),
)


def config_of(fields: dict[str, Any], small: bool, folder: Path) -> PretrainConfig:
    """Compose the config of a point."""
    tiny = {"canvas": 64, "optim.batch_size": 4, "model.backbone": "resnet10t", "model.fpn_channels": 16}
    tiny |= {"model.box_head_channels": 16, "model.box_head_fc": 32}
    images = {"data.foregrounds": str(folder), "data.backgrounds": str(folder), "run.workers": 0}
    return load_pretrain_config(flags=images | (tiny if small else {}) | fields)


def prepare(config: PretrainConfig, world: World | None = None) -> Callable[[], Any]:
    """Build a run, and give its step on a resident batch."""
    with contextlib.redirect_stderr(io.StringIO()):
        run = Run(config, build_dataset(config, find_sources(config)), world=world)
    batch = resident(run, next(run.batches(1)))
    return lambda: run.trainer.step(batch.views, 0, run.schedule)


def exponent(values: Sequence[float], seconds: Sequence[float]) -> float:
    """Fit the exponent b of `seconds ~ values^b`: least squares through the logarithms.

    Example:
        >>> round(exponent([1, 2, 4], [3.0, 12.0, 48.0]), 6)
        2.0
    """
    return float(np.polyfit(np.log(values), np.log(seconds), 1)[0])


def sweep_steps(sweep: Sweep, small: bool, rounds: int, folder: Path) -> dict[str, Any]:
    """Time one step of each value, in turns."""
    values = sweep.values[:2] if small else sweep.values
    sides = {str(n): prepare(config_of(sweep.fields(n), small, folder)) for n in values}
    return _point(sweep.name, sweep.axis, sweep.about, values, in_turns(sides, rounds=rounds))


def _point(name: str, axis: str, about: str, values: Sequence[int], times: Times) -> dict[str, Any]:
    medians = [times.median(str(n)) for n in values]
    return {
        "name": name,
        "axis": axis,
        "about": about,
        "values": list(values),
        "seconds": medians,
        "rounds": dict(times.seconds),
        "exponent": exponent(values, medians),
        "last_exponent": exponent(values[-2:], medians[-2:]),
    }


def sweep_files(counts: Sequence[int], rounds: int) -> dict[str, Any]:
    """Time a start with so many files listed, no cache and no network: from the folder to the first batch."""
    with tempfile.TemporaryDirectory() as temporary:
        backgrounds = Path(temporary) / "backgrounds"
        write_pictures(backgrounds, 32, 160)
        sides = {}
        for count in counts:
            folder = Path(temporary) / str(count)
            link_pictures(folder, count, 160)
            print(f"{count:,} files are there", flush=True)
            fields = {"run.cache": "off", "data.backgrounds": str(backgrounds)}
            sides[str(count)] = partial(_start, config_of(fields, False, folder))
        times = in_turns(sides, rounds=rounds)
    about = "0 at first, 1 where the names count: each is listed, its size read for the fingerprint, its place drawn"
    return _point("files", "files listed", about, counts, times)


def _start(config: PretrainConfig) -> None:
    sources = find_sources(config)
    sources.record()  # fingerprints the files, as each run does
    dataset = build_dataset(config, sources)
    steps = StepSampler(len(dataset), config.optim.batch_size, config.seed, 0, 1)
    next(iter(sample_loader(dataset, steps, Hardware.resolve(config.run, heavy_loading=False))))


def sweep_processes(rounds: int, folder: Path) -> dict[str, Any]:
    """Time the step of one batch on 1 and 2 processes of one thread each (gloo), started in turns (1 2 1 2)."""
    seconds: dict[str, list[float]] = {"1": [], "2": []}
    for _ in range(2):
        for count in seconds:
            seconds[count] += _launch(int(count), rounds, folder)
    about = "-1 where every process has a core of its own; the gradients are exchanged"
    return _point("processes", "processes, a thread each", about, (1, 2), Times(seconds))


def _launch(processes: int, rounds: int, folder: Path) -> list[float]:
    """Run this module's worker under torchrun; read what it measured."""
    file = folder.parent / f"processes-{processes}.json"
    worker = ["-m", "benchmarks.scaling", "--worker", str(file), "--folder", str(folder), "--rounds", str(rounds)]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", *worker]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    if done.returncode:
        raise RuntimeError(f"torchrun on {processes} processes failed: {done.stderr[-2000:]}")
    return json.loads(file.read_text())


def work(file: Path, folder: Path, small: bool, rounds: int) -> None:
    """Be one of several processes: time the step, and write the first one's seconds."""
    world = World.of_environment()
    config = config_of({"run.device": "cpu", "run.threads": 1}, small, folder)
    with world.joined(torch.device("cpu")):
        times = in_turns({"step": prepare(config, world)}, rounds=rounds, warm_up=2)
    if world.first:
        file.write_text(json.dumps(times.seconds["step"]))


def draw(point: dict[str, Any], folder: Path) -> None:
    """Plot a sweep: the medians, their rounds, and the fitted line; `NAME.png`."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    values, seconds = np.array(point["values"], float), np.array(point["seconds"])
    figure = Figure(figsize=(3.6, 2.7), layout="constrained")
    axes = figure.subplots()
    for n, found in point["rounds"].items():
        axes.plot([float(n)] * len(found), found, ".", color="0.7", markersize=4)
    level = np.exp(np.mean(np.log(seconds) - point["exponent"] * np.log(values)))
    axes.plot(values, level * values ** point["exponent"], "-", linewidth=1, label=f"exponent {point['exponent']:.2f}")
    axes.plot(values, seconds, "o", markersize=4, label="median")
    axes.set(
        xscale="log", yscale="log", xlabel=point["axis"], ylabel="s a start" if point["name"] == "files" else "s a step"
    )
    axes.set_xticks(values, [f"{n:,.0f}" for n in values], fontsize=7)
    axes.minorticks_off()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))  # a sweep may stay within a decade
    axes.yaxis.set_major_formatter("{x:g}")
    axes.legend(fontsize=7)
    with atomic_path(folder / f"{point['name']}.png") as temporary:
        figure.savefig(temporary, dpi=110, format="png")


def report(points: Sequence[dict[str, Any]]) -> list[str]:
    """Write the sweeps as Markdown."""
    lines = [
        "| time against | values | medians, s | exponent | of the last two | expected |",
        "|---|---|---|---:|---:|---|",
    ]
    for point in points:
        values = ", ".join(f"{n:,}" for n in point["values"])
        seconds = ", ".join(f"{s:.3g}" for s in point["seconds"])
        fitted = f"{point['exponent']:.2f} | {point['last_exponent']:.2f}"
        lines.append(f"| {point['axis']} | {values} | {seconds} | {fitted} | {point['about']} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--small", action="store_true", help="two points of a tiny network; write nothing")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)  # what torchrun starts
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker is not None:
        work(arguments.worker, arguments.folder, arguments.small, arguments.rounds)
        return
    small, rounds = arguments.small, 1 if arguments.small else arguments.rounds
    begin = time.monotonic()
    about = machine() | peaks(rounds=1 if small else 5) | versions("torch", "torchvision", "timm")
    print(about, flush=True)
    points: list[dict[str, Any]] = []

    def note(point: dict[str, Any]) -> None:
        points.append(point)
        print(f"{point['axis']}: {point['values']} {point['seconds']} exponent {point['exponent']:.2f}", flush=True)

    with tempfile.TemporaryDirectory() as temporary:
        os.environ["CODO_CACHE"] = str(Path(temporary) / "cache")  # of no use afterwards
        folder = Path(temporary) / "pictures"
        write_pictures(folder, 96, 320)
        for sweep in SWEEPS:
            note(sweep_steps(sweep, small, rounds, folder))
        if not small:  # each process imports torch
            note(sweep_processes(rounds, folder))
        note(sweep_files((100, 1000) if small else (1_000, 10_000, 100_000, 1_000_000), 1))
    lines = [
        f"Medians of {rounds} rounds in turns, of the files one; {time.monotonic() - begin:.0f} s in all.",
        "",
        *report(points),
    ]
    if small:
        print("\n".join(lines))
        return
    for point in points:
        draw(point, RESULTS / "scaling")
    lines += ["", *(f"![{point['axis']}](scaling/{point['name']}.png)" for point in points)]
    title = "How time grows: codo-small (ResNet-18, 96 px, batch 32)"
    print(write("scaling", title, "python -m benchmarks.scaling", about, [], sweeps=points, lines=lines))


if __name__ == "__main__":
    main()
