"""The loader alone, the step alone, and both together, of one config."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from codo.augment import Views
from codo.errors import CodoError
from codo.jobs.bench.timing import in_turns, repeated, synchronise
from codo.jobs.pretrain.samples import Sample
from codo.jobs.pretrain.training import Run
from codo.jobs.pretrain.watch import Clock
from codo.losses import Contrast, Embeddings

MANY = 10**6
"""Steps that the loader is asked for; it stops when nobody asks on."""


def time_loader(run: Run, seconds: float) -> dict[str, Any]:
    """Time the loader with the config's workers and cache, and nothing beside it.

    Returns:
        `images_per_s` and `views_per_s`, `first_batch_s` (which starts the workers), `batches`, `workers`, `cached`.
    """
    start = time.perf_counter()
    batches = run.batches(MANY)
    next(batches)
    first = time.perf_counter() - start
    times = repeated(lambda: next(batches), seconds=seconds, at_least=1)
    size = run.config.optim.batch_size
    # The mean: workers hand over in bursts.
    rate = size / statistics.mean(times)
    return {
        "images_per_s": rate,
        "views_per_s": rate * (run.config.views + 1),
        "first_batch_s": first,
        "batches": len(times),
        "workers": run.hardware.workers,
        "cached": run.dataset.foregrounds.cached,
    }


def time_step(run: Run, peaks: dict[str, float], seconds: float) -> dict[str, Any]:
    """Time the step on a batch that lies on the device, and beside it, in turns, its smaller parts alone.

    Args:
        run: on its device.
        peaks: from `codo.jobs.bench.machine.peaks`.
        seconds: about as many.

    Returns:
        `seconds` (median of the `rounds`) and `images_per_s`; `gflop` of a step's matrix products and convolutions (a
        multiplication and an addition are two), `gflops` a second, `peak_share` of the peak in `peak`, fp32 or bf16;
        `ema_share`, `queue_share` and `loss_share` of the step's time.
    """
    batch = resident(run, next(run.batches(MANY)))
    trainer, method, device = run.trainer, run.method, run.hardware.device

    def step() -> Any:
        return trainer.step(batch.views, 0, run.schedule)

    with FlopCounterMode(display=False) as counted:  # and warm up
        result = step()
        synchronise(device)
    if run.config.run.compile:
        step()  # compiles: not under the counter
    if result.query is None:
        raise CodoError("the step gives no embeddings, so that its losses cannot be timed")
    embedded = result.query
    parts: dict[str, Callable[[], Any]] = {
        "ema": lambda: method.key_encoder.update(method.query_encoder),
        "queue": lambda: push(run, embedded),
        "loss": lambda: compare(run, embedded),
    }
    sides = {"step": step, **parts}
    once = in_turns(sides, rounds=1, warm_up=0, device=device)
    rounds = min(50, round(seconds / once.median("step")))
    # Of full scale on a processor one is long.
    times = in_turns(sides, rounds=rounds, warm_up=0, device=device) if rounds > 1 else once
    run.trainer.optimizer.zero_grad(set_to_none=True)
    median, gflop = times.median("step"), counted.get_total_flops() / 1e9
    peak = "fp32" if run.hardware.precision == "fp32" else "bf16"
    return {
        "seconds": median,
        "images_per_s": run.config.optim.batch_size / median,
        "rounds": len(times.seconds["step"]),
        "gflop": gflop,
        "gflops": gflop / median,
        "peak": peak,
        "peak_share": gflop / median / peaks[f"{peak}_gflops"],
        **{f"{name}_share": 1 / times.ratio("step", name) for name in parts},
    }


def time_together(run: Run, seconds: float) -> dict[str, float]:
    """Train as a run does, loader and step.

    Returns:
        `images_per_s`, and `data_wait`, the share of the time that waits for data.
    """
    batches = run.batches(MANY)
    next(batches)  # starts the workers
    clock = Clock()

    def advance() -> None:
        start = time.perf_counter()
        batch = next(batches)
        clock.waited += time.perf_counter() - start
        run.trainer.step(batch.views, 0, run.schedule)
        clock.images += run.config.optim.batch_size

    repeated(advance, seconds=seconds, at_least=1)
    synchronise(run.hardware.device)
    return clock.read()


def resident(run: Run, batch: Sample) -> Sample:
    """Move a batch to the device."""
    return batch._replace(views=Views._make(part.to(run.hardware.device) for part in batch.views))


def push(run: Run, embedded: Embeddings) -> None:
    """Take a step's keys into the queues."""
    with torch.no_grad():
        for _, loss, _ in run.method.terms():
            loss.update(embedded)


def compare(run: Run, embedded: Embeddings) -> None:
    """Compute all losses of a step and their gradients at the embeddings."""
    symmetric = 2 if run.method.symmetric else 1
    for _ in range(run.config.views * symmetric):
        leaf = embedded.leaves()
        for _, loss, _ in run.method.terms():
            value = loss(leaf, embedded)
            (value.loss if isinstance(value, Contrast) else value).backward()
