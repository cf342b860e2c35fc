"""The pretraining step: codo's beside the same arithmetic as it is usually written, and beside lightly's MoCo v2.

    python -m benchmarks.step            # ResNet-18 + FPN 256, four levels, 128 px, batch 16; some minutes
    python -m benchmarks.step --small    # a try-out of seconds

- codo: what `codo pretrain` calls for each batch, from uint8 views to the queue, colour and blur included.
- plain: the same arithmetic (the losses are compared) in fp32 and NCHW: torchvision's `roi_align` level by level,
  InsLoc's loop over the parameters for the moving average, MoCo's published queue, torch's SGD. It and lightly get
  finished images.
- lightly: its published MoCo v2 example on the same backbone, fp32 as published, and with bf16 and channels-last.

The queue holds 4,096 keys: 256 steps of keys, as full scale's 65,536 at batch 256; the shares are given for both sizes.
All sides keep freed memory as codo's runs do (`keep_freed_memory`; benchmarks.memory says what that gives), which
favours the peers. Targets are for one thread; all cores are measured beside it.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from lightly.loss import NTXentLoss
from lightly.models.modules import MoCoProjectionHead
from lightly.models.utils import deactivate_requires_grad, update_momentum
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.ops import roi_align

from benchmarks.results_file import Row, versions, write
from codo.augment import Views, finish_views
from codo.augment.colour import ColourParameters
from codo.backbones import STRIDES
from codo.config.load import load_pretrain_config
from codo.config.pretrain import PretrainConfig
from codo.jobs.bench.machine import machine, peaks
from codo.jobs.bench.timing import Times, in_turns
from codo.jobs.pretrain.loop import Trainer
from codo.jobs.pretrain.method import Method
from codo.jobs.pretrain.schedule import Schedule
from codo.runs.hardware import (
    Hardware,
    available_cores,
    has_bf16,
    keep_freed_memory,
)
from codo.runs.world import World

CPU = torch.device("cpu")
QUEUE, FULL_QUEUE = 4096, 65536


def config_of(small: bool, queue: int = QUEUE) -> PretrainConfig:
    """The method's defaults on a smaller network: one query view, one BN group, as the peers have it."""
    fields: dict[str, Any] = {
        "canvas": 128,
        "views": 1,
        "model.backbone": "resnet18",
        "model.bn_groups": 1,
        "optim.batch_size": 16,
        "loss.queue_size": queue,
    }
    if small:
        fields |= {"canvas": 64, "model.backbone": "resnet10t", "optim.batch_size": 4, "model.fpn_channels": 32}
        fields |= {"model.box_head_channels": 32, "model.box_head_fc": 64, "loss.queue_size": 64}
    return load_pretrain_config(preset="codo", flags=fields)


def made_up_views(config: PretrainConfig) -> Views:
    """One batch, coloured and (every second view) blurred."""
    draw, (batch, side) = torch.Generator().manual_seed(0), (config.optim.batch_size, config.canvas)
    views = config.views + 1
    corner = torch.rand(batch, views, 2, generator=draw) * side * 0.4
    boxes = torch.cat([corner, corner + side * (0.5 + 0.1 * torch.rand(batch, views, 2, generator=draw))], -1)
    colour = ColourParameters(
        0.8 + 0.4 * torch.rand(batch, views, 4, generator=draw) - torch.tensor([0, 0, 0, 1.0]),
        torch.arange(4).expand(batch, views, 4),
        torch.zeros(batch, views, dtype=torch.bool),
        (torch.arange(batch)[:, None] % 2).expand(batch, views).float(),
        torch.zeros(batch, views, dtype=torch.bool),
    )
    images = torch.randint(0, 256, (batch, views, side, side, 3), dtype=torch.uint8, generator=draw)
    return Views(images, boxes, boxes, boxes, colour)


def finished(views: Views) -> tuple[list[Tensor], list[Tensor]]:
    """What the peers get: of each view the images `(B, 3, S, S)` in NCHW and the boxes `(B, 4)`."""
    colour = ColourParameters(*(c.transpose(0, 1).flatten(0, 1) for c in views.colour))
    images = finish_views(views.images.transpose(0, 1).flatten(0, 1), colour)
    return [i.contiguous() for i in images.chunk(views.images.shape[1])], list(views.exact_boxes.unbind(1))


class Codo:
    """codo's step."""

    def __init__(self, config: PretrainConfig, views: Views, precision: Any) -> None:
        self.method = Method(config).train().to(memory_format=torch.channels_last)
        self.trainer = Trainer(config, self.method, Hardware(CPU, precision, 0, 1), World())
        self.views, self.schedule, self.number = views, Schedule(config, 1000), 0

    def __call__(self) -> float:
        self.number += 1
        return self.trainer.step(self.views, self.number - 1, self.schedule).loss


