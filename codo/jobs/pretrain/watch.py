"""What is watched while a run learns: shortcuts and collapse, said in plain words."""

from __future__ import annotations

import math
import time

import torch
import torch.nn.functional as F
from torch import Tensor

from codo.jobs.pretrain.loop import StepResult
from codo.losses import EMBEDS, Embeddings
from codo.losses.base import stacked
from codo.measures import effective_rank


class Shortcut:
    """Watches for the freshness shortcut: keys told by their age instead of by what they show.

    Smooths both accuracies over about 50 steps; it shows when the one against the queue is above .5 and the one among
    the batch under half of it: keys told by what they show are told from the few of a batch no worse than from those
    of a queue (thresholds ours; seen at .7 to 1 against chance: experiments/results/shortcut.md).
    """

    def __init__(self) -> None:
        self.queue = self.batch = 0.0
        self.steps = 0

    def update(self, result: StepResult) -> str | None:
        """Take in one step; return a warning where the shortcut shows."""
        if math.isnan(result.queue_accuracy):
            return None
        self.steps += 1
        rate = max(0.02, 1 / self.steps)
        self.queue += rate * (result.queue_accuracy - self.queue)
        self.batch += rate * (result.batch_accuracy - self.batch)
        shows = self.steps >= 50 and self.queue > 0.5 and self.batch < self.queue / 2
        if not shows:
            return None
        return (
            f"warning: accuracy against the queue is {self.queue:.2f}, among the keys of a batch {self.batch:.2f}: "
            "keys are told by their age, little is learnt. Try --set loss.negatives=batch"
        )


@torch.no_grad()
def collapse_measures(embeddings: Embeddings) -> dict[str, float]:
    """Measure how far embeddings have collapsed, after normalising them; of several the worst.

    Args:
        embeddings: of one view of B samples, d wide.

    Returns:
        `embedding_std`: standard deviation over the batch, the mean over dimensions, times sqrt(d): 1 where the
        directions are spread evenly, 0 where all are the same. `embedding_cosine`: mean cosine of two samples, 1 where
        all are the same. `embedding_rank`: effective rank, 1 to min(B - 1, d).

    Source:
        std against 1 / sqrt(d): SimSiam (arXiv 2011.10566). Effective rank: see `codo.measures.effective_rank`.

    Example:
        >>> measures = collapse_measures(Embeddings(image=torch.ones(8, 4)))
        >>> measures["embedding_std"], round(measures["embedding_cosine"], 3)
        (0.0, 1.0)
    """
    found = [
        _measure(F.normalize(row.float(), dim=1))
        for name in EMBEDS
        if name != "offsets" and getattr(embeddings, name) is not None
        for rows in [stacked(embeddings, name)]
        for row in (rows.mean(0, keepdim=True) if name in ("dense", "cell") else rows)
    ]
    if not found:  # the box loss alone
        return {}
    return {
        "embedding_std": min(std for std, _, _ in found),
        "embedding_cosine": max(cosine for _, cosine, _ in found),
        "embedding_rank": min(rank for _, _, rank in found),
    }


def _measure(rows: Tensor) -> tuple[float, float, float]:
    """Measure `(B, d)` of unit length."""
    count, width = rows.shape
    std = rows.std(0, unbiased=False).mean() * math.sqrt(width)
    # The sum over all pairs is the squared length of the sum.
    cosine = (rows.sum(0).square().sum() - count) / max(1, count * (count - 1))
    return float(std), float(cosine), effective_rank(rows)


class Collapse:
    """Watches the measures, smoothed over about 5 readings, after the first 100 steps (thresholds ours).

    Untrained networks map all images close together, so that the beginning of a run says nothing.
    """

    STEPS = 100

    def __init__(self) -> None:
        self.std = self.rank = 0.0
        self.readings = 0

    def update(self, step: int, measures: dict[str, float]) -> str | None:
        """Take in the measures after `step` steps; return a warning where they show a collapse.

        Nothing is measured where nothing is contrasted.
        """
        if not measures:
            return None
        self.readings += 1
        rate = max(0.2, 1 / self.readings)
        self.std += rate * (measures["embedding_std"] - self.std)
        self.rank += rate * (measures["embedding_rank"] - self.rank)
        if step < self.STEPS:
            return None
        if self.std < 0.1:
            return (
                f"warning: collapse: the embeddings of all images are nearly the same (std {self.std:.3f} of 1): "
                "nothing is told apart. Try a smaller optim.lr, a larger model.key_momentum, negatives of a step's own "
                "(loss.form=info_nce, loss.negatives=batch)"
            )
        if self.rank < 2:
            return (
                f"warning: collapse: the embeddings lie on a line (effective rank {self.rank:.1f}): little is told "
                "apart. Try a smaller optim.lr, a larger batch or a smaller loss.temperature"
            )
        return None


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
