"""The pretraining job: from a config to a folder with weights."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from codo.augment import Augmenter, BoxJitter
from codo.backbones import Backbone
from codo.config.load import MOVABLE, check_resumed, differences, load_run_config
from codo.config.pretrain import PretrainConfig
from codo.errors import CodoError
from codo.jobs.pretrain.build import Sources, build_dataset, find_sources
from codo.jobs.pretrain.init import Init, read_init, told
from codo.jobs.pretrain.method import custom_losses, groups_of_process
from codo.jobs.pretrain.probing import check_probes
from codo.jobs.pretrain.samples import SampleDataset
from codo.jobs.pretrain.training import STATE, Run, peak_memory
from codo.losses import Loss
from codo.model.encoder import MakeBoxHead, MakeProjector
from codo.parts import Parts, find
from codo.runs.checkpoint import load_checkpoint
from codo.runs.console import duration, say, warn
from codo.runs.events import check_tensorboard
from codo.runs.hardware import Hardware
from codo.runs.lock import held
from codo.runs.record import RunFolder
from codo.runs.world import World
from codo.weights.pretrained import unknown_pixels


@dataclass(frozen=True)
class PretrainResult:
    """A finished run.

    Attributes:
        path: the run folder, as `--weights` of a transfer takes it.
        summary: what summary.json holds.

    Example:
        >>> PretrainResult(Path("runs/first"), {"loss": 4.2}).summary["loss"]
        4.2
    """

    path: Path
    summary: dict[str, Any]


def pretrain(
    config: PretrainConfig,
    out: str | Path | None = None,
    *,
    losses: Sequence[Loss] = (),
    augmenters: Sequence[Augmenter] = (),
    jitter: BoxJitter | None = None,
    projector: MakeProjector | None = None,
    box_head: MakeBoxHead | None = None,
    backbone: Callable[[], nn.Module] | None = None,
) -> PretrainResult:
    """Pretrain backbone, FPN and box head without labels; under torchrun on several processes.

    A user's own parts come as arguments (see `codo.parts.Parts`) or, by dotted path, in the config.

    Args:
        config: the settings; `codo.load_pretrain_config` makes them from presets, files and fields.
        out: the run folder to make; None takes the next `runs/pretrain-N`.
        losses: added to the objective, with weight 1.
        augmenters: applied to each view before its colour.
        jitter: in place of the config's.
        projector: makes every projector.
        box_head: makes the box head.
        backbone: makes the backbone's body.

    Raises:
        CodoError: images that cannot be used, a folder that exists or is in use, a loss that is not finite.
        Interrupted: after Ctrl-C or SIGTERM, with the state saved.

    Example:
        >>> import codo
        >>> config = codo.load_pretrain_config(preset="codo-small", flags={"data.foregrounds": "photos"})
        >>> result = codo.pretrain(config, "runs/first")  # doctest: +SKIP
        >>> result.summary["loss"]  # doctest: +SKIP
        4.2
    """
    parts = Parts(losses, augmenters, jitter, projector, box_head, backbone)
    world = World.of_environment()
    hardware, init = check_parts(config, parts, world), read_init(config)
    if world.first:
        RunFolder.check_free(out)
        if backbone is not None:
            warn(
                "a backbone handed over from Python cannot be built anew by codo transfer: give its dotted path as "
                "model.backbone, if the weights are for that"
            )
    with world.joined(hardware.device):
        sources, dataset = _open(config, parts, world)
        run = _begin(config, dataset, parts, world, init)
        del init  # its tensors are the encoders' now
        folder = RunFolder.create(out, "pretrain") if world.first else None
        with folder.begun() if folder else nullcontext():
            folder = RunFolder(world.collect(folder.path if folder else Path())[0])
            if world.first:
                run.write_start(folder, sources)
            world.wait()
            return PretrainResult(folder.path, run.execute(folder))


def resume(
    path: str | Path,
    changes: dict[str, Any] | None = None,
    *,
    losses: Sequence[Loss] = (),
    augmenters: Sequence[Augmenter] = (),
    jitter: BoxJitter | None = None,
    projector: MakeProjector | None = None,
    box_head: MakeBoxHead | None = None,
    backbone: Callable[[], nn.Module] | None = None,
) -> PretrainResult:
    """Go on with a run; its end equals that of a run that was never stopped.

    With more epochs it does not equal a run that had as many from the start: what the schedule has done stays done. Its
    fingerprint is then another one.

    Args:
        path: the run folder.
        changes: dotted field -> value; the `run` section may change, where the images lie, and the number of epochs
            grow.
        losses: as in `pretrain`, and so the other parts: those that the run began with.
        augmenters: likewise.
        jitter: likewise.
        projector: likewise.
        box_head: likewise.
        backbone: likewise.

    Raises:
        CodoError: no run there, or in use, nothing left to do, other fields or parts changed, or the images did.

    Example:
        >>> codo.resume_pretrain("runs/first", {"optim.epochs": 40})  # doctest: +SKIP
    """
    parts = Parts(losses, augmenters, jitter, projector, box_head, backbone)
    world, folder = World.of_environment(), RunFolder.open(path)
    with held(folder.path if world.first else None):
        return _resume(folder, changes, parts, world)


def _resume(folder: RunFolder, changes: dict[str, Any] | None, parts: Parts, world: World) -> PretrainResult:
    """Go on with a run that no other process can change."""
    path = folder.path
    before, config = (load_run_config(PretrainConfig, path, fields) for fields in (None, changes))
    longer = before.optim.epochs < config.optim.epochs
    checkpoint = path / "checkpoint.pt"
    anew = not checkpoint.exists() and not folder.complete
    # Paths may change where the images, and the weights that it begins with again, are the same ones, which is checked.
    moved = ["model.init"] if anew and before.model.init and config.model.init else []
    check_resumed(path, differences(before, config), (*MOVABLE, *moved, *(["optim.epochs"] if longer else [])))
    if folder.complete and not longer:
        raise CodoError(f"--resume {path}: the run is complete; ask for more epochs to continue it")
    init_keys = ("init.sha256", "init.tensors", "init.other_widths") if before.model.init else ()
    then = folder.environment("data.fingerprint", "parts", "processes", "extended", *init_keys)
    begun_as, init = then.get("init"), read_init(config) if anew else None
    if init is not None and begun_as is not None and init.weights.sha256 != begun_as["sha256"]:
        raise CodoError(f"--resume {path}: {config.model.init} is not the file that the run began with")
    if then["parts"] != parts.names():
        raise CodoError(
            f"--resume {path}: the run began with the parts {then['parts'] or 'none'} from Python, now they are "
            f"{parts.names() or 'none'}; pass the same to codo.resume_pretrain"
        )
    hardware = check_parts(config, parts, world)
    with world.joined(hardware.device):
        sources, dataset = _open(config, parts, world)
        if sources.fingerprint != then["data"]["fingerprint"]:
            raise CodoError(f"--resume {path}: the images are not those that the run began with")
        run = _begin(config, dataset, parts, world, init)
        del init
        run.begun_as = begun_as
        if not anew:
            run.load(load_checkpoint(checkpoint, STATE))
        elif world.first:
            warn(f"{path} was stopped before its first checkpoint; it begins again")
        if run.step:
            run.extended = then["extended"]
            if longer and all(step != run.step for step, _ in run.extended):
                old, new = before.optim.epochs, config.optim.epochs
                run.extended = [*run.extended, [run.step, old]]
                if world.first:
                    warn(
                        f"{path}: its {run.step} steps went by a schedule of {old} epochs, the next go by one of "
                        f"{new}; a run of {new} epochs from the start computes something else"
                    )
        if (began := then["processes"]) != world.size and world.first:
            warn(
                f"{path} ran on {began} processes, now on {world.size}: samples, BN groups and queues are "
                "the same, sums are taken in another order; equal to rounding, but for BN's running statistics, "
                "not bit for bit"
            )
        if world.first:
            folder.sweep()
            folder.rewind_metrics(run.step)
            for name in ("summary.json", "weights.safetensors"):  # what is longer is not complete
                (path / name).unlink(missing_ok=True)
            run.write_start(folder, sources)
        world.wait()
        return PretrainResult(folder.path, run.execute(folder))


def _begin(config: PretrainConfig, dataset: SampleDataset, parts: Parts, world: World, init: Init | None) -> Run:
    """Build a run, and say what of it begins as `init`.

    Raises:
        CodoError: these weights are of another backbone, or not the same in all processes.
    """
    if init is not None:
        world.check_same({"sha256": init.weights.sha256}, "model.init: the weights")
    run = Run(config, dataset, parts, world, init)
    if init is not None and run.begun_as is not None and world.first:
        say(told(run.begun_as))
        for doubt in unknown_pixels(init.weights):
            warn(f"model.init: {doubt}")
    return run


def _open(config: PretrainConfig, parts: Parts, world: World) -> tuple[Sources, SampleDataset]:
    """Find and open the images; of several processes on a machine the first one fills the cache.

    Raises:
        CodoError: they cannot be used; or another process, e.g. of another machine, sees others.
    """
    with world.one_after_the_first():
        sources = find_sources(config)
        check_probes(config)
        dataset = build_dataset(config, sources, parts)
    usable = {"foregrounds": len(dataset), **dataset.backgrounds}
    world.check_same({"fingerprint": sources.fingerprint, "usable": usable}, "data: the images")
    return sources, dataset


def check_parts(config: PretrainConfig, parts: Parts, world: World) -> Hardware:
    """Refuse an unknown device, backbone, loss or spread over processes before any image is decoded."""
    hardware = Hardware.resolve(config.run, heavy_loading=False, world=world)
    if config.run.tensorboard:
        check_tensorboard()
    groups_of_process(config, world)
    Backbone(parts.backbone or config.model.backbone, None)
    single = (config.jitter.custom, config.model.projector, config.model.box_head)
    custom_losses(config, parts)
    for part in (*config.augment, *single):
        if part is not None:
            find(part.path)
    return hardware


def dry_run(config: PretrainConfig) -> dict[str, Any]:
    """Build everything, time two steps after a first one; no run folder (decoded images go to the cache).

    Returns:
        Parameters by part, counts of images, samples and steps, seconds a step, hours of the run, peak memory in bytes.

    Raises:
        CodoError: as `pretrain`; several processes, of which each would time the whole batch.
    """
    if World.of_environment().size > 1:
        raise CodoError("--dry-run: of one process; leave torchrun out")
    check_parts(config, Parts(), World())
    init = read_init(config)
    sources, dataset = _open(config, Parts(), World())
    run = _begin(config, dataset, Parts(), World(), init)
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
        "queues": run.method.queues,
        "epochs": config.optim.epochs,
        "steps": run.steps,
        "samples": run.steps * config.optim.batch_size,
        "seconds_per_step": seconds,
        "estimated_time": duration(seconds * run.steps),
        "peak_memory": peak_memory(run.hardware),
        "fingerprint": run.fingerprint(sources),
    }
