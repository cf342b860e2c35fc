"""A grid's results by protocol: rows against the reference, ladder steps, factorial effects, time to an AP."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations, pairwise, product

import numpy as np

from codo.jobs.ablate.results import Cell, Point, Results
from codo.jobs.ablate.statistics import (
    Comparison,
    Spread,
    Verdict,
    compare,
    judge,
    margin_of,
    of_differences,
    spread,
)

TIMES = " × "
"""Between the two switches of an interaction's name."""

TARGET_SHARE = 0.9
"""Time is taken to this share of the reference's mean final AP (ours)."""


@dataclass(frozen=True)
class Reach:
    """How long the rows take to an AP.

    Attributes:
        target: AP in per cent.
        epochs: row -> seed -> epochs of transfer to it, between evaluations linearly; None if it never got there.
    """

    target: float
    epochs: dict[str, dict[int, float | None]]

    def median(self, row: str) -> float | None:
        """Compute a row's median, seeds that never got there counted as later than all; None if that is where it is."""
        times = [math.inf if t is None else t for t in self.epochs.get(row, {}).values()]
        middle = float(np.median(times)) if times else math.inf
        return middle if math.isfinite(middle) else None


@dataclass(frozen=True)
class Noise:
    """What repeated transfers of one pretraining differ by, and what seeds do; standard deviations with n - 1.

    Attributes:
        cells: of pretrained rows, whose transfers all have a value.
        within: of a cell's transfers, pooled over cells.
        seeds: of a row's cells, the means of their transfers, pooled over pretrained rows.
        single: what `seeds` would be about with one transfer each: the mean of `repeats` hides a part of `within`.
    """

    cells: int
    within: float
    seeds: float
    single: float


@dataclass(frozen=True)
class Analysis:
    """What one protocol says.

    Attributes:
        protocol: its name.
        margin: the difference that matters, in the metric's unit.
        spreads: row -> its values.
        comparisons: row -> its difference to the reference; one family for Holm.
        steps: of a ladder: each row against the one before; a family of its own.
        effects: of a factorial: main effects and interactions; a family of its own.
        reach: time to an AP; None without curves.
        noise: where transfers are repeated, how they differ within a cell; else None.
    """

    protocol: str
    margin: float
    spreads: dict[str, Spread]
    comparisons: dict[str, Comparison]
    steps: list[Comparison]
    effects: list[Comparison]
    reach: Reach | None
    noise: Noise | None


def analyse(results: Results, protocol: str) -> Analysis:
    """Compute all that the report says of a protocol."""
    names = [row.name for row in results.rows]
    spreads = {name: spread(results, name, protocol) for name in names}
    others = [name for name in names if name != results.reference]
    reference = spreads[results.reference]
    margin = margin_of(reference)
    comparisons = judge([compare(name, spreads[name], reference, results.reference) for name in others], margin)
    steps = []
    if results.design == "ladder":
        steps = judge([compare(b, spreads[b], spreads[a], a) for a, b in pairwise(names)], margin)
    return Analysis(
        protocol,
        margin,
        spreads,
        dict(zip(others, comparisons, strict=True)),
        steps,
        [_together(c) for c in judge(_effects(results, spreads), margin)],
        _reach(results, protocol),
        _noise(results, protocol, spreads),
    )


def switches_of(results: Results) -> list[str]:
    """Name the switches of a factorial, where all their combinations are rows; else none."""
    rows = [row for row in results.rows if row.factors]
    switches = list(rows[0].factors) if rows else []
    have = {tuple(row.factors.get(s) for s in switches) for row in rows}
    return switches if have == set(product((False, True), repeat=len(switches))) else []


