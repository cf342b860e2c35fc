"""The figures, by matplotlib: one panel each, so that they read on a phone; as files, and as SVG to stand in the page.

Colours are Okabe and Ito's, which colour-blind eyes tell apart on white and on black, with a marker of its own for each
row. Ink is one colour, which the page turns into the text's, dark or light.
"""

from __future__ import annotations

import io
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from codo.jobs.ablate.analysis import Analysis
from codo.jobs.ablate.report.probes import PROBE, by_pretraining, chance_of, drawn_probes, headlines
from codo.jobs.ablate.report.words import difference, families, seeds
from codo.jobs.ablate.results import Results
from codo.jobs.ablate.statistics import Comparison, value_of
from codo.runs.files import atomic_path, write_text

INK, PAPER = "#101010", "#ffffff"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
MARKERS = "osD^vPX"
SECTIONS = ("differences", "curves", "errors", "loss", "probes")
"""Of the page, that figures stand in."""

LINES = ("-", "--", "-.", ":")
STYLE: dict[Any, Any] = {
    "font.size": 8.5,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "grid.linewidth": 0.5,
    "grid.color": INK,
    "grid.alpha": 0.15,
    "lines.linewidth": 1.4,
    "lines.markersize": 3.5,
    "svg.fonttype": "none",
    "text.parse_math": False,
}


@dataclass(frozen=True)
class Picture:
    """A drawn figure.

    Attributes:
        name: of its files.
        section: of the page it stands in.
        caption: above it; may be empty.
        alt: what it shows, for those who do not see it.
        figure: matplotlib's.
    """

    name: str
    section: str
    caption: str
    alt: str
    figure: Figure

    @cached_property
    def drawn(self) -> str:
        """Hold the SVG, on white."""
        file = io.StringIO()
        with matplotlib.rc_context({**STYLE, "svg.hashsalt": self.name}):
            self.figure.savefig(file, format="svg", facecolor=PAPER, metadata={"Date": None})
        return file.getvalue()

    def svg(self) -> Markup:
        """Write the SVG for the page: ink in the text's colour, no paper, ids of its own, as wide as its place."""
        text = self.drawn[self.drawn.index("<svg") :]
        text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
        text = re.sub(r'(\bid="|url\(#|href="#)', rf"\1{self.name}-", text)
        text = text.replace(INK, "currentColor").replace(PAPER, "none")
        for i, colour in enumerate(COLOURS):  # the page has a lighter one for each on black
            text = text.replace(colour, f"var(--series-{i})")
        for side in ("width", "height"):
            text = re.sub(rf'(<svg[^>]*?) {side}="[^"]*"', r"\1", text, count=1)
        return Markup(text.replace("<svg", f'<svg role="img" aria-label="{escape(self.alt)}"', 1))

    def save(self, folder: Path) -> None:
        """Write PNG and SVG files."""
        write_text(folder / f"{self.name}.svg", self.drawn)
        with atomic_path(folder / f"{self.name}.png") as path, matplotlib.rc_context(STYLE):
            self.figure.savefig(path, format="png", dpi=200, facecolor=PAPER)


def draw(results: Results, analyses: Sequence[Analysis]) -> list[Picture]:
    """Draw all that there is something to draw of."""
    pictures: list[Picture] = []
    for number, a in enumerate(analyses, 1):
        slug = f"{number}-{_slug(a.protocol)}"
        for part, (heading, family) in zip("abc", families(results, a), strict=False):
            pictures += _differences(results, a, f"differences-{slug}{part if part > 'a' else ''}", heading, family)
        pictures += _curves(results, a.protocol, f"curves-{slug}")
        pictures += _errors(results, a.protocol, f"errors-{slug}")
    return [*pictures, *_loss(results), *_probe_curves(results), *_probes(results)]


@contextmanager
def _axes(width: float = 4.8, height: float = 3.3) -> Iterator[tuple[Figure, Axes]]:
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.add_subplot()
        axes.set_axisbelow(True)
        yield figure, axes
        axes.grid(True, axis="both")


