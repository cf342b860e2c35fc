"""The moving state of a pretraining run, from its first step to its summary."""

from __future__ import annotations

import json
import math
import resource
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import closing, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader

from codo._version import __version__
from codo.augment import IMAGENET_MEAN, IMAGENET_STD
from codo.config.load import fingerprint
from codo.config.pretrain import PretrainConfig
from codo.config.sections import ArchitectureSection
from codo.errors import CodoError, Interrupted
from codo.jobs.pretrain.build import Sources, check_enough
from codo.jobs.pretrain.loop import NotFiniteError, StepResult, Trainer
from codo.jobs.pretrain.method import Method
from codo.jobs.pretrain.probing import EpochProbe
from codo.jobs.pretrain.samples import Sample, SampleDataset, StepSampler, sample_loader
from codo.jobs.pretrain.schedule import Schedule
from codo.jobs.pretrain.watch import Clock, Collapse, Shortcut, collapse_measures
from codo.model import average_statistics
from codo.parts import Parts
from codo.runs.checkpoint import save_checkpoint
from codo.runs.console import JobProgress
from codo.runs.data_wait import DataWait
from codo.runs.events import Events
from codo.runs.files import write_json
from codo.runs.hardware import Hardware
from codo.runs.interrupt import StopRequest
from codo.runs.loading import loading
from codo.runs.record import RunFolder
from codo.runs.weights_file import save_weights
from codo.runs.world import World

if TYPE_CHECKING:
    from codo.jobs.pretrain.init import Init

STATE = ("step", "seconds", "usable", "unreadable", "warnings", "watches", "method", "optimizer", "scaler")
"""What every checkpoint has."""


