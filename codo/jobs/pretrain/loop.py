"""The training loop: one step, and the steps of a run."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from dataclasses import dataclass, field

import torch
from torch import Tensor

from codo.augment import Views, finish_views
from codo.backbones import LEVELS
from codo.errors import CodoError
from codo.jobs.pretrain.build import Method
from codo.losses import Embeddings
from codo.model import embed_in_groups
from codo.runs.hardware import Hardware
from codo.runs.seed import torch_generator


@dataclass
class StepResult:
    """What one step computed; scalars.

    Attributes:
        loss: the weighted sum that was descended.
        terms: name -> loss of that term, unweighted, the mean over the query views.
        queue_accuracy: see Contrast; the mean over terms and views, NaN where no queue takes part.
        batch_accuracy: likewise.
    """

    loss: float = 0.0
    terms: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    queue_accuracy: float = 0.0
    batch_accuracy: float = 0.0


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


def train_step(
    method: Method, optimizer: torch.optim.Optimizer, views: Views, hardware: Hardware, shuffle: torch.Generator
) -> StepResult:
    """Take one step: embed the keys, contrast each query view, descend, push the keys.

    Args:
        method: encoders, losses and queues, in training mode.
        optimizer: over the query encoder.
        views: of a batch, `images` `(B, V + 1, S, S, 3)` uint8.
        hardware: device and precision.
        shuffle: draws the order in which keys are embedded.

    Raises:
        CodoError: the loss is not finite; the weights are those before this step.
    """
    device = hardware.device
    count = views.images.shape[1]
    # View by view: (V + 1, B, ...), so that each view is one block of memory.
    raw = views.images.to(device, non_blocking=True).transpose(0, 1).flatten(0, 1)
    colour = type(views.colour)(*(c.transpose(0, 1).flatten(0, 1) for c in views.colour)).to(device)
    images = finish_views(raw, colour).chunk(count)
    boxes = [
        level_boxes(exact, jittered, method.jitter_levels)
        for exact, jittered in zip(
            views.exact_boxes.to(device).unbind(1), views.boxes.to(device).unbind(1), strict=True
        )
    ]

    method.key_encoder.update(method.query_encoder)
    with hardware.autocast():
        key: Embeddings = method.key_encoder(images[-1], boxes[-1], shuffle)

    result, queries = StepResult(), count - 1
    for image, box in zip(images[:-1], boxes[:-1], strict=True):
        with hardware.autocast():
            query = embed_in_groups(method.query_encoder, image, box, method.bn_groups)
        loss = query_loss(method, query, key, result, queries)
        # View by view: the memory of one view, whatever V is.
        (loss / queries).backward()
        result.loss += float(loss.detach()) / queries
    if not math.isfinite(result.loss):
        optimizer.zero_grad(set_to_none=True)
        terms = ", ".join(f"{name} {value:.4g}" for name, value in result.terms.items())
        raise CodoError(f"the loss is not finite ({terms}); lower optim.lr or use --precision fp32")
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    for name, loss_term in method.losses.items():
        for queue, keys in zip(method.queues_of(name), loss_term.keys(key), strict=False):
            queue.push(keys)
    return result


def query_loss(method: Method, query: Embeddings, key: Embeddings, result: StepResult, queries: int) -> Tensor:
    """Sum the weighted losses of one query view, and note its terms in `result`."""
    total, share = None, 1 / queries
    for name, loss in method.losses.items():
        stale: list[Tensor | None] = [queue.keys for queue in method.queues_of(name)]
        contrast = loss(query, key, stale or [None] * loss.queues)
        weighted = method.weights[name] * contrast.loss
        total = weighted if total is None else total + weighted
        result.terms[name] += float(contrast.loss.detach()) * share
        result.queue_accuracy += float(contrast.queue_accuracy) * share / len(method.losses)
        result.batch_accuracy += float(contrast.batch_accuracy) * share / len(method.losses)
    assert total is not None, "a method has at least one loss"
    return total


def cosine_lr(base: float, step: int, steps: int) -> float:
    """Compute the learning rate of a step: a cosine from `base` to 0, no warm-up (MoCo v2, InsLoc)."""
    return base * 0.5 * (1 + math.cos(math.pi * step / steps))


def shuffle_generator(seed: int, step: int) -> torch.Generator:
    """Make the generator of a step's shuffled BN."""
    return torch_generator("shuffle", seed, step)


class Shortcut:
    """Watches for the freshness shortcut: keys told by their age instead of by what they show.

    Smooths both accuracies over about 50 steps; `found` when the one against the queue is above .9 and the one among
    the batch under half of it (thresholds ours; seen at .995 against chance, method.md, Traps).
    """

    def __init__(self) -> None:
        self.queue = self.batch = 0.0
        self.steps = 0

    def update(self, result: StepResult) -> bool:
        """Take in one step; return whether the shortcut shows."""
        if math.isnan(result.queue_accuracy):
            return False
        self.steps += 1
        rate = max(0.02, 1 / self.steps)
        self.queue += rate * (result.queue_accuracy - self.queue)
        self.batch += rate * (result.batch_accuracy - self.batch)
        return self.steps >= 50 and self.queue > 0.9 and self.batch < self.queue / 2


class Clock:
    """Images a second and the share of time spent waiting for data, since the last `read`."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Begin anew."""
        self.waited, self.images, self.start = 0.0, 0, time.perf_counter()

    def read(self) -> dict[str, float]:
        """Return both figures and begin anew."""
        elapsed = max(time.perf_counter() - self.start, 1e-9)
        figures = {"images_per_s": self.images / elapsed, "data_wait": self.waited / elapsed}
        self.reset()
        return figures
