"""The pretraining job: from a config to a folder with weights."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codo.backbones import Backbone
from codo.config.load import differences, fingerprint, load_pretrain_config
from codo.config.pretrain import PretrainConfig
from codo.errors import CodoError
from codo.jobs.pretrain.build import build_dataset, find_sources
from codo.jobs.pretrain.training import Run, peak_memory
from codo.runs.checkpoint import load_checkpoint
from codo.runs.console import duration
from codo.runs.hardware import Hardware
from codo.runs.record import RunFolder


@dataclass(frozen=True)
class PretrainResult:
    """A finished run.

    Attributes:
        path: the run folder, as `--weights` of a transfer takes it.
        summary: what summary.json holds.
    """

    path: Path
    summary: dict[str, Any]


def pretrain(config: PretrainConfig, out: Path | None = None) -> PretrainResult:
    """Pretrain backbone, FPN and box head without labels.

    Args:
        config: the settings; `codo.load_config` makes them from presets, files and fields.
        out: the run folder to make; None takes the next `runs/pretrain-N`.

    Raises:
        CodoError: images that cannot be used, a folder that exists, a loss that is not finite.
        Interrupted: after Ctrl-C or SIGTERM, with the state saved.
    """
    check_parts(config)
    RunFolder.check_free(out)
    sources = find_sources(config)
    run = Run(config, build_dataset(config, sources))
    folder = RunFolder.create(out, "pretrain")
    run.write_start(folder, sources)
    return PretrainResult(folder.path, run.execute(folder))


def resume(path: Path, changes: dict[str, Any] | None = None) -> PretrainResult:
    """Go on with a run; its end equals that of a run that was never stopped.

    Args:
        path: the run folder.
        changes: dotted field -> value; the `run` section may change, and the number of epochs grow.

    Raises:
        CodoError: no run there, no checkpoint yet, nothing left to do, other fields changed, or the images did.
    """
    folder = RunFolder.open(path)
    before, config = (load_pretrain_config(file=path / "config.yaml", flags=flags) for flags in (None, changes))
    changed = differences(before, config)
    longer = before.optim.epochs < config.optim.epochs
    refused = {
        key: pair
        for key, pair in changed.items()
        # Paths may change where the images are the same ones, which is checked below.
        if not key.startswith(("run.", "data.")) and not (key == "optim.epochs" and longer)
    }
    if refused:
        told = ", ".join(f"{key} {old} -> {new}" for key, (old, new) in refused.items())
        raise CodoError(f"--resume {path}: a resumed run keeps its config ({told}); only run.* may change, epochs grow")
    if folder.complete and not longer:
        raise CodoError(f"--resume {path}: the run is complete; ask for more epochs to continue it")
    sources = find_sources(config)
    if sources.fingerprint != folder.environment()["data"]["fingerprint"]:
        raise CodoError(f"--resume {path}: the images are not those that the run began with")
    checkpoint = load_checkpoint(path / "checkpoint.pt")
    run = Run(config, build_dataset(config, sources))
    run.load(checkpoint)
    for name in ("summary.json", "weights.safetensors"):  # what is longer is not complete
        (path / name).unlink(missing_ok=True)
    folder.rewind_metrics(run.step)
    run.write_start(folder, sources)
    return PretrainResult(folder.path, run.execute(folder))


def check_parts(config: PretrainConfig) -> None:
    """Refuse an unknown device or backbone before any image is decoded."""
    Hardware.resolve(config.run, heavy_loading=False)
    Backbone(config.model.backbone, None)


def dry_run(config: PretrainConfig) -> dict[str, Any]:
    """Build everything, time two steps after a first one; no run folder (decoded images go to the cache).

    Returns:
        Parameters by part, counts of images, samples and steps, seconds a step, hours of the run, peak memory in bytes.
    """
    check_parts(config)
    sources = find_sources(config)
    run = Run(config, build_dataset(config, sources))
    batches = run.batches(min(3, run.steps))
    times = []
    for _ in range(min(3, run.steps)):
        start = time.perf_counter()
        run.advance(next(batches))
        times.append(time.perf_counter() - start)
    seconds = sum(times[1:] or times) / len(times[1:] or times)
    parts = {
        name: sum(p.numel() for p in part.parameters()) for name, part in run.method.query_encoder.named_children()
    }
    return {
        "data": sources.record(),
        "hardware": run.hardware.describe(),
        "losses": run.method.weights,
        "parameters": parts,
        "queues": sum(loss.queues for loss in run.method.losses.values()) if run.method.queues else 0,
        "epochs": config.optim.epochs,
        "steps": run.steps,
        "samples": run.steps * config.optim.batch_size,
        "seconds_per_step": seconds,
        "estimated_time": duration(seconds * run.steps),
        "peak_memory": peak_memory(run.hardware),
        "fingerprint": fingerprint(config, sources.fingerprint),
    }