class Run:
    """The moving state of a run.

    Args:
        config: of the pretraining.
        dataset: its samples.
        parts: a user's own, from Python.
        world: the processes that share a batch; every process has a Run of its own, the first one writes.
        init: what the encoders begin as; None is random weights, or those of a checkpoint that `load` takes over.

    Attributes:
        step: steps done.
        steps: steps of the whole run.
        seconds: time spent in earlier sessions.
        usable: pool -> how many images it has; what is drawn depends on it.
        unreadable: names of broken images that were left out or passed over.
        warnings: name -> warning, of what was noticed: `shortcut`, `collapse`, `untrained`, `gradient`.
        extended: the steps after which the run was made longer, each with the epochs that it had before.
        begun_as: how the encoders were filled at the run's beginning, for records; None if all began at random.
    """

    def __init__(
        self,
        config: PretrainConfig,
        dataset: SampleDataset,
        parts: Parts | None = None,
        world: World | None = None,
        init: Init | None = None,
    ) -> None:
        check_enough(len(dataset), config)
        self.config, self.dataset, self.world = config, dataset, world or World()
        self.parts = parts or Parts()
        heavy = not dataset.foregrounds.cached
        self.hardware = Hardware.resolve(config.run, heavy_loading=heavy, world=self.world)
        self.hardware.apply()
        device = self.hardware.device
        self.method = Method(config, self.parts, self.world, device, init).to(device).train()
        self.method.to(memory_format=torch.channels_last)
        self.trainer = Trainer(config, self.method, self.hardware, self.world)
        self.per_epoch = len(dataset) // config.optim.batch_size
        self.schedule = Schedule(config, self.per_epoch)
        self.step, self.steps, self.seconds = 0, self.schedule.steps, 0.0
        self.usable = {"foregrounds": len(dataset), **dataset.backgrounds}
        self.unreadable = set(dataset.unreadable)
        self.warnings: dict[str, str] = {}
        self.shortcut, self.collapse = Shortcut(), Collapse()
        self.extended: list[list[int]] = []
        self.begun_as = self.method.begun_as

    def loader(self, steps: int) -> DataLoader[Sample]:
        """Make the loader of this process's batches from the current step up to step `steps`."""
        sampler = StepSampler(
            len(self.dataset), self.config.optim.batch_size, self.config.seed, self.step, steps, self.world
        )
        return sample_loader(self.dataset, sampler, self.hardware)

    def batches(self, steps: int) -> Iterator[Sample]:
        """Load them, outside of `execute`: a trial of some steps."""
        return iter(self.loader(steps))

    def advance(self, batch: Sample) -> StepResult:
        """Take the next step."""
        try:
            result = self.trainer.step(batch.views, self.step, self.schedule)
        except NotFiniteError as error:
            raise NotFiniteError(f"step {self.step + 1}: {error}") from error
        self.step += 1
        return result

    def write_start(self, folder: RunFolder, sources: Sources) -> None:
        """Record config, environment and data."""
        data = {**sources.record(), "unreadable": len(self.unreadable)}
        more = {"parts": self.parts.names(), "processes": self.world.size, "extended": self.extended}
        if self.begun_as is not None:
            more["init"] = self.begun_as
        folder.write_start(self.config, self.fingerprint(sources), data, self.hardware, more)

    def fingerprint(self, sources: Sources) -> str:
        """Name what the run computes."""
        file = {"init": self.begun_as["sha256"]} if self.begun_as is not None else {}
        told = "".join(json.dumps(given) for given in (self.parts.names(), self.extended, file) if given)
        return fingerprint(self.config, sources.fingerprint + told)

    def state(self) -> dict[str, Any]:
        """Collect what a checkpoint holds, in all processes at once. Generators are functions of seed and step."""
        average_statistics(self.method, self.world)
        self.unreadable.update(*self.world.collect(self.unreadable))
        return {
            "step": self.step,
            "seconds": self.seconds,
            "usable": self.usable,
            "unreadable": sorted(self.unreadable),
            "warnings": self.warnings,
            "watches": {"shortcut": vars(self.shortcut), "collapse": vars(self.collapse)},
            "method": self.method.state_dict(),
            "optimizer": self.trainer.optimizer.state_dict(),
            "scaler": self.trainer.scaler.state_dict(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Take over a checkpoint's state."""
        for name, count in state["usable"].items():  # broken images are left out only where all are decoded beforehand
            if self.usable.get(name) != count:
                raise CodoError(
                    f"--resume: the run began with {count} usable {name}, now there are {self.usable.get(name, 0)}; "
                    "resume with the run.cache that it began with"
                )
        try:
            self.method.load_state_dict(state["method"])
            self.trainer.optimizer.load_state_dict(state["optimizer"])
            if state["scaler"]:
                self.trainer.scaler.load_state_dict(state["scaler"])
            self.step, self.seconds = state["step"], state["seconds"]
            self.unreadable, self.warnings = set(state["unreadable"]), state["warnings"]
            vars(self.shortcut).update(state["watches"]["shortcut"])
            vars(self.collapse).update(state["watches"]["collapse"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            why = " ".join(f"{type(error).__name__}: {error}".split())
            raise CodoError(f"--resume: the checkpoint is none of this run's ({why[:200]})") from error

    def execute(self, folder: RunFolder) -> dict[str, Any]:
        """Run to the end: steps, metrics, checkpoints, weights; return the summary that was written."""
        start, earlier, first, batch_size = time.monotonic(), self.seconds, self.step, self.config.optim.batch_size
        clock, total, run = Clock(), Clock(), self.config.run
        every = run.checkpoint_every or self.per_epoch
        probe = EpochProbe(self.config) if run.probe_every and self.world.first else None
        data_wait = DataWait(self.hardware, self.world, self.dataset.foregrounds.cached)
        saved = first
        with (
            StopRequest() as stop,
            JobProgress(self.steps, "pretrain", self.step) as progress,
            closing(Events(folder.path, first)) if run.tensorboard and self.world.first else nullcontext() as events,
            loading(self.loader(self.steps)) as batches,
        ):
            if idle := self.method.untrained:
                how = ", at random" if self.begun_as is None else ""
                text = f"warning: no loss trains {', '.join(idle)}: saved as it begins{how}"
                self.note("untrained", text, progress)
            while self.step < self.steps:
                waiting = time.perf_counter()
                batch = next(batches)
                waited = time.perf_counter() - waiting
                lr = self.schedule.lr(self.step)
                try:
                    result = self.advance(batch)
                except NotFiniteError as error:
                    raise self.report(folder, batch, error, saved) from error
                if self.step == first + 1 and (idle := sorted(result.without_gradient)):
                    text = f"warning: loss {', '.join(idle)}: had no gradient in the first step, in some view at least"
                    self.note("gradient", text, progress)
                self.seconds = earlier + time.monotonic() - start
                if remedy := data_wait.add(waited, time.perf_counter() - waiting):
                    progress.note(remedy)
                self.unreadable.update(batch.skipped)
                for c in (clock, total):
                    c.waited, c.images = c.waited + waited, c.images + batch_size
                self.note("shortcut", self.shortcut.update(result), progress)
                probing = run.probe_every > 0 and self.step % (run.probe_every * self.per_epoch) == 0
                if self.step % run.log_every == 0 or self.step == self.steps or probing:
                    measures = collapse_measures(result.query) if result.query is not None else {}
                    self.note("collapse", self.collapse.update(self.step, measures), progress)
                    record = self.record(result, lr) | measures | clock.read()
                    if probing:
                        average_statistics(self.method.query_encoder, self.world)
                        if probe is not None:
                            record |= probe.measure(self.method.query_encoder, self.hardware.device)
                            clock.reset()
                    if self.world.first:
                        folder.log(record)
                    if events is not None:
                        events.write(self.step, record)
                    progress.update(self.step, shown(record))
                stopping = self.world.any(stop.number is not None, self.hardware.device)
                if self.step % every == 0 or self.step % self.per_epoch == 0 or stopping:
                    self.save(folder)
                    saved = self.step
                if stopping and self.step < self.steps:
                    command = shlex.join(["codo", "pretrain", "--resume", str(folder.path)])
                    raise Interrupted(stop.number or 15, f"stopped after step {self.step} of {self.steps}", command)
            if remedy := data_wait.remedy():
                progress.note(remedy)
        if not all(torch.isfinite(p).all() for p in self.method.query_encoder.parameters()):
            raise CodoError(f"step {self.step}: the weights are not finite; lower optim.lr or use --precision fp32")
        self.unreadable.update(*self.world.collect(self.unreadable))
        summary: dict[str, Any] = {}
        if self.world.first:  # the others may not see the folder
            summary = {
                "kind": "pretrain",
                "fingerprint": folder.environment()["fingerprint"],
                "epochs": self.config.optim.epochs,
                "steps": self.steps,
                "samples": self.steps * batch_size,
                "seconds": round(self.seconds, 1),
                "resumed_at_step": first,
                **{k: round(v, 4) for k, v in total.read().items()},
                **self.last_epoch(folder),
                "unreadable_images": sorted(self.unreadable),
                "warnings": self.warnings,
                "peak_memory_mib": round(peak_memory(self.hardware) / 2**20),
            }
            weights = folder.path / "weights.safetensors"
            save_weights(weights, self.method.query_encoder.state_dict(), self.metadata(folder))
            folder.write_summary(summary)
        return self.world.collect(summary)[0]

    def save(self, folder: RunFolder) -> None:
        """Write the checkpoint."""
        state = self.state()
        if self.world.first:
            save_checkpoint(folder.path / "checkpoint.pt", state)
        self.world.wait()  # who leaves now has torchrun kill the one that writes

    def note(self, name: str, warning: str | None, progress: JobProgress) -> None:
        """Say a warning once."""
        if warning is not None and name not in self.warnings:
            self.warnings[name] = warning
            progress.note(warning)

    def report(self, folder: RunFolder, batch: Sample, error: NotFiniteError, saved: int) -> CodoError:
        """Write what replays a step that is not finite, in all processes at once: not_finite.json."""
        paths = [str(self.dataset.foregrounds.paths[int(i)]) for i in batch.foreground]
        facts = {
            "step": self.step + 1,
            "epoch": self.step // self.per_epoch,
            "message": str(error),
            "files": [path for part in self.world.collect(paths) for path in part],
            "checkpoint_step": saved,
        }
        file = folder.path / "not_finite.json"
        if self.world.first:
            write_json(file, facts)
        command = shlex.join(["codo", "pretrain", "--resume", str(folder.path)])
        last = f"the checkpoint of step {saved} is kept, {command} comes here again" if saved else "no checkpoint yet"
        return CodoError(f"{error}. Lower optim.lr or use --precision fp32. The batch's files are in {file}; {last}")

    def record(self, result: StepResult, lr: float) -> dict[str, float]:
        """Compose the metrics of the step just done."""
        return {
            "step": self.step,
            "epoch": round(self.step / self.per_epoch, 4),
            "loss": result.loss,
            **{f"loss_{name}": value for name, value in result.terms.items()},
            "queue_accuracy": result.queue_accuracy,
            "batch_accuracy": result.batch_accuracy,
            "gradient_norm": result.gradient_norm,
            "lr": lr,
        }

    def last_epoch(self, folder: RunFolder) -> dict[str, float | None]:
        """Average the logged losses and accuracies of the last epoch."""
        logged = [record for record in folder.metrics() if record["step"] > self.steps - self.per_epoch]
        names = [key for key in logged[-1] if key.startswith("loss") or key.endswith("accuracy")]
        values = {name: [r[name] for r in logged if r[name] is not None] for name in names}
        return {name: sum(v) / len(v) if v else None for name, v in values.items()}

    def metadata(self, folder: RunFolder) -> dict[str, str]:
        """Describe the weights for whoever loads them."""
        model = self.config.model
        return {
            "codo_version": __version__,
            "fingerprint": folder.environment()["fingerprint"],
            "backbone": model.backbone,
            "architecture": json.dumps({name: getattr(model, name) for name in ArchitectureSection.model_fields}),
            "alignment": json.dumps(self.config.alignment),
            "norm": "bn",
            "mean": json.dumps(IMAGENET_MEAN),
            "std": json.dumps(IMAGENET_STD),
            "roi": json.dumps({"sampling_ratio": model.roi_sampling_ratio, "aligned": model.roi_aligned}),
            "custom": json.dumps(self.custom_parts()),
        }

    def custom_parts(self) -> dict[str, str]:
        """Name the user's own parts that decide what the weights are: `backbone`, `box_head`."""
        model, names = self.config.model, self.parts.names()
        found = {"box_head": model.box_head.path} if model.box_head is not None else {}
        if ":" in model.backbone:
            found["backbone"] = model.backbone
        return found | {kind: names[kind][0] for kind in ("backbone", "box_head") if kind in names}


def shown(record: dict[str, float]) -> dict[str, float | str]:
    """Choose what of a step's metrics the display shows."""
    figures: dict[str, float | str] = {"epoch": f"{record['epoch']:.2f}", "loss": record["loss"]}
    figures |= {k.removeprefix("loss_"): v for k, v in record.items() if k.startswith("loss_")}
    for name in ("queue", "batch"):
        if not math.isnan(record[f"{name}_accuracy"]):
            figures[f"acc/{name}"] = record[f"{name}_accuracy"]
    figures |= {"images/s": round(record["images_per_s"], 1), "data wait": f"{record['data_wait']:.0%}"}
    return figures


def peak_memory(hardware: Hardware) -> int:
    """Measure the peak of memory in bytes: of the GPU, else of this process."""
    if hardware.device.type == "cuda":
        return torch.cuda.max_memory_allocated(hardware.device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
