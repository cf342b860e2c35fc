"""The training loop of a detector: steps, schedule, evaluations, checkpoints; a step is a function of seed and step."""

from __future__ import annotations

import math
import shlex
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from codo.backbones import has_branches
from codo.config.transfer import DETECTORS, ONE_STAGE, TransferConfig
from codo.errors import CodoError, Interrupted
from codo.jobs.transfer.base import Detector
from codo.jobs.transfer.curve import best_point
from codo.jobs.transfer.dataset import DetectionDataset, LabelledImage, batches, steps_per_epoch
from codo.jobs.transfer.evaluate import Evaluation, to_input
from codo.jobs.transfer.schedule import evaluation_interval, learning_rate, parts_of, total_steps
from codo.jobs.transfer.trunk import announce
from codo.jobs.transfer.window import Window
from codo.runs.checkpoint import save_checkpoint
from codo.runs.console import PLAIN_SECONDS, JobProgress
from codo.runs.data_wait import DataWait
from codo.runs.hardware import Hardware
from codo.runs.interrupt import StopRequest
from codo.runs.loading import loading
from codo.runs.record import RunFolder
from codo.runs.seed import integer_seed
from codo.runs.sgd import FusedSGD
from codo.runs.world import World

Evaluate = Callable[[Callable[[int, int], None]], Evaluation]

STATE = ("detector", "optimizer", "scaler", "step", "curve", "best", "seconds", "unreadable", "mean", "std")
"""What a checkpoint must have."""


def all_used(config: TransferConfig) -> bool:
    """Tell whether each parameter that is trained takes part in every step, which several processes rely on."""
    backbone = config.architecture.backbone
    ours = config.detector in DETECTORS and ":" not in backbone  # a user's parts may leave some out
    return ours and (config.detector not in ONE_STAGE or not has_branches(backbone))  # without C2


