"""The figures, by matplotlib: one panel each, so that they read on a phone."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from codo.jobs.ablate.analysis import Analysis
from codo.jobs.ablate.report.picture import COLOURS, INK, Picture, add_legend, file_slug, look_of, panel, short_label
from codo.jobs.ablate.report.probes import PROBE, by_pretraining, chance_of, drawn_probes, headlines
from codo.jobs.ablate.report.words import MARKS, difference, families, seeds
from codo.jobs.ablate.results import Results
from codo.jobs.ablate.statistics import Comparison, value_of

SECTIONS = ("differences", "curves", "errors", "loss", "probes")
"""Of the page, that figures stand in."""


def draw(results: Results, analyses: Sequence[Analysis]) -> list[Picture]:
    """Draw all that there is something to draw of."""
    pictures: list[Picture] = []
    for number, a in enumerate(analyses, 1):
        slug = f"{number}-{file_slug(a.protocol)}"
        for part, (heading, family) in zip("abc", families(results, a), strict=False):
            pictures += _differences(results, a, f"differences-{slug}{part if part > 'a' else ''}", heading, family)
        pictures += _curves(results, a.protocol, f"curves-{slug}")
        pictures += _errors(results, a.protocol, f"errors-{slug}")
    return [*pictures, *_loss(results), *_probe_curves(results), *_probes(results)]


def _differences(results: Results, a: Analysis, name: str, heading: str, family: Sequence[Comparison]) -> list[Picture]:
    with panel(height=0.9 + 0.3 * len(family)) as (figure, axes):
        axes.axvline(0, color=INK, lw=0.8)
        for y, c in enumerate(family):
            look = {"▲": COLOURS[0], "▼": COLOURS[1]}.get(MARKS[c.verdict], INK)
            axes.plot(list(c.differences.values()), [y] * c.n, "o", color=look, alpha=0.3, ms=3, mew=0)
            if c.low is not None and c.high is not None:
                axes.plot([c.low, c.high], [y, y], color=look)
            if c.mean is not None:
                filled = look if MARKS[c.verdict] in "▲▼" else "white"
                axes.plot([c.mean], [y], "o", color=look, mfc=filled, ms=6)
        axes.set_yticks(range(len(family)), [short_label(c.name) for c in family])
        axes.set_ylim(len(family) - 0.5, -0.5)
        axes.set_xlabel(f"{heading}, {results.metric}", wrap=True)
        axes.set_title(a.protocol, loc="left", fontsize=9)
    said = "; ".join(f"{c.name}: {difference(c)}, {c.verdict}" for c in family)
    alt = f"{heading}, {results.metric}, {a.protocol}. {said}"
    return [Picture(name, "differences", f"{a.protocol}: {heading}", alt, figure)]


def _curves(results: Results, protocol: str, name: str) -> list[Picture]:
    curves = {
        row.name: [
            {point.epoch: point.AP for point in cell.curve if point.AP is not None and math.isfinite(point.AP)}
            for cell in results.cells
            if (cell.row, cell.protocol, cell.status) == (row.name, protocol, "done") and cell.curve
        ]
        for row in results.rows
    }
    figure = _bands(results, curves, "epochs of transfer", "AP")
    if figure is None:
        return []
    alt = f"AP over the transfer's epochs, {protocol}: the mean over seeds of each row, and a band from least to most."
    return [Picture(name, "curves", protocol, alt, figure)]


def _loss(results: Results) -> list[Picture]:
    cells = {(c.row, c.seed): c for c in reversed(results.cells) if c.loss}
    curves = {
        row.name: [
            {float(step): value for step, value in cell.loss if math.isfinite(value)}
            for (name, _), cell in cells.items()
            if name == row.name
        ]
        for row in results.rows
    }
    figure = _bands(results, curves, "pretraining step", "loss", markers=False)
    if figure is None:
        return []
    alt = "Loss over the pretraining's steps: the mean over seeds of each row, and a band from least to most."
    return [Picture("loss", "loss", "Pretraining loss", alt, figure)]


def _probe_curves(results: Results) -> list[Picture]:
    """Draw the probes in the course of the pretraining, where they were measured."""
    cells = {(c.row, c.seed): c for c in reversed(results.cells) if c.probe_curves}
    names = list(dict.fromkeys(name for cell in cells.values() for name in cell.probe_curves))
    pictures = []
    for probe in headlines(names):
        title = probe.removeprefix(PROBE)
        curves = {
            row.name: [dict(cell.probe_curves.get(probe, [])) for (name, _), cell in cells.items() if name == row.name]
            for row in results.rows
        }
        figure = _bands(results, curves, "epochs of pretraining", title)
        if figure is not None:
            alt = f"{title} over the pretraining's epochs: the mean over seeds of each row, and a band, least to most."
            pictures.append(Picture(f"history-{file_slug(title)}", "loss", f"{title}, of fewer images", alt, figure))
    return pictures


def _bands(
    results: Results, curves: dict[str, list[dict[float, float]]], x_label: str, y_label: str, markers: bool = True
) -> Figure | None:
    """Draw a line a row, the mean over its seeds, with a band from least to most; None if there is nothing."""
    with panel(height=3.7) as (figure, axes):
        drawn = []
        for row, found in curves.items():
            at: dict[float, list[float]] = defaultdict(list)
            for seed in found:
                for x, y in seed.items():
                    at[x].append(y)
            most = max(map(len, at.values()), default=0)
            xs = sorted(x for x, values in at.items() if len(values) == most)  # a mean of the same seeds everywhere
            if not xs:
                continue
            look = look_of(results, row)
            if not markers:
                look["marker"] = ""
            means = [float(np.mean(at[x])) for x in xs]
            drawn += axes.plot(
                xs,
                means,
                label=short_label(row, seeds(most, len(results.seeds))),
                zorder=3 if row == results.reference else 2,
                **look,
            )
            axes.fill_between(
                xs, [min(at[x]) for x in xs], [max(at[x]) for x in xs], color=look["color"], alpha=0.13, lw=0
            )
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        if drawn:
            add_legend(figure, drawn)
    return figure if drawn else None


def _errors(results: Results, protocol: str, name: str) -> list[Picture]:
    means, counts = error_means(results, protocol), error_counts(results, protocol)
    kinds = list(dict.fromkeys(kind for row in means.values() for kind in row))
    if not kinds:
        return []
    with panel(height=1.9 + 0.3 * len(kinds)) as (figure, axes):
        drawn = []
        for i, (row, values) in enumerate(means.items()):
            shift = (i - (len(means) - 1) / 2) * 0.6 / max(len(means), 1)
            known = [k for k in kinds if k in values]
            look = look_of(results, row) | {"ls": ""}
            label = short_label(row, seeds(counts[row], len(results.seeds)))
            heights = [kinds.index(k) + shift for k in known]
            drawn += axes.plot([values[k] for k in known], heights, label=label, **look)
        axes.set_yticks(range(len(kinds)), kinds)
        axes.set_ylim(len(kinds) - 0.5, -0.5)
        axes.set_xlim(left=0)
        axes.set_xlabel("AP50 that mending this error would add")
        add_legend(figure, drawn)
    alt = (
        f"TIDE's breakdown of errors, {protocol}: mean over seeds, a marker a row; the table beside it has the numbers."
    )
    return [Picture(name, "errors", protocol, alt, figure)]


def error_means(results: Results, protocol: str) -> dict[str, dict[str, float]]:
    """Compute row -> kind of error -> mean over its finished seeds."""
    found: dict[str, dict[str, list[float]]] = {}
    for row in results.rows:
        for cell in results.cells:
            if (cell.row, cell.protocol, cell.status) == (row.name, protocol, "done"):
                for kind, value in cell.errors.items():
                    found.setdefault(row.name, {}).setdefault(kind, []).append(value)
    return {row: {kind: float(np.mean(v)) for kind, v in kinds.items()} for row, kinds in found.items()}


def error_counts(results: Results, protocol: str) -> dict[str, int]:
    """Count the seeds behind each row of `error_means`."""
    cells = [c for c in results.cells if (c.protocol, c.status) == (protocol, "done") and c.errors]
    return {row.name: n for row in results.rows if (n := sum(c.row == row.name for c in cells))}


def _probes(results: Results) -> list[Picture]:
    cells = by_pretraining(results)
    pictures = []
    for probe in drawn_probes(results):
        rows = [row.name for row in results.rows]
        values = {
            row: [v for (name, _), c in cells.items() if name == row and (v := value_of(c, probe)) is not None]
            for row in rows
        }
        rows = [row for row in rows if values[row]]
        if not rows:
            continue
        title, chance = probe.removeprefix(PROBE), chance_of(results, probe)
        every = [v for row in rows for v in values[row]]
        reach = 4 * (max(every) - min(every))  # farther away, the line would press the rows into one
        near = chance is not None and min(every) - reach <= chance <= max(every) + reach
        with panel(3.7, 0.95 + 0.25 * len(rows)) as (figure, axes):
            if chance is not None and near:
                axes.axvline(chance, color=INK, lw=0.8, ls=":")
            for y, row in enumerate(rows):
                look = look_of(results, row)
                axes.plot(values[row], [y] * len(values[row]), "o", color=look["color"], alpha=0.35, ms=3, mew=0)
                axes.plot([np.mean(values[row])], [y], look["marker"], color=look["color"], ms=6)
            axes.set_yticks(range(len(rows)), [short_label(row) for row in rows])
            axes.set_ylim(len(rows) - 0.5, -0.5)
            said = "" if chance is None else f"\ndotted: chance, {chance:.3g}" if near else f"\nchance: {chance:.3g}"
            axes.set_xlabel(title + said)
            axes.locator_params(axis="x", nbins=5)
        alt = f"{title} of the pretrained embeddings: each seed a dot, the mean a marker, a line a row."
        alt += "" if chance is None else f" Chance is {chance:.3g}."
        pictures.append(Picture(f"probe-{file_slug(title)}", "probes", "", alt, figure))
    return pictures