class Plain:
    """The same arithmetic, as it is usually written; from codo's own weights and queues."""

    def __init__(self, config: PretrainConfig, views: Views, like: Method) -> None:
        self.query = copy.deepcopy(like.query_encoder).to(memory_format=torch.contiguous_format)
        self.key = copy.deepcopy(like.key_encoder.encoder).to(memory_format=torch.contiguous_format)
        self.config, (self.images, self.boxes) = config, finished(views)
        self.queues = [q.keys.T.contiguous() for q in like.losses["level"].queues]  # MoCo's: (d, K)
        self.pointer = 0
        optim = config.optim
        self.optimizer = torch.optim.SGD(
            self.query.parameters(),
            lr=Schedule(config, 1000).lr(0),
            momentum=optim.momentum,
            weight_decay=optim.weight_decay,
            nesterov=optim.nesterov,
            foreach=False,
        )

    def embed(self, encoder: Any, images: Tensor, boxes: Tensor) -> list[Tensor]:
        """Pool the box from every level, level by level."""
        pyramid, model = encoder.backbone(images).values(), self.config.model
        pooled = [
            roi_align(level, list(boxes[:, None]), 7, 1 / stride, model.roi_sampling_ratio, model.roi_aligned)
            for level, stride in zip(pyramid, STRIDES, strict=True)
        ]
        embedded = encoder.projector(encoder.box_head(torch.cat(pooled)))
        return [F.normalize(e, dim=1) for e in embedded.chunk(len(pooled))]

    @torch.no_grad()
    def update_key(self) -> None:
        """InsLoc's (MoCo's) loop."""
        m = self.config.model.key_momentum
        for q, k in zip(self.query.parameters(), self.key.parameters(), strict=True):
            k.data = k.data * m + q.data * (1.0 - m)

    def __call__(self) -> float:
        with torch.no_grad():
            self.update_key()
            keys = self.embed(self.key, self.images[-1], self.boxes[-1])
        loss = torch.zeros(())
        for q, k, queue in zip(self.embed(self.query, self.images[0], self.boxes[0]), keys, self.queues, strict=True):
            positive = torch.einsum("nc,nc->n", q, k).unsqueeze(-1)
            negative = torch.einsum("nc,ck->nk", q, queue.clone().detach())
            logits = torch.cat([positive, negative], dim=1) / self.config.loss.temperature
            loss = loss + F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.long))
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        for queue, k in zip(self.queues, keys, strict=True):
            queue[:, self.pointer : self.pointer + len(k)] = k.T
        self.pointer = (self.pointer + len(keys[0])) % self.queues[0].shape[1]
        return float(loss.detach())


class Lightly:
    """lightly's example of MoCo v2 (docs.lightly.ai, examples/moco), without its data."""

    def __init__(self, config: PretrainConfig, views: Views, bf16: bool) -> None:
        self.bf16 = bf16
        self.backbone = nn.Sequential(*list(torchvision.models.resnet18().children())[:-1])
        self.head = MoCoProjectionHead(512, 512, 128)
        self.key_backbone, self.key_head = copy.deepcopy(self.backbone), copy.deepcopy(self.head)
        deactivate_requires_grad(self.key_backbone)
        deactivate_requires_grad(self.key_head)
        self.criterion = NTXentLoss(memory_bank_size=(config.loss.queue_size, 128))
        self.optimizer = torch.optim.SGD([*self.backbone.parameters(), *self.head.parameters()], lr=0.06)
        self.images = finished(views)[0]
        if bf16:
            self.backbone.to(memory_format=torch.channels_last)
            self.key_backbone.to(memory_format=torch.channels_last)
            self.images = [i.contiguous(memory_format=torch.channels_last) for i in self.images]

    def __call__(self) -> float:
        update_momentum(self.backbone, self.key_backbone, m=0.996)
        update_momentum(self.head, self.key_head, m=0.996)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            query = self.head(self.backbone(self.images[0]).flatten(start_dim=1))
            key = self.key_head(self.key_backbone(self.images[-1]).flatten(start_dim=1)).detach()
            loss = self.criterion(query, key)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return float(loss.detach())


def operations(step: Callable[[], Any]) -> float:
    """Count the floating-point operations of a step: of products and convolutions, forward and backward."""
    with FlopCounterMode(display=False) as counter:
        step()
    return float(counter.get_total_flops())


