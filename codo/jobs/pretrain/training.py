"""The moving state of a pretraining run, from its first step to its summary."""

from __future__ import annotations

import json
import math
import resource
import shlex
import sys
import time
from collections.abc import Iterator
from typing import Any

import torch

from codo._version import __version__
from codo.augment.colour import IMAGENET_MEAN, IMAGENET_STD
from codo.config.load import fingerprint
from codo.config.pretrain import PretrainConfig
from codo.config.sections import ArchitectureSection
from codo.errors import CodoError, Interrupted
from codo.jobs.pretrain.build import Method, Sources, build_optimizer, check_enough, scaled_lr
from codo.jobs.pretrain.loop import Clock, Shortcut, StepResult, cosine_lr, shuffle_generator, train_step
from codo.jobs.pretrain.samples import Sample, SampleDataset, StepSampler, sample_loader
from codo.runs.checkpoint import save_checkpoint
from codo.runs.console import JobProgress
from codo.runs.hardware import Hardware
from codo.runs.interrupt import StopRequest
from codo.runs.record import RunFolder
from codo.runs.weights_file import save_weights


class Run:
    """The moving state of a run.

    Attributes:
        step: steps done.
        steps: steps of the whole run.
        unreadable: names of broken images that were left out or passed over.
        shortcut: whether the freshness shortcut was seen.
    """

    def __init__(self, config: PretrainConfig, dataset: SampleDataset) -> None:
        check_enough(len(dataset), config)
        self.config, self.dataset = config, dataset
        self.hardware = Hardware.resolve(config.run, heavy_loading=not dataset.foregrounds.cached)
        self.hardware.apply()
        self.method = Method(config).to(self.hardware.device).train()
        self.method.to(memory_format=torch.channels_last)
        self.optimizer = build_optimizer(config, self.method)
        self.per_epoch = len(dataset) // config.optim.batch_size
        self.step, self.steps = 0, self.per_epoch * config.optim.epochs
        self.unreadable = set(dataset.unreadable)
        self.shortcut = False

    def batches(self, steps: int) -> Iterator[Sample]:
        """Load the batches from the current step up to step `steps`."""
        sampler = StepSampler(len(self.dataset), self.config.optim.batch_size, self.config.seed, self.step, steps)
        return iter(sample_loader(self.dataset, sampler, self.hardware))

    def advance(self, batch: Sample) -> StepResult:
        """Take the next step."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr
        shuffle = shuffle_generator(self.config.seed, self.step)
        try:
            result = train_step(self.method, self.optimizer, batch.views, self.hardware, shuffle)
        except CodoError as error:
            raise CodoError(f"step {self.step + 1}: {error}") from error
        self.step += 1
        return result

    @property
    def lr(self) -> float:
        """The learning rate of the next step."""
        return cosine_lr(scaled_lr(self.config), self.step, self.steps)

    def write_start(self, folder: RunFolder, sources: Sources) -> None:
        """Record config, environment and data."""
        data = {**sources.record(), "unreadable": len(self.unreadable)}
        folder.write_start(self.config, fingerprint(self.config, sources.fingerprint), data, self.hardware)

    def state(self) -> dict[str, Any]:
        """Collect what a checkpoint holds. Generators have no state: they are functions of seed and step."""
        return {
            "step": self.step,
            "foregrounds": len(self.dataset),
            "unreadable": sorted(self.unreadable),
            "shortcut": self.shortcut,
            "method": self.method.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Take over a checkpoint's state."""
        if state["foregrounds"] != len(self.dataset):  # broken images count only where they are decoded beforehand
            raise CodoError(
                f"--resume: the run began with {state['foregrounds']} usable foregrounds, now there are "
                f"{len(self.dataset)}; resume with the run.cache that it began with"
            )
        self.method.load_state_dict(state["method"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.unreadable, self.shortcut = state["step"], set(state["unreadable"]), state["shortcut"]

    def execute(self, folder: RunFolder) -> dict[str, Any]:
        """Run to the end: steps, metrics, a checkpoint an epoch, weights; return the summary that was written."""
        start, first, batch_size = time.monotonic(), self.step, self.config.optim.batch_size
        clock, total, shortcut = Clock(), Clock(), Shortcut()
        with StopRequest() as stop, JobProgress(self.steps, "pretrain", self.step) as progress:
            batches = self.batches(self.steps)
            while self.step < self.steps:
                waiting = time.perf_counter()
                batch = next(batches)
                waited = time.perf_counter() - waiting
                lr, result = self.lr, self.advance(batch)
                self.unreadable.update(batch.skipped)
                for c in (clock, total):
                    c.waited, c.images = c.waited + waited, c.images + batch_size
                if shortcut.update(result) and not self.shortcut:
                    self.shortcut = True
                    progress.note(
                        f"warning: accuracy against the queue is {shortcut.queue:.2f}, among the keys of a batch "
                        f"{shortcut.batch:.2f}: keys are told by their age, little is learnt. Try "
                        "--set loss.negatives=batch, a smaller loss.queue_size or a larger model.key_momentum"
                    )
                if self.step % self.config.run.log_every == 0 or self.step == self.steps:
                    record = self.record(result, lr) | clock.read()
                    folder.log(record)
                    progress.update(self.step, shown(record))
                if self.step % self.per_epoch == 0 or stop.number is not None:
                    save_checkpoint(folder.path / "checkpoint.pt", self.state())
                if stop.number is not None and self.step < self.steps:
                    command = shlex.join(["codo", "pretrain", "--resume", str(folder.path)])
                    raise Interrupted(
                        stop.number, f"stopped after step {self.step} of {self.steps}; go on with: {command}"
                    )
        if not all(torch.isfinite(p).all() for p in self.method.query_encoder.parameters()):
            raise CodoError(f"step {self.step}: the weights are not finite; lower optim.lr or use --precision fp32")
        save_weights(folder.path / "weights.safetensors", self.method.query_encoder.state_dict(), self.metadata(folder))
        summary = {
            "kind": "pretrain",
            "fingerprint": folder.environment()["fingerprint"],
            "epochs": self.config.optim.epochs,
            "steps": self.steps,
            "samples": self.steps * batch_size,
            "seconds": round(time.monotonic() - start, 1),
            "resumed_at_step": first,
            **{k: round(v, 4) for k, v in total.read().items()},
            **self.last_epoch(folder),
            "unreadable_images": sorted(self.unreadable),
            "shortcut": self.shortcut,
            "peak_memory_mib": round(peak_memory(self.hardware) / 2**20),
        }
        folder.write_summary(summary)
        return summary

    def record(self, result: StepResult, lr: float) -> dict[str, float]:
        """Compose the metrics of the step just done."""
        return {
            "step": self.step,
            "epoch": round(self.step / self.per_epoch, 4),
            "loss": result.loss,
            **{f"loss_{name}": value for name, value in result.terms.items()},
            "queue_accuracy": result.queue_accuracy,
            "batch_accuracy": result.batch_accuracy,
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
        }


def shown(record: dict[str, float]) -> dict[str, float | str]:
    """Choose what of a step's metrics the display shows."""
    figures: dict[str, float | str] = {"epoch": f"{record['epoch']:.2f}", "loss": record["loss"]}
    figures |= {k.removeprefix("loss_"): v for k, v in record.items() if k.startswith("loss_")}
    if not math.isnan(record["queue_accuracy"]):
        figures["acc/queue"] = record["queue_accuracy"]
    figures["acc/batch"] = record["batch_accuracy"]
    figures |= {"images/s": round(record["images_per_s"], 1), "data wait": f"{record['data_wait']:.0%}"}
    return figures


def peak_memory(hardware: Hardware) -> int:
    """Measure the peak of memory in bytes: of the GPU, else of this process."""
    if hardware.device.type == "cuda":
        return torch.cuda.max_memory_allocated(hardware.device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
