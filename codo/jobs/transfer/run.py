"""Transfer: fine-tune a detector from pretrained weights and evaluate it as COCO does."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

from codo.config.load import MOVABLE, check_resumed, differences, fingerprint, load_run_config
from codo.config.transfer import TransferConfig
from codo.data.images import ImageError
from codo.errors import CodoError
from codo.jobs.transfer.base import Detector
from codo.jobs.transfer.caching import freeze_trunk, plan_cache
from codo.jobs.transfer.data import Data, load_data, moved_data_told
from codo.jobs.transfer.dataset import DetectionDataset, read_image, steps_per_epoch
from codo.jobs.transfer.detectors import build_detector
from codo.jobs.transfer.evaluate import Evaluation, assess, evaluate
from codo.jobs.transfer.finish import FINAL, TransferResult, finish
from codo.jobs.transfer.hardware import hardware_of
from codo.jobs.transfer.loop import STATE, Training
from codo.jobs.transfer.norms import check_norm
from codo.jobs.transfer.proof import normalisation, prove
from codo.jobs.transfer.schedule import describe_training, same_so_far, total_steps
from codo.jobs.transfer.settle import settle_norms
from codo.model import synchronise_bn
from codo.runs.checkpoint import load_checkpoint
from codo.runs.console import warn
from codo.runs.files import write_json
from codo.runs.hardware import Hardware
from codo.runs.lock import held
from codo.runs.record import RunFolder, read_json
from codo.runs.seed import integer_seed
from codo.runs.world import World
from codo.weights import GROUPS, check_architecture, read_pretrained
from codo.weights.coverage import GroupCoverage, fresh_coverage, frozen_but_fresh, load_pretrained

LENGTHS = ("optim.epochs", "optim.iterations")
"""Fields of which a resumed run may have more."""

COVERAGE = (
    *("weights.source", "groups", "ignored", "other_widths", "frozen_but_fresh", "proof"),
    *(f"groups.{name}.{of}{kind.name}" for name in GROUPS for of in ("counts.", "") for kind in fields(GroupCoverage)),
)
"""What a coverage.json must have."""


@dataclass(frozen=True)
class Start:
    """What a run begins with, as told to `transfer`'s `on_start`.

    Attributes:
        path: the run folder.
        data: counts, and what was skipped.
        loaded: what coverage.json says: the source of the weights, what was matched, the proof.
        protocol: `probe`, `finetune`, and what of it is frozen.
        training: what is trained and how (`schedule.describe_training`).
        features: what is kept of a frozen trunk, in words; None where it is not frozen.
        resumed_at: steps done before.
        hardware: what it runs on, in words.
    """

    path: Path
    data: dict[str, Any]
    loaded: dict[str, Any]
    protocol: str
    training: dict[str, Any]
    features: str | None
    resumed_at: int
    hardware: str


def transfer(
    config: TransferConfig, out: str | Path | None = None, on_start: Callable[[Start], None] | None = None
) -> TransferResult:
    """Train a detector and evaluate it.

    Writes config.yaml, environment.json, coverage.json, metrics.jsonl, checkpoint.pt; and, at the end,
    weights.safetensors (the detector as it ends), best.safetensors (the one of the highest AP, where that was not the
    end), predictions.json (of the end, in COCO's result format), curve.png and .svg, and summary.json.

    Args:
        config: all settings; from `load_transfer_config`, or made by hand.
        out: the run folder, new or empty; None is `runs/transfer-N`.
        on_start: told what was loaded before training begins.

    Raises:
        CodoError: a mistake in config, data or weights; a folder that exists or is in use; a diverged training.
        Interrupted: after Ctrl-C or SIGTERM, with the state saved.

    Example:
        >>> config = codo.load_transfer_config(flags={"weights": "runs/first"})  # doctest: +SKIP
        >>> codo.transfer(config).summary["metrics"]["AP"]  # doctest: +SKIP
        31.4
    """
    world = World.of_environment()
    _check_spread(config, world)
    hardware = hardware_of(config, world)
    hardware.apply()
    if world.first:
        RunFolder.check_free(out)
    with world.joined(hardware.device):
        with world.one_after_the_first():  # the sample data is rendered once
            data = load_data(config)
        world.check_same(data.fingerprint, "data: the images or annotations")
        detector, loaded = load_detector(config, data)
        folder = RunFolder.create(out, "transfer") if world.first else None
        with folder.begun() if folder else nullcontext():
            folder = RunFolder(world.collect(folder.path if folder else Path())[0])
            if world.first:
                write_json(folder.path / "coverage.json", loaded)
            return _execute(config, data, detector, loaded, hardware, folder, None, on_start, world)


def resume(
    path: str | Path, changes: Mapping[str, Any] | None = None, on_start: Callable[[Start], None] | None = None
) -> TransferResult:
    """Go on with a run; its end equals that of a run that was never stopped, unless it is made longer.

    Made longer, it is another run than one of that length: the milestones of lr are shares of the schedule. It says so.

    Args:
        path: the run folder.
        changes: dotted field -> value; the `run` section may change, where the data lie, before the first checkpoint
            where the weights lie, and the schedule grow.
        on_start: as for `transfer`.

    Raises:
        CodoError: no run there, or in use, other fields changed, the data did, or the number of processes, or, of a run
            that was stopped before its first checkpoint and begins again, the weights; as `transfer`.
        Interrupted: as `transfer`.

    Example:
        >>> codo.resume_transfer("runs/transfer-1", {"optim.epochs": 24})  # doctest: +SKIP
    """
    world, folder = World.of_environment(), RunFolder.open(path)
    with held(folder.path if world.first else None):
        return _resume(folder, changes, on_start, world)


def _resume(
    folder: RunFolder, changes: Mapping[str, Any] | None, on_start: Callable[[Start], None] | None, world: World
) -> TransferResult:
    """Go on with a run that no other process can change."""
    path = folder.path
    before, config = (load_run_config(TransferConfig, path, fields) for fields in (None, changes))
    changed = differences(before, config)
    longer = [
        key for key in LENGTHS if key in changed and None not in changed[key] and changed[key][0] < changed[key][1]
    ]
    checkpoint = path / "checkpoint.pt"
    # Without a checkpoint the weights are read again; that they are the same, and the data, is checked below.
    check_resumed(path, changed, (*longer, *MOVABLE, *([] if checkpoint.exists() else ["weights"])))
    if folder.complete and not longer:
        raise CodoError(f"--resume {path}: the run is complete; ask for more epochs to continue it")
    then = folder.environment("data.fingerprint", "processes", "extended")
    loaded = read_json(path / "coverage.json", COVERAGE)
    began = then["processes"]
    if began != world.size:  # each samples and normalises its own part of a batch
        raise CodoError(
            f"--resume {path}: the run began on {_processes(began)}, this is {_processes(world.size)}; go on with as "
            f"many (torchrun --nproc-per-node; one is without torchrun)"
        )
    hardware = hardware_of(config, world)
    hardware.apply()
    with moved_data_told(config, "--data DIR"):
        data = load_data(config)
    if then["data"]["fingerprint"] != data.fingerprint:
        raise CodoError(f"--resume {path}: the images or annotations of {data.name} have changed since")
    state = load_checkpoint(checkpoint, STATE) if checkpoint.exists() or folder.complete else None
    with world.joined(hardware.device):
        if state is not None:
            detector = fresh_detector(config, len(data.labels), state["mean"], state["std"])
        else:
            detector, now = load_detector(config, data)
            if now["weights"].get("sha256") != loaded["weights"].get("sha256"):
                raise CodoError(f"--resume {path}: the weights {config.weights} have changed since")
            if world.first:
                warn(f"{path} was stopped before its first checkpoint; it begins again")
        if world.first:
            folder.sweep()
            folder.rewind_metrics(state["step"] if state else 0)
            for name in FINAL:  # what is longer is not complete
                (path / name).unlink(missing_ok=True)
        extended = then["extended"] if state else []
        per_epoch = steps_per_epoch(len(data.train.images), config.optim.batch_size)
        if state and not same_so_far(before.optim, config.optim, per_epoch, state["step"]):
            old = total_steps(before.optim, per_epoch)
            extended = [*extended, [state["step"], old]]
            if world.first:
                warn(
                    f"{path}: its {state['step']} steps went by a schedule of {old} steps, the next by a longer one; "
                    "a run of that length from the start computes something else"
                )
        return _execute(config, data, detector, loaded, hardware, folder, state, on_start, world, extended)


def _execute(
    config: TransferConfig,
    data: Data,
    detector: Detector,
    loaded: dict[str, Any],
    hardware: Hardware,
    folder: RunFolder,
    state: dict[str, Any] | None,
    on_start: Callable[[Start], None] | None,
    world: World,
    extended: Sequence[list[int]] = (),
) -> TransferResult:
    """Train from a fresh or a saved state to the end, and write the results.

    `extended` are the steps after which the run was made longer, each with the steps that its schedule had before.
    """
    told = json.dumps(extended) if extended else ""
    name = fingerprint(config, f"{data.fingerprint} {loaded['weights'].get('sha256', 'none')}{told}")
    if world.first:
        more = {"processes": world.size, "extended": list(extended)}
        folder.write_start(config, name, data.facts, hardware, more)
    if config.norm == "sync_bn" and world.size > 1:
        synchronise_bn(detector, hardware.device)
    detector.to(hardware.device).to(memory_format=torch.channels_last)
    sides = config.detection.sides
    val_set = DetectionDataset(data.val, data.labels, *sides, train=False)
    train_set = DetectionDataset(
        data.train,
        data.labels,
        *sides,
        train=True,
        flip_p=config.optim.flip_p,
        seed=config.seed,
        masks=data.masks,
    )
    trained = describe_training(config, detector, len(data.train.images))
    kept = plan_cache(config, detector, (train_set, val_set), hardware, world)
    if on_start and world.first:
        done, told = state["step"] if state else 0, hardware.describe()
        features = str(kept) if kept else None
        on_start(Start(folder.path, data.facts, loaded, config.protocol, trained, features, done, told))
    latest: list[Evaluation] = []

    def evaluate_now(on_image: Callable[[int, int], None] | None = None) -> Evaluation:
        found = evaluate(detector, val_set, list(data.labels), hardware, on_image, world)
        latest[:] = [assess(found, data.val, data.masks, breakdown=False)]
        return latest[0]

    if state is not None:
        detector.load_state_dict(state["detector"])
    else:
        settle_norms(detector, loaded["groups"], train_set, hardware)
    features_kept = freeze_trunk(detector, (train_set, val_set), hardware, kept) if kept else None
    training = Training(config, detector.train(), train_set, evaluate_now, hardware, folder, world)
    if state is not None:
        training.restore(state)
    training.run()
    if not latest:  # resumed, and lacked nothing but its summary
        evaluate_now()
    facts = {
        "fingerprint": name,
        "weights": loaded["weights"],
        "frozen_but_fresh": loaded["frozen_but_fresh"],
        "training": trained,
        "features": features_kept,
    }
    return finish(config, folder, data, training, latest[0], facts)


def _check_spread(config: TransferConfig, world: World) -> None:
    """Refuse a batch that does not spread evenly over the processes: some would see an image twice."""
    batch = config.optim.batch_size
    if batch % world.size:
        raise CodoError(f"optim.batch_size: {batch} images do not spread evenly over {world.size} processes")


def load_detector(config: TransferConfig, data: Data) -> tuple[Detector, dict[str, Any]]:
    """Build the detector, fill it from `config.weights`, and prove it.

    Returns:
        The detector, on the processor, and what coverage.json says of it: `weights` (the source), `groups`,
        `ignored`, `frozen_but_fresh` (groups of which something is frozen that was not loaded), `proof`.

    Raises:
        CodoError: the weights are unreadable, of another architecture, do not match, or the proof fails.
    """
    if config.weights == "none":
        detector = fresh_detector(config, len(data.labels), *normalisation(None))
        fresh = fresh_coverage(detector)
        return detector, {
            "weights": {"source": "none"},
            **fresh.as_dict(),
            "frozen_but_fresh": frozen_but_fresh(detector, fresh),
            "proof": None,
        }
    check_architecture(config.architecture, config.weights)
    pretrained = read_pretrained(config.weights, config.architecture.backbone)
    check_norm(config, pretrained.metadata)
    detector = fresh_detector(config, len(data.labels), *normalisation(pretrained))
    coverage = load_pretrained(detector, pretrained, config.load)
    proof = prove(detector, config.architecture, pretrained, coverage, _first_image(config, data))
    return detector, {
        "weights": pretrained.describe(),
        **coverage.as_dict(),
        "frozen_but_fresh": frozen_but_fresh(detector, coverage),
        "proof": {**asdict(proof), "text": str(proof)},
    }


def fresh_detector(config: TransferConfig, num_classes: int, mean: Sequence[float], std: Sequence[float]) -> Detector:
    """Build a detector with fresh weights that are a function of the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(integer_seed("transfer init", config.seed))
        return build_detector(config, num_classes, mean, std)


def _processes(count: int) -> str:
    return f"{count} process{'' if count == 1 else 'es'}"


def _first_image(config: TransferConfig, data: Data) -> torch.Tensor:
    """Read the first usable training image, for the proof."""
    error: CodoError | None = None
    for image in data.train.images:
        try:
            pixels = read_image(image, *config.detection.sides)
            return torch.from_numpy(pixels).permute(2, 0, 1).float() / 255
        except ImageError as broken:
            error = broken
    raise CodoError(f"data: not one training image can be read; the last: {error}")