def _look(results: Results, row: str) -> dict[str, Any]:
    """Choose a row's colour, marker and line: ink for the reference."""
    others = [r.name for r in results.rows if r.name != results.reference]
    i = others.index(row) if row in others else -1
    line = LINES[max(i, 0) // len(COLOURS) % len(LINES)]
    return {"color": COLOURS[i % len(COLOURS)] if i >= 0 else INK, "marker": MARKERS[i % len(MARKERS)], "ls": line}


def _differences(results: Results, a: Analysis, name: str, heading: str, family: Sequence[Comparison]) -> list[Picture]:
    with _axes(height=0.9 + 0.3 * len(family)) as (figure, axes):
        axes.axvline(0, color=INK, lw=0.8)
        for y, c in enumerate(family):
            look = {"helps": COLOURS[0], "hurts": COLOURS[1]}.get(c.verdict, INK)
            axes.plot(list(c.differences.values()), [y] * c.n, "o", color=look, alpha=0.3, ms=3, mew=0)
            if c.low is not None and c.high is not None:
                axes.plot([c.low, c.high], [y, y], color=look)
            if c.mean is not None:
                filled = look if c.verdict in ("helps", "hurts") else "white"
                axes.plot([c.mean], [y], "o", color=look, mfc=filled, ms=6)
        axes.set_yticks(range(len(family)), [_label(c.name) for c in family])
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
            pictures.append(Picture(f"history-{_slug(title)}", "loss", f"{title}, of fewer images", alt, figure))
    return pictures


def _bands(
    results: Results, curves: dict[str, list[dict[float, float]]], x_label: str, y_label: str, markers: bool = True
) -> Figure | None:
    """Draw a line a row, the mean over its seeds, with a band from least to most; None if there is nothing."""
    with _axes(height=3.7) as (figure, axes):
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
            look = _look(results, row)
            if not markers:
                look["marker"] = ""
            means = [float(np.mean(at[x])) for x in xs]
            drawn += axes.plot(
                xs,
                means,
                label=_label(row, seeds(most, len(results.seeds))),
                zorder=3 if row == results.reference else 2,
                **look,
            )
            axes.fill_between(
                xs, [min(at[x]) for x in xs], [max(at[x]) for x in xs], color=look["color"], alpha=0.13, lw=0
            )
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        if drawn:
            _legend(figure, drawn)
    return figure if drawn else None


def _legend(figure: Figure, drawn: list[Any]) -> None:
    """Name the rows under the panel: two beside each other, or one where two are too wide."""
    place: dict[str, Any] = {"loc": "outside lower center", "frameon": False, "fontsize": 8}
    legend = figure.legend(handles=drawn, ncols=2, **place)
    figure.draw_without_rendering()
    two = legend.get_window_extent()
    if two.width > figure.bbox.width:
        legend.remove()
        figure.legend(handles=drawn, ncols=1, **place)
        figure.set_figheight(figure.get_figheight() + two.height / figure.dpi)  # about what it has grown by


def _errors(results: Results, protocol: str, name: str) -> list[Picture]:
    means, counts = error_means(results, protocol), error_counts(results, protocol)
    kinds = list(dict.fromkeys(kind for row in means.values() for kind in row))
    if not kinds:
        return []
    with _axes(height=1.9 + 0.3 * len(kinds)) as (figure, axes):
        drawn = []
        for i, (row, values) in enumerate(means.items()):
            shift = (i - (len(means) - 1) / 2) * 0.6 / max(len(means), 1)
            known = [k for k in kinds if k in values]
            look = _look(results, row) | {"ls": ""}
            label = _label(row, seeds(counts[row], len(results.seeds)))
            heights = [kinds.index(k) + shift for k in known]
            drawn += axes.plot([values[k] for k in known], heights, label=label, **look)
        axes.set_yticks(range(len(kinds)), kinds)
        axes.set_ylim(len(kinds) - 0.5, -0.5)
        axes.set_xlim(left=0)
        axes.set_xlabel("AP50 that mending this error would add")
        _legend(figure, drawn)
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
        with _axes(3.7, 0.95 + 0.25 * len(rows)) as (figure, axes):
            if chance is not None and near:
                axes.axvline(chance, color=INK, lw=0.8, ls=":")
            for y, row in enumerate(rows):
                look = _look(results, row)
                axes.plot(values[row], [y] * len(values[row]), "o", color=look["color"], alpha=0.35, ms=3, mew=0)
                axes.plot([np.mean(values[row])], [y], look["marker"], color=look["color"], ms=6)
            axes.set_yticks(range(len(rows)), [_label(row) for row in rows])
            axes.set_ylim(len(rows) - 0.5, -0.5)
            said = "" if chance is None else f"\ndotted: chance, {chance:.3g}" if near else f"\nchance: {chance:.3g}"
            axes.set_xlabel(title + said)
            axes.locator_params(axis="x", nbins=5)
        alt = f"{title} of the pretrained embeddings: each seed a dot, the mean a marker, a line a row."
        alt += "" if chance is None else f" Chance is {chance:.3g}."
        pictures.append(Picture(f"probe-{_slug(title)}", "probes", "", alt, figure))
    return pictures


def _label(text: str, count: str = "") -> str:
    """Shorten a label, and add the seeds; matplotlib hides those that begin with an underscore."""
    text = (text if len(text) <= 34 else f"{text[:32]}…") + (f" ({count})" if count else "")
    return f" {text}" if text.startswith("_") else text


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:40] or "x"