class Parts:
    """Where the time of codo's steps goes: part -> seconds of each step."""

    def __init__(self, codo: Codo) -> None:
        self.codo, self.steps = codo, defaultdict[str, list[float]](list)
        self._now: dict[str, float] = defaultdict(float)
        self._backward = 0.0
        trainer, method = codo.trainer, codo.method
        (loss,) = method.losses.values()
        self._clock(trainer, "_prepare", "colour, blur, normalise")
        self._clock(method.key_encoder, "update", "moving average")
        self._clock(method.key_encoder, "forward", "key encoder")
        self._clock(trainer.encoder, "forward", "query encoder, forward")
        self._clock(loss, "forward", "loss")
        self._clock(loss, "update", "queue")
        self._clock(trainer.scaler, "scale", "")
        self._clock(torch.Tensor, "backward", "query encoder, backward")
        self._clock(nn.utils, "get_total_norm", "norm of the gradient")
        self._clock(trainer.optimizer, "step", "SGD")

    def _clock(self, owner: Any, name: str, part: str) -> None:
        inner = getattr(owner, name)

        def timed(*arguments: Any, **named: Any) -> Any:
            start = time.perf_counter()
            if name == "backward":
                self._backward = start
            value = inner(*arguments, **named)
            self._now[part] += time.perf_counter() - start
            if part.endswith("forward"):
                value.level.register_hook(self._loss_is_done)  # the backward pass reaches the embeddings
            return value

        self._restore = [*getattr(self, "_restore", []), (owner, name, inner)]
        setattr(owner, name, timed)

    def _loss_is_done(self, gradient: Tensor) -> None:
        spent = time.perf_counter() - self._backward
        self._now["loss"] += spent
        self._now["query encoder, backward"] -= spent

    def measure(self, steps: int, warm_up: int = 2) -> dict[str, float]:
        """Take steps; return part -> mean seconds over the faster half of the steps, `step` among them."""
        for number in range(warm_up + steps):
            self._now.clear()
            start = time.perf_counter()
            self.codo()
            self._now["step"] = time.perf_counter() - start
            self._now.pop("", None)
            if number >= warm_up:
                for part, seconds in self._now.items():
                    self.steps[part].append(seconds)
        for owner, name, inner in self._restore:
            setattr(owner, name, inner)
        order = sorted(range(steps), key=self.steps["step"].__getitem__)[: (steps + 1) // 2]
        return {part: statistics.mean(seconds[i] for i in order) for part, seconds in self.steps.items()}


def share_of_the_rest(parts: dict[str, float]) -> float:
    """The share of moving average, loss and queue, in percent."""
    return 100 * sum(parts[p] for p in ("moving average", "loss", "queue")) / parts["step"]


def check_same_arithmetic(config: PretrainConfig, views: Views, steps: int = 3) -> list[tuple[float, float]]:
    """Compare the losses of codo's steps and the plain ones', both in fp32.

    Raises:
        AssertionError: they differ by more than 0.1%; rounding grows from step to step.
    """
    codo = Codo(config, views, "fp32")
    plain = Plain(config, views, codo.method)
    pairs = [(codo(), plain()) for _ in range(steps)]
    assert all(abs(a - b) <= 1e-3 * abs(b) for a, b in pairs), f"the losses differ: {pairs}"
    return pairs


def measure(small: bool, threads: int, rounds: int) -> dict[str, Any]:
    """Time all sides with so many threads."""
    torch.set_num_threads(threads)
    keep_freed_memory()
    config, low = config_of(small), "bf16" if has_bf16(CPU) else "fp32"
    views = made_up_views(config)
    codo = Codo(config, views, low)
    plain = Plain(config, views, codo.method)
    lightly, lightly_low = Lightly(config, views, bf16=False), Lightly(config, views, bf16=has_bf16(CPU))
    work = {"step": operations(plain), "lightly": operations(lightly)}

    sides = {
        "codo": codo,
        "plain": plain,
        "lightly": lightly,
        "lightly_bf16": lightly_low,
        "codo_fp32": Codo(config, views, "fp32"),
    }
    limits = peaks(rounds=3 if small else 5)
    times = in_turns(sides, rounds=rounds, warm_up=2)
    rates = {
        side: work["lightly" if side.startswith("lightly") else "step"] / times.median(side) / 1e9 for side in sides
    }
    shares = {}
    for queue in (QUEUE, FULL_QUEUE):
        own = Codo(config if small else config_of(small, queue), views, low)
        shares[queue] = Parts(own).measure(max(2, rounds))
        del own  # its queues are large
    loop = in_turns({"loop": plain.update_key, "step": plain}, rounds=rounds)
    return {
        "threads": threads,
        "precision": low,
        "peaks": limits,
        "gflop": {name: value / 1e9 for name, value in work.items()},
        "gflop_per_s": rates,
        "seconds": dict(times.seconds),
        "parts": {str(queue): parts for queue, parts in shares.items()},
        "insloc_loop_share": 100 * loop.median("loop") / loop.median("step"),
        "times": times,
        "batch": config.optim.batch_size,
    }


def rows_of(found: dict[str, Any]) -> list[Row]:
    """The comparisons with targets."""
    times, rates, peak = found["times"], found["gflop_per_s"], found["peaks"]["bf16_gflops"]
    per_image = {side: 1000 * times.median(side) / found["batch"] for side in found["seconds"]}
    parts = found["parts"][str(QUEUE)]
    milliseconds = {part: 1000 * seconds for part, seconds in parts.items()}
    rate = statistics.median(
        (found["gflop"]["step"] / a) / (found["gflop"]["lightly"] / b)
        for a, b in zip(times.seconds["codo"], times.seconds["lightly_bf16"], strict=True)
    )
    low, high = times.spread("plain", "codo")
    return [
        Row(
            "train step",
            f"plain {per_image['plain']:.0f} ms an image, codo {per_image['codo']:.1f} ({low:.1f} to {high:.1f} x)",
            times.ratio("plain", "codo"),
            3.5,
            note=f"the bf16 peak of this processor is {peak / rates['plain']:.1f} x the plain step's own rate",
        ),
        Row(
            "arithmetic rate against lightly in bf16",
            f"GFLOP/s: lightly {rates['lightly']:.0f} as published, {rates['lightly_bf16']:.0f} in bf16 and "
            f"channels-last, codo {rates['codo']:.0f}",
            rate,
            1.6,
            note=f"the bf16 peak of this processor is {peak / rates['lightly_bf16']:.1f} x lightly's rate",
        ),
        Row(
            "arithmetic rate against the measured bf16 peak",
            f"{rates['codo']:.0f} of {peak:.0f} GFLOP/s",
            100 * rates["codo"] / peak,
            45,
            unit="%",
        ),
        Row(
            "moving average + loss + queue",
            f"{milliseconds['moving average']:.1f} + {milliseconds['loss']:.1f} + {milliseconds['queue']:.1f} of "
            f"{milliseconds['step']:.0f} ms; InsLoc's loop alone {found['insloc_loop_share']:.1f}% of the plain step",
            share_of_the_rest(parts),
            3,
            at_most=True,
            unit="%",
        ),
    ]


def lines_of(found: dict[str, Any]) -> list[str]:
    """With so many threads: the comparisons once more, and where a step's time goes."""
    times: Times = found["times"]
    lines = [
        f"## Threads: {found['threads']}",
        "",
        *(f"- {r.work}: {r.measured}; {r.value:.3g} {r.unit}" for r in rows_of(found)),
        "",
    ]
    lines += ["| part of the step | ms | share |", "|---|---:|---:|"]
    parts = dict(found["parts"][str(QUEUE)])
    step = parts.pop("step")
    parts["the rest"] = step - sum(parts.values())
    lines += [f"| {part} | {1000 * s:.1f} | {100 * s / step:.1f}% |" for part, s in parts.items()]
    full = found["parts"][str(FULL_QUEUE)]
    return [
        *lines,
        "",
        f"With {FULL_QUEUE:,} keys a queue, at this batch of {found['batch']}: moving average + loss + queue "
        f"{share_of_the_rest(full):.1f}% (loss {1000 * full['loss']:.1f} ms).",
        "",
        f"In fp32 codo is {times.ratio('plain', 'codo_fp32'):.2f} x as fast as the plain step.",
        "",
    ]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--small", action="store_true", help="a small network; write nothing")
    parser.add_argument("--threads", type=int, help="only with so many torch threads")
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args(arguments)
    about = machine() | versions("torch", "torchvision", "timm", "lightly")
    about.pop("threads")
    print(about)
    pairs = check_same_arithmetic(config_of(options.small), made_up_views(config_of(options.small)))
    print("losses in fp32, codo and plain:", ", ".join(f"{a:.5f} {b:.5f}" for a, b in pairs), flush=True)
    rounds = 2 if options.small else options.rounds
    counts = [options.threads] if options.threads else sorted({1, 1 if options.small else available_cores()})
    found = [measure(options.small, threads, rounds) for threads in counts]
    rows = rows_of(found[0])
    lines = [line for each in found for line in lines_of(each)]
    if options.small:
        print("\n".join(f"{row.work}: {row.measured}" for row in rows))
        return
    for each in found:
        del each["times"]
    peaks_told = {f"{k} ({f['threads']} threads)": v for f in found for k, v in f["peaks"].items()}
    print(
        write(
            "step",
            "The pretraining step",
            "python -m benchmarks.step",
            about | peaks_told,
            rows,
            lines=lines,
            measured=found,
            losses_fp32=pairs,
        )
    )


if __name__ == "__main__":
    main()