def _effects(results: Results, spreads: dict[str, Spread]) -> list[Comparison]:
    """Compute each switch's main effect and each pair's interaction, a contrast a seed.

    The main effect is the mean with the switch on less the mean with it off. The interaction is what the first switch
    is worth with the second on, less what it is worth with it off (no half, as some books have it). A seed counts
    where all rows have a value.
    """
    switches = switches_of(results)
    rows = [row for row in results.rows if row.factors]
    absent: dict[int, str] = {}
    for seed in results.seeds if switches else ():
        gaps = [f"{why} for {r.name}" for r in rows if (why := spreads[r.name].absent.get(seed))]
        if gaps:
            absent[seed] = gaps[0] if len(gaps) == 1 else f"{gaps[0]} and {len(gaps) - 1} more"
    found = []
    for chosen in [*combinations(switches, 1), *combinations(switches, 2)]:
        signs = [math.prod(1 if row.factors[s] else -1 for s in chosen) for row in rows]
        share = 2 ** (len(switches) - len(chosen))
        contrasts = {
            seed: sum(sign * spreads[r.name].values[seed] for sign, r in zip(signs, rows, strict=True)) / share
            for seed in results.seeds
            if seed not in absent
        }
        found.append(of_differences(TIMES.join(chosen), "", contrasts, absent))
    return found


def _together(effect: Comparison) -> Comparison:
    """Say of an interaction what it is: it does not help or hurt, it is more or less than the sum."""
    words: dict[Verdict, Verdict] = {"helps": "more together", "hurts": "less together"}
    return replace(effect, verdict=words.get(effect.verdict, effect.verdict)) if TIMES in effect.name else effect


def _noise(results: Results, protocol: str, spreads: dict[str, Spread]) -> Noise | None:
    """Pool the variances of repeated transfers, and of the rows over their seeds; None where either has none.

    Rows that are not pretrained have no part in it: each of their transfers begins from other weights.
    """
    pretrained = [row.name for row in results.rows if row.changes is not None]
    cells = [
        values
        for cell in results.cells
        if (cell.protocol, cell.row in pretrained) == (protocol, True)
        if len(values := _repeated(cell, results.metric)) > 1
    ]
    rows = [(s.n - 1, s.std**2) for name, s in spreads.items() if name in pretrained and s.std is not None]
    if not cells or not rows:
        return None
    free = sum(len(values) - 1 for values in cells)
    within = sum((len(values) - 1) * float(np.var(values, ddof=1)) for values in cells) / free
    seeds = sum(n * variance for n, variance in rows) / sum(n for n, _ in rows)
    single = seeds + within * (1 - 1 / results.repeats)
    return Noise(len(cells), math.sqrt(within), math.sqrt(seeds), math.sqrt(single))


def _repeated(cell: Cell, metric: str) -> list[float]:
    values = [tree.get(metric) for tree in cell.repeats]
    return [] if None in values else [float(value) for value in values if value is not None]


def _reach(results: Results, protocol: str) -> Reach | None:
    """Time all rows to `TARGET_SHARE` of the reference's mean final AP."""
    curves = {
        (cell.row, cell.seed): cell.curve
        for cell in results.cells
        if cell.protocol == protocol and cell.status == "done" and any(p.AP is not None for p in cell.curve)
    }
    last = [
        next(p.AP for p in reversed(curve) if p.AP is not None)
        for (row, _), curve in curves.items()
        if row == results.reference
    ]
    if not last or max(last) <= 0:
        return None
    target = TARGET_SHARE * float(np.mean(last))
    epochs: dict[str, dict[int, float | None]] = {row.name: {} for row in results.rows}
    for (row, seed), curve in curves.items():
        epochs[row][seed] = epochs_to(curve, target)
    return Reach(target, epochs)


def epochs_to(curve: Sequence[Point], target: float) -> float | None:
    """Find the epoch at which a curve first reaches an AP, between evaluations linearly.

    Example:
        >>> points = [Point(step=1, epoch=1, AP=2.0), Point(step=2, epoch=2, AP=4.0)]
        >>> epochs_to(points, 3.0), epochs_to(points, 5.0)
        (1.5, None)
    """
    before: tuple[float, float] | None = None
    for point in curve:
        if point.AP is None:
            continue
        if target <= point.AP:
            if before is None:
                return point.epoch
            epoch, height = before
            return epoch + (point.epoch - epoch) * (target - height) / (point.AP - height)
        before = (point.epoch, point.AP)
    return None
