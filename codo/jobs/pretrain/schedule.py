"""What changes from step to step: the learning rate and the momentum of the key encoder."""

from __future__ import annotations

import math
from dataclasses import dataclass

from codo.config.pretrain import PretrainConfig
from codo.jobs.pretrain.method import scaled_lr


@dataclass(frozen=True)
class Schedule:
    """What changes from step to step.

    Attributes:
        config: of the pretraining.
        per_epoch: steps of an epoch.
    """

    config: PretrainConfig
    per_epoch: int

    @property
    def steps(self) -> int:
        """Count the steps of the run."""
        return self.per_epoch * self.config.optim.epochs

    def lr(self, step: int) -> float:
        """Compute the learning rate of a step: a linear warm-up from 0, then a cosine to 0."""
        optim, base = self.config.optim, scaled_lr(self.config)
        warmup = round(optim.warmup_epochs * self.per_epoch)
        if step < warmup:
            return base * step / warmup
        if optim.schedule == "epoch":
            step = max(warmup, step // self.per_epoch * self.per_epoch)
        return cosine(base, 0.0, (step - warmup) / (self.steps - warmup))

    def key_momentum(self, step: int) -> float:
        """Compute m of a step."""
        start, end = self.config.model.key_momentum, self.config.model.key_momentum_end
        return start if end is None else cosine(start, end, step / self.steps)


def cosine(start: float, end: float, share: float) -> float:
    """Go from `start` to `end` along half a cosine; `share` in [0, 1] of the way."""
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * share))
