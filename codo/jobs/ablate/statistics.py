"""What seeds can tell: the spread of a row, paired differences with intervals and tests, and a verdict in words.

One test decides, the paired t-test: two rows of one seed share their images, their order and their splits, so that
pairing takes out what the seed does to both. Wilcoxon's signed-rank test stands beside it as a check that assumes less,
and cannot decide: its smallest p with n seeds is 2 / 2^n, .25 for three and .0625 for five (`smallest_wilcoxon`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from scipy import stats

from codo.jobs.ablate.results import Cell, Results

Verdict = Literal["helps", "hurts", "more together", "less together", "no difference shown", "not enough seeds to tell"]
"""Of an interaction `more together` or `less together`: that two things overlap does not mean that they hurt."""

CONFIDENCE = 0.95
"""Of all intervals."""

ALPHA = 0.05
"""A difference is called one where the p-value, corrected by Holm, is under this."""

MARGIN, MARGIN_SHARE = 1.0, 0.05
"""Differences that matter (ours): 1 AP, or 5% of the reference's mean where that is less. "no difference shown" means
that the interval excludes differences of this size."""

FEWEST = 3
"""Seeds under which nothing is called a difference, nor none."""

MOST = 1000
"""Seeds that an estimate of how many are needed stops at."""


@dataclass(frozen=True)
class Spread:
    """Values of one row over its seeds.

    Attributes:
        values: seed -> value.
        absent: seed -> why it has none: `failed`, `missing`, `undefined`.
        mean, std: std with n - 1; None with no, or one, value.
        low, high: 95% interval of the mean (t); None with fewer than two values.
    """

    values: dict[int, float]
    absent: dict[int, str]
    mean: float | None
    std: float | None
    low: float | None
    high: float | None

    @property
    def n(self) -> int:
        """Count the seeds that have a value."""
        return len(self.values)

    @property
    def short_count(self) -> str:
        """Say how many seeds there are, of how many: `5`, or `2 of 3`."""
        return f"{self.n} of {self.n + len(self.absent)}" if self.absent else str(self.n)

    @property
    def count(self) -> str:
        """Say how many seeds there are and which are not: `5`, or `2 of 3: seed 1 failed`."""
        return _count(self.n, self.absent)


@dataclass(frozen=True)
class Comparison:
    """A difference, paired by seed, and what can be said of it.

    Attributes:
        name: row, or effect of a factorial.
        against: the row it is compared to; empty for an effect.
        differences: seed -> difference, for the seeds that both have.
        absent: seed -> why it is left out.
        mean: of the differences: the effect, in the metric's unit.
        std: of the differences, with n - 1.
        low, high: 95% interval of the mean difference (t), not corrected for the number of comparisons.
        p: two-sided, paired t-test. None with one seed, or where all differences are the same and not 0, when the
            test is undefined.
        wilcoxon: p of Wilcoxon's signed-rank test, exact.
        effect: mean / std, Cohen's d_z: the difference in units of its spread.
        margin: what matters, see `margin_of`.
        p_holm: p corrected for the number of comparisons it was made among.
        verdict: in words.
    """

    name: str
    against: str
    differences: dict[int, float]
    absent: dict[int, str]
    mean: float | None
    std: float | None
    low: float | None
    high: float | None
    p: float | None
    wilcoxon: float | None
    effect: float | None
    margin: float = MARGIN
    p_holm: float | None = None
    verdict: Verdict = "not enough seeds to tell"

    @property
    def n(self) -> int:
        """Count the seeds compared on."""
        return len(self.differences)

    @property
    def count(self) -> str:
        """Say on how many seeds, and which are left out."""
        return _count(self.n, self.absent)

    @property
    def seeds_needed(self) -> int | None:
        """Estimate the seeds for an interval of +-`margin`, should the spread stay as it is; None if there is none."""
        return None if self.std is None else seeds_for(self.std, self.margin)


def value_of(cell: Cell | None, metric: str) -> float | None:
    """Read a metric of a cell; None where the cell has not run to its end, or has no such number."""
    value = cell.metrics.get(metric) if cell is not None and cell.status == "done" else None
    return value if value is not None and math.isfinite(value) else None


def spread(results: Results, row: str, protocol: str, metric: str | None = None) -> Spread:
    """Collect what a row came to over its seeds.

    Args:
        results: of the grid.
        row: its name.
        protocol: its name.
        metric: the grid's own by default.
    """
    name = metric or results.metric
    cells = {c.seed: c for c in results.cells if c.row == row and c.protocol == protocol}
    values: dict[int, float] = {}
    absent: dict[int, str] = {}
    for seed in results.seeds:
        cell = cells.get(seed)
        value = value_of(cell, name)
        if value is not None:
            values[seed] = value
        else:
            absent[seed] = "missing" if cell is None else cell.status if cell.status != "done" else "undefined"
    return spread_of(values, absent)


def spread_of(values: Mapping[int, float], absent: Mapping[int, str]) -> Spread:
    """Collect values by seed, and why others have none."""
    return Spread(dict(values), dict(absent), *_moments(list(values.values())))


def compare(name: str, values: Spread, reference: Spread, against: str) -> Comparison:
    """Compare two rows on the seeds that both have; `judge` gives the verdict.

    Args:
        name: of the row.
        values: of the row.
        reference: of the row it is compared to.
        against: its name.
    """
    differences = {seed: v - reference.values[seed] for seed, v in values.values.items() if seed in reference.values}
    absent = dict(values.absent)
    for seed, why in reference.absent.items():
        absent[seed] = f"{absent[seed]}, and {why} for {against}" if seed in absent else f"{why} for {against}"
    return of_differences(name, against, differences, dict(sorted(absent.items())))


def of_differences(name: str, against: str, differences: Mapping[int, float], absent: Mapping[int, str]) -> Comparison:
    """Test whether the mean of the differences is 0.

    Example:
        >>> round(of_differences("a", "b", {0: 1.0, 1: 2.0, 2: 3.0}, {}).p, 4)
        0.0742
    """
    found = np.array(list(differences.values()), dtype=float)
    mean, std, low, high = _moments(found)
    p = wilcoxon = effect = None
    if std is not None and mean is not None:
        if std > 0:
            p, effect = float(stats.ttest_1samp(found, 0.0).pvalue), mean / std
        elif mean == 0:
            p = 1.0  # the same numbers, seed by seed
        else:
            low = high = None  # of no width: seeds that do not vary tell nothing about others
        wilcoxon = float(stats.wilcoxon(found).pvalue) if std > 0 or mean != 0 else 1.0
    return Comparison(name, against, dict(differences), dict(absent), mean, std, low, high, p, wilcoxon, effect)


def margin_of(reference: Spread) -> float:
    """Choose the difference that matters: `MARGIN`, or `MARGIN_SHARE` of the reference's mean where that is less.

    1 AP is little to a detector of 40 AP, and all there is to one of 1 AP.
    """
    return MARGIN if reference.mean is None else max(0.0, min(MARGIN, MARGIN_SHARE * reference.mean))


def judge(comparisons: Sequence[Comparison], margin: float = MARGIN) -> list[Comparison]:
    """Correct a family of comparisons for their number, and give each its verdict.

    A comparison that could not be tested counts as one that was: it was planned, and the others' p-values should not
    get better by its failing.
    """
    corrected = holm([1.0 if c.p is None else c.p for c in comparisons])
    return [
        replace(c, margin=margin, p_holm=None if c.p is None else p, verdict=_verdict(c, p, margin))
        for c, p in zip(comparisons, corrected, strict=True)
    ]


def _verdict(c: Comparison, p_holm: float, margin: float) -> Verdict:
    if c.n < FEWEST or c.p is None or c.mean is None or c.low is None or c.high is None:
        return "not enough seeds to tell"
    if p_holm < ALPHA:
        return "helps" if c.mean > 0 else "hurts"
    if max(-c.low, c.high) < margin or c.low == c.high == 0:
        return "no difference shown"
    return "not enough seeds to tell"


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p-values for their number: Holm's step-down, which holds under any dependence.

    scipy has Benjamini-Hochberg but not this; statsmodels has it, and would bring pandas and patsy for six lines.

    Args:
        p_values: of one family, in any order.

    Returns:
        The corrected ones, in the same order, at most 1.

    Source:
        Holm, *A simple sequentially rejective multiple test procedure*, Scand. J. Statist. 6, 1979.

    Example:
        >>> [round(p, 6) for p in holm([0.01, 0.04, 0.03])]
        [0.03, 0.06, 0.06]
    """
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        corrected[i] = largest
    return corrected


