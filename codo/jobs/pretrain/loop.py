"""One training step, on one process or several."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from codo.augment import Views, finish_views, mosaic
from codo.backbones import LEVELS
from codo.config.pretrain import PretrainConfig
from codo.errors import CodoError
from codo.jobs.pretrain.method import Method, build_optimizer
from codo.jobs.pretrain.own_parts import checked_contrast
from codo.jobs.pretrain.schedule import Schedule
from codo.losses import Embeddings
from codo.model import gather
from codo.runs.hardware import Hardware
from codo.runs.seed import integer_seed, torch_generator
from codo.runs.world import World


class NotFiniteError(CodoError):
    """A loss or gradient that is not finite; the weights are those before the step."""


@dataclass
class StepResult:
    """What one step computed; scalars.

    Attributes:
        loss: the weighted sum that was descended.
        terms: name -> loss of that term, unweighted, the mean over the query views.
        queue_accuracy: see Contrast; the mean over the terms and views that have it, NaN without any.
        batch_accuracy: likewise.
        gradient_norm: over all parameters, before clipping.
        query: embeddings of a query view of the whole batch, without gradient.
        without_gradient: terms that had none in some view.
    """

    loss: float = 0.0
    terms: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    queue_accuracy: float = math.nan
    batch_accuracy: float = math.nan
    gradient_norm: float = math.nan
    query: Embeddings | None = None
    without_gradient: set[str] = field(default_factory=set)
    _accuracies: list[tuple[float, float]] = field(default_factory=list)

    def note_accuracies(self, pairs: list[tuple[float, float]]) -> None:
        """Take in the accuracies (queue, batch) of some terms."""
        self._accuracies += pairs
        self.queue_accuracy, self.batch_accuracy = (
            _mean([v for v in column if not math.isnan(v)]) for column in zip(*self._accuracies, strict=True)
        )


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else math.nan


class View(NamedTuple):
    """One view of this process's B samples, as the encoder takes it; m is `config.mosaic`.

    Attributes:
        images: `(B / m^2, 3, m S, m S)`, normalised.
        exact: `(4, B, 4)`, the boxes for P2-P5, image after image.
        jittered: likewise.
        sources: `(1, B, 4)`, what of the foreground the exact boxes show, see `codo.augment.Views`.
        rows: `(B,)`, where each sample is among the boxes; None where they are in the samples' order.
    """

    images: Tensor
    exact: Tensor
    jittered: Tensor
    sources: Tensor
    rows: Tensor | None


def level_boxes(exact: Tensor, jittered: Tensor, jitter_levels: tuple[int, ...]) -> Tensor:
    """Choose the box that each level pools.

    Args:
        exact: `(B, 4)`.
        jittered: `(B, 4)`.
        jitter_levels: the k of the levels that pool the jittered box.

    Returns:
        `(4, B, 4)`, for P2, P3, P4, P5.
    """
    return torch.stack([jittered if k in jitter_levels else exact for k in LEVELS])


class Trainer:
    """Takes training steps.

    Args:
        config: of the pretraining.
        method: encoders, losses and queues, on the hardware's device, in training mode.
        hardware: device and precision.
        world: the processes that share a batch.

    Attributes:
        optimizer: over the query encoder and the losses' own parameters.
        scaler: scales the loss under fp16; else it does nothing.
    """

    def __init__(self, config: PretrainConfig, method: Method, hardware: Hardware, world: World) -> None:
        self.config, self.method, self.hardware, self.world = config, method, hardware, world
        if config.run.compile:
            method.query_encoder.compile()
            method.key_encoder.encoder.compile()
        self.encoder = world.wrapped(method.query_encoder, hardware.device, all_used=method.all_used)
        for part in (method.key_encoder, method.losses):  # DDP copies the query encoder; a user's parts may differ
            world.copy_from_first(tensor.detach() for tensor in (*part.parameters(), *part.buffers()))
        self.optimizer = build_optimizer(config, method)
        # `gather_with_gradient` multiplies by the number of processes what DDP then divides by it.
        self.scaler = torch.amp.GradScaler(
            hardware.device.type, init_scale=2.0**16 / world.size, enabled=hardware.precision == "fp16"
        )
        self._shared = [p for p in method.losses.parameters() if p.requires_grad]
        self._parameters = [*method.query_encoder.parameters(), *self._shared]

    def step(self, views: Views, number: int, schedule: Schedule) -> StepResult:
        """Take one step: embed the keys, contrast each query view, descend, take the keys into the queues.

        Dropout and the like draw from torch's global generator, which is a function of seed and step in here and is
        put back; in the losses, which every process computes of the whole batch, it is the same in all.

        Args:
            views: this process's part of the batch, `images` `(B, V + 1, S, S, 3)` uint8.
            number: steps done before.
            schedule: learning rate and key momentum.

        Raises:
            NotFiniteError: a loss or a gradient is not finite; the weights are those before this step.
        """
        method, device = self.method, self.hardware.device
        for group in self.optimizer.param_groups:
            group["lr"] = schedule.lr(number)
        method.key_encoder.momentum = schedule.key_momentum(number)
        *queries, key_view = self._prepare(views, number)
        order = torch_generator("shuffle", self.config.seed, number)
        result = StepResult()
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(integer_seed("step", self.config.seed, number, self.world.rank))
            method.key_encoder.update(method.query_encoder)
            with self.hardware.autocast():
                key = self._keys(key_view, order)
                # The other direction: the key view as query, and each query view as its key.
                back = [self._keys(view, order) for view in queries if method.symmetric]
            passes = [(view, [key]) for view in queries]
            if method.symmetric:
                passes.append((key_view, back))
            self._descend(passes, len(queries), number, result)
        self._finish(result)
        with torch.no_grad():
            for _, loss, _ in method.terms():
                loss.update(key)
        return result

    def _prepare(self, views: Views, number: int) -> list[View]:
        """Move, colour and normalise; lay out mosaics, each view in an order of its own."""
        device, count = self.hardware.device, views.images.shape[1]
        # View by view: (V + 1, B, ...), so that each view is one block of memory.
        raw = views.images.to(device, non_blocking=True).transpose(0, 1).flatten(0, 1)
        colour = type(views.colour)(*(c.transpose(0, 1).flatten(0, 1) for c in views.colour.to(device)))
        images = finish_views(raw, colour, exact=self.config.colour.exact).chunk(count)
        exact, jittered, sources = (
            boxes.to(device, non_blocking=True).unbind(1) for boxes in (views.exact_boxes, views.boxes, views.sources)
        )
        levels, side = self.method.jitter_levels, self.config.mosaic
        found = []
        for v, (image, e, j, source) in enumerate(zip(images, exact, jittered, sources, strict=True)):
            boxes, rows = torch.stack([level_boxes(e, e, levels), level_boxes(e, j, levels)]), None
            if side > 1:
                order = self._layout(len(image), number, (v + 1) % count).to(device)
                image, boxes = mosaic(image, boxes, order, side)
                source, rows = source[order], order.argsort()
            found.append(View(image, boxes[0], boxes[1], source[None], rows))
        return found

    def _layout(self, samples: int, number: int, view: int) -> Tensor:
        """Draw which of this process's samples lies where in the mosaics of a view: a permutation in each BN group.

        So the mosaics of several processes are those of one, but for `bn_groups` 1.
        """
        groups, size = self.method.bn_groups, samples // self.method.bn_groups
        first = self.world.rank * groups
        drawn = [torch_generator("mosaic", self.config.seed, number, view, first + g) for g in range(groups)]
        return torch.cat([torch.randperm(size, generator=rng) + g * size for g, rng in enumerate(drawn)])

    def _keys(self, view: View, order: torch.Generator) -> Embeddings:
        """Embed a view of the whole batch with the key encoder."""
        keys = self.method.key_encoder(view.images, view.exact, order)
        if keys.cell is not None:
            keys = keys._replace(sources=self.world.gather(view.sources, 1))
        if view.rows is None:
            return keys
        return keys.take(self.world.gather(view.rows + self.world.rank * len(view.rows)))

    def _descend(self, passes: list[tuple[View, list[Embeddings]]], views: int, step: int, result: StepResult) -> None:
        """Add up the gradients of all passes: a view as query, with its keys. The memory is that of one pass."""
        parts, groups = self.config.optim.accumulate, self.method.bn_groups
        for number, (view, keys) in enumerate(passes):
            images, boxes, last = view.images, view.jittered, number == len(passes) - 1
            draws = integer_seed("losses", self.config.seed, step, number)
            if parts == 1:
                with self.world.synchronised(self.encoder, last):
                    with self.hardware.autocast():
                        local = self.encoder(images, boxes, groups)
                    self._compare(local, view, keys, views, draws, result)
                continue
            # The loss needs the whole batch: embed without a graph, take the gradient of the embeddings, and only then
            # embed part by part with a graph (gradient caching: Gao et al., arXiv 2101.06983).
            rows = list(zip(images.chunk(parts), boxes.chunk(parts, dim=1), strict=True))
            seeds = [integer_seed("part", torch.initial_seed(), number, i) for i in range(parts)]
            embedded = []
            with torch.no_grad(), _no_statistics(self.method.query_encoder), self.hardware.autocast():
                for (i, b), seed in zip(rows, seeds, strict=True):
                    torch.manual_seed(seed)
                    embedded.append(self.method.query_encoder(i, b, groups // parts))
            local = Embeddings.concatenate(embedded).leaves()
            self._compare(local, view, keys, views, draws, result)
            if all(e is None or e.grad is None for e in local):
                raise _nothing_learnt(result)
            pieces = zip(*(e.grad.chunk(parts, -2) for e in local if e is not None and e.grad is not None), strict=True)
            for n, ((i, b), seed, gradients) in enumerate(zip(rows, seeds, pieces, strict=True)):
                torch.manual_seed(seed)
                with self.world.synchronised(self.encoder, last and n == parts - 1):
                    with self.hardware.autocast():
                        out = self.encoder(i, b, groups // parts)
                    wanted = [o for o, e in zip(out, local, strict=True) if e is not None and e.grad is not None]
                    torch.autograd.backward(wanted, list(gradients))

    def _compare(
        self, local: Embeddings, view: View, keys: list[Embeddings], views: int, draws: int, result: StepResult
    ) -> None:
        """Compute the losses of one query view and their gradients; note the figures in `result`.

        `draws` seeds what the losses draw from torch's global generator, which is put back.
        """
        if local.boxes is not None:
            local = local._replace(exact_boxes=view.exact[:1], sources=view.sources)
        query = gather(local if view.rows is None else local.take(view.rows), self.world)
        result.query = Embeddings(*(None if e is None else e.detach() for e in query))
        total, accuracies = torch.zeros((), device=self.hardware.device), []
        device = self.hardware.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(draws)
            for key in keys:
                for name, loss, weight in self.method.terms():
                    found = checked_contrast(name, loss(query, key))
                    if not found.loss.requires_grad:
                        result.without_gradient.add(name)
                    total = total + weight / views * found.loss
                    result.terms[name] += float(found.loss.detach()) / views
                    accuracies.append((float(found.queue_accuracy), float(found.batch_accuracy)))
        if not total.requires_grad:
            raise _nothing_learnt(result)
        self.scaler.scale(total).backward()
        result.loss += float(total.detach())
        result.note_accuracies(accuracies)

    def _finish(self, result: StepResult) -> None:
        """Check, clip and descend."""
        wrong = [name for name, value in result.terms.items() if not math.isfinite(value)]
        if not math.isfinite(result.loss):
            self.optimizer.zero_grad(set_to_none=True)
            terms = ", ".join(f"{name} {value:.4g}" for name, value in result.terms.items())
            raise NotFiniteError(f"the loss is not finite: {', '.join(wrong)} (of {terms})")
        self.world.average_gradients(self._shared)
        self.scaler.unscale_(self.optimizer)
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        result.gradient_norm = float(norm)
        if not math.isfinite(result.gradient_norm) and not self.scaler.is_enabled():  # the scaler passes over the step
            self.optimizer.zero_grad(set_to_none=True)
            raise NotFiniteError("the gradient is not finite, though the loss is")
        if self.config.optim.clip_norm is not None:
            nn.utils.clip_grads_with_norm_(self._parameters, self.config.optim.clip_norm, norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)


def _nothing_learnt(result: StepResult) -> CodoError:
    names = ", ".join(sorted(result.without_gradient)) or ", ".join(result.terms)
    return CodoError(f"loss {names}: has no gradient, nothing would be learnt")


@contextmanager
def _no_statistics(module: nn.Module) -> Iterator[None]:
    """Leave BN's running statistics alone while open; it normalises as in training."""
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
