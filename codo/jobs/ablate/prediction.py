"""Do the probes of the pretraining tell what it is worth to the detector: rank correlations across rows."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import stats

from codo.jobs.ablate.results import Results
from codo.jobs.ablate.statistics import CONFIDENCE, value_of

FEWEST_ROWS = 5
"""Rows under which no correlation is given: of four, 1 order in 24 is the perfect one by luck."""


@dataclass(frozen=True)
class RankCorrelation:
    """Whether rows that are better by a probe are better by the metric.

    Attributes:
        rows: how many it was computed over.
        value: Spearman's, -1 to 1, of the rows' means; None with fewer than `FEWEST_ROWS` rows, or where one of the two
            is the same for all.
        low, high: 95% interval, for rows that were drawn at random (they were not: read it as a lower bound of what is
            unknown); None where the order is perfect, when it is undefined.
    """

    rows: int
    value: float | None
    low: float | None
    high: float | None


def rank_correlation(results: Results, protocol: str, probe: str) -> RankCorrelation:
    """Correlate a probe with the grid's metric across rows, each by its mean over the seeds that have both.

    Args:
        results: of the grid.
        protocol: whose metric.
        probe: `probe/NAME`.

    Source:
        Interval by Fisher's z with the variance (1 + r^2 / 2) / (n - 3): Bonett & Wright, *Sample size requirements for
        estimating Pearson, Kendall and Spearman correlations*, Psychometrika 65, 2000.
    """
    pairs = [pair for row in results.rows if (pair := _means(results, row.name, protocol, probe)) is not None]
    n = len(pairs)
    if n < FEWEST_ROWS:
        return RankCorrelation(n, None, None, None)
    first, second = np.array(pairs).T
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return RankCorrelation(n, None, None, None)
    value = float(stats.spearmanr(first, second).statistic)
    if abs(value) > 1 - 1e-9:
        return RankCorrelation(n, math.copysign(1.0, value), None, None)
    half = float(stats.norm.ppf((1 + CONFIDENCE) / 2)) * math.sqrt((1 + value**2 / 2) / (n - 3))
    return RankCorrelation(n, value, math.tanh(math.atanh(value) - half), math.tanh(math.atanh(value) + half))


def _means(results: Results, row: str, protocol: str, probe: str) -> tuple[float, float] | None:
    cells = [c for c in results.cells if c.row == row and c.protocol == protocol]
    values = [(value_of(c, probe), value_of(c, results.metric)) for c in cells]
    both = [(a, b) for a, b in values if a is not None and b is not None]
    if not both:
        return None
    probed, reached = np.mean(both, axis=0)
    return float(probed), float(reached)