def smallest_wilcoxon(n: int) -> float:
    """Compute the smallest p that a two-sided signed-rank test of n pairs can give: all differences of one sign.

    Example:
        >>> smallest_wilcoxon(3), smallest_wilcoxon(5), smallest_wilcoxon(6)
        (0.25, 0.0625, 0.03125)
    """
    return min(1.0, 2.0 / 2**n)


def seeds_for(std: float, margin: float = MARGIN) -> int:
    """Find the number of seeds that makes the interval of a mean no wider than +-`margin`; `MOST` if more.

    Example:
        >>> seeds_for(1.0)
        7
    """
    counts = np.arange(FEWEST, MOST + 1)
    enough = stats.t.ppf((1 + CONFIDENCE) / 2, counts - 1) * std / np.sqrt(counts) <= margin
    return int(counts[enough.argmax()]) if enough.any() else MOST


def _moments(values: Sequence[float] | np.ndarray) -> tuple[float | None, float | None, float | None, float | None]:
    """Compute mean, std and the 95% interval of the mean; a spread that is rounding alone is 0."""
    if len(values) == 0:
        return None, None, None, None
    mean = float(np.mean(values))
    if len(values) == 1:
        return mean, None, None, None
    std = float(np.std(values, ddof=1))
    if std <= 1e-9 * max(1.0, abs(mean)):
        std, mean = 0.0, 0.0 if abs(mean) < 1e-9 else mean
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)) * std / math.sqrt(len(values))
    return mean, std, mean - half, mean + half


def _count(n: int, absent: Mapping[int, str]) -> str:
    if not absent:
        return str(n)
    return f"{n} of {n + len(absent)}: {', '.join(f'seed {seed} {why}' for seed, why in absent.items())}"