class Training:
    """A detector being trained.

    Args:
        config: of the run.
        detector: on the hardware's device.
        dataset: the training images.
        evaluate: computes the metrics of the detector as it is; takes a progress callback.
        hardware: device, precision and workers.
        folder: where metrics and checkpoints go.
        world: the processes that share a batch; the first one writes.

    Attributes:
        step: steps done.
        total: steps of the schedule.
        curve: one record (`step`, `epoch`, the twelve metrics, `mask_AP` of masks) an evaluation.
        best_state: the detector's tensors at the evaluation of the highest AP so far (`curve.best_point`), in the first
            process's memory; None before the first evaluation, and where that is the state at the end.
        seconds: time spent on training steps, evaluations left out.
        unreadable: what was wrong with the training images that were replaced.
    """

    def __init__(
        self,
        config: TransferConfig,
        detector: Detector,
        dataset: DetectionDataset,
        evaluate: Evaluate,
        hardware: Hardware,
        folder: RunFolder,
        world: World | None = None,
    ) -> None:
        self.world = world or World()
        self.config, self.detector, self.dataset = config, detector, dataset
        self.evaluate, self.hardware, self.folder = evaluate, hardware, folder
        optim = config.optim
        self.parameters = [p for p in detector.parameters() if p.requires_grad]
        self.optimizer = FusedSGD(
            self.parameters, lr=optim.lr, momentum=optim.momentum, weight_decay=optim.weight_decay
        )
        self.scaler = torch.amp.GradScaler(hardware.device.type, enabled=hardware.precision == "fp16")
        self._model = self.world.wrapped(detector, hardware.device, all_used=all_used(config))
        self.per_epoch = steps_per_epoch(len(dataset), optim.batch_size)
        self.total = total_steps(optim, self.per_epoch)
        self.step = 0
        self.curve: list[dict[str, Any]] = []
        self.best_state: dict[str, Tensor] | None = None
        self.seconds = 0.0
        self.unreadable: set[str] = set()
        self._window = Window()
        self._data_wait = DataWait(hardware, self.world)

    def restore(self, state: dict[str, Any]) -> None:
        """Take up the state that `save` wrote."""
        self.detector.load_state_dict(state["detector"])
        self.optimizer.load_state_dict(state["optimizer"])
        if state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        self.step, self.curve, self.seconds = state["step"], state["curve"], state["seconds"]
        self.best_state = state["best"]
        self.unreadable = set(state["unreadable"])
        if self._is_best:  # saved once only
            self._keep_best()

    def save(self) -> None:
        """Write checkpoint.pt: all that the rest of the run depends on besides its config and data."""
        unreadable = set().union(*self.world.collect(self.unreadable))
        if not self.world.first:
            return
        state = {
            "detector": self.detector.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "step": self.step,
            "curve": self.curve,
            "best": None if self._is_best else self.best_state,
            "seconds": self.seconds,
            "unreadable": sorted(unreadable),
            "mean": list(self.detector.transform.image_mean),
            "std": list(self.detector.transform.image_std),
        }
        save_checkpoint(self.folder.path / "checkpoint.pt", state)

    def run(self) -> None:
        """Train to the end of the schedule.

        Raises:
            Interrupted: after Ctrl-C or SIGTERM; the step was finished and a checkpoint written.
            CodoError: a loss is not finite, no image can be read, or the disk is full.
        """
        with (
            StopRequest() as stop,
            JobProgress(self.total, "transfer", self.step) as bar,
            closing(self._timed_batches()) as timed,
        ):
            self._evaluate_if_due(bar, stop)
            if self.step == self.total:  # stopped in its last evaluation: a longer run goes on from this curve
                self.save()
            for batch, waited in timed:
                self._train_step(batch, waited, bar)
                self._leave_if_asked(stop, self.world.any(stop.number is not None, self.hardware.device))
                self._evaluate_if_due(bar, stop)
                if self.step % self.per_epoch == 0 or self.step == self.total:
                    self.save()
            if remedy := self._data_wait.remedy():
                bar.note(remedy)

    def _leave_if_asked(self, stop: StopRequest, asked: bool) -> None:
        if not asked:
            return
        self.save()
        self.world.wait()  # who leaves now has torchrun kill the one that writes
        command = shlex.join(["codo", "transfer", "--resume", str(self.folder.path)])
        raise Interrupted(stop.number or 15, f"stopped after step {self.step} of {self.total}", command)

    def _timed_batches(self) -> Generator[tuple[list[LabelledImage], float]]:
        """Yield the remaining batches, each with the seconds that it was waited for."""
        plan = batches(
            len(self.dataset), self.config.optim.batch_size, self.config.seed, self.step, self.total, self.world
        )
        loader = DataLoader(self.dataset, batch_sampler=plan, collate_fn=list, **self.hardware.loader_options())
        with loading(loader) as loaded:
            while True:
                start = time.monotonic()
                batch = next(loaded, None)
                if batch is None:
                    return
                yield batch, time.monotonic() - start

    def _train_step(self, batch: Sequence[LabelledImage], waited: float, bar: JobProgress) -> None:
        start = time.monotonic()
        self._note_unreadable(batch, bar)
        rate = learning_rate(self.config.optim, self.step, self.total)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        values = {name: float(v) for name, v in self.world.mean(self._accumulate(batch)).items()}
        if not all(map(math.isfinite, values.values())):
            terms = ", ".join(f"{name} {value:.3g}" for name, value in values.items())
            raise CodoError(
                f"step {self.step + 1}: a loss is not finite ({terms}) at lr {rate:.4g}; "
                "lower optim.lr or lengthen optim.warmup_iterations"
            )
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.step += 1
        spent = time.monotonic() - start + waited
        self.seconds += spent
        self._window.add(values, len(batch) * self.world.size, spent, waited)
        if remedy := self._data_wait.add(waited, spent):
            bar.note(remedy)
        figures = {"loss": sum(values.values()), "images/s": self._window.rate, "data": self._window.waiting}
        bar.update(self.step, figures)
        if self.step % self.config.run.log_every == 0 or self.step == self.total:
            record = {"step": self.step, "epoch": self.step / self.per_epoch, "lr": rate}
            if self.world.first:
                self.folder.log(record | self._window.means())
            self._window = Window()

    def _accumulate(self, batch: Sequence[LabelledImage]) -> dict[str, Tensor]:
        """Compute the loss terms of a batch and add up their gradients, part by part (`optim.accumulate`).

        A part counts by its images. torchvision samples anchors, boxes and image sizes from the global generator; it
        is seeded here, and put back, so that a step is a function of seed and step alone.
        """
        device, totals = self.hardware.device, dict[str, Tensor]()
        parts = [batch[part] for part in parts_of(len(batch), self.config.optim.accumulate)]
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            keys = (self.config.seed, self.step, *([self.world.rank] if self.world.size > 1 else []))
            torch.manual_seed(integer_seed("transfer step", *keys))
            for number, part in enumerate(parts, start=1):
                share = len(part) / len(batch)
                with self.world.synchronised(self._model, number == len(parts)):
                    losses = self._losses(part)
                    self.scaler.scale(share * torch.stack(list(losses.values())).sum()).backward()
                for name, loss in losses.items():
                    totals[name] = totals.get(name, 0) + share * loss.detach()
        return totals

    def _losses(self, samples: Sequence[LabelledImage]) -> dict[str, Tensor]:
        device = self.hardware.device
        images = [to_input(sample.image, device) for sample in samples]
        targets = [
            {
                "boxes": sample.boxes.to(device, non_blocking=True),
                "labels": sample.labels.to(device, non_blocking=True),
                **({} if sample.masks is None else {"masks": sample.masks.to(device, non_blocking=True)}),
            }
            for sample in samples
        ]
        announce(self.detector, self.dataset, samples)
        with self.hardware.autocast():
            return self._model(images, targets)

    def _note_unreadable(self, batch: Sequence[LabelledImage], bar: JobProgress) -> None:
        for sample in batch:
            for reason in sample.unreadable:
                if reason not in self.unreadable:
                    self.unreadable.add(reason)
                    bar.note(f"skipped, another image takes its place: {reason}")
            if sample.image.numel() == 0:
                count, first = len(sample.unreadable), sample.unreadable[0]
                raise CodoError(f"data: {count} training images in a row cannot be read, e.g. {first}")

    def _evaluate_if_due(self, bar: JobProgress, stop: StopRequest) -> None:
        every = evaluation_interval(self.config.optim, self.per_epoch)
        due = self.step == self.total or (self.step > 0 and self.step % every == 0)
        if not due or (self.curve and self.curve[-1]["step"] == self.step):
            return

        # Each process's norms saw its own images; what is evaluated is what is saved.
        self.world.copy_from_first(self.detector.buffers())
        self.save()  # several processes do not leave within an evaluation, and torchrun kills them after 30 s
        shown = time.monotonic()

        def on_image(done: int, total: int) -> None:
            nonlocal shown
            # Several processes are not at the same image: they leave after the evaluation.
            self._leave_if_asked(stop, stop.number is not None and self.world.size == 1)
            if time.monotonic() - shown < PLAIN_SECONDS:
                return
            shown = time.monotonic()
            bar.update(self.step, {"evaluating": f"{done}/{total}"})

        record = {
            "step": self.step,
            "epoch": self.step / self.per_epoch,
            **self.evaluate(on_image).values,
        }
        self.curve.append(record)
        if self._is_best:
            self._keep_best()
        if self.world.first:
            self.folder.log(record)
        ap = record["AP"]
        bar.note(f"epoch {record['epoch']:.4g}: AP {'-' if ap is None else f'{ap:.2f}'}")

    @property
    def _is_best(self) -> bool:
        """Whether the detector, as it is, is the one of the highest AP."""
        best = best_point(self.curve)
        return best is not None and best["step"] == self.step

    def _keep_best(self) -> None:
        self.best_state = None
        if self.world.first and self.step < self.total:
            self.best_state = {name: t.detach().cpu().clone() for name, t in self.detector.state_dict().items()}
