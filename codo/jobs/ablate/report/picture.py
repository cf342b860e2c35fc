"""What a figure of the report is, and how all of them look.

Colours are Okabe and Ito's, which colour-blind eyes tell apart on white and on black, with a marker of its own for each
row. Ink is one colour, which the page turns into the text's, dark or light.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import matplotlib
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from codo.jobs.ablate.results import Results
from codo.runs.files import atomic_path, write_text

INK, PAPER = "#101010", "#ffffff"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
MARKERS = "osD^vPX"
LINES = ("-", "--", "-.", ":")
LEGEND_LINES = 5
"""That a figure has room for; it grows by the others."""
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


@contextmanager
def panel(width: float = 4.8, height: float = 3.3) -> Iterator[tuple[Figure, Axes]]:
    """Open a figure of one panel, in inches, to draw in; close it with its grid."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.add_subplot()
        axes.set_axisbelow(True)
        yield figure, axes
        axes.grid(True, axis="both")


def look_of(results: Results, row: str) -> dict[str, Any]:
    """Choose a row's colour, marker and line: ink for the reference."""
    others = [r.name for r in results.rows if r.name != results.reference]
    i = others.index(row) if row in others else -1
    line = LINES[max(i, 0) // len(COLOURS) % len(LINES)]
    return {"color": COLOURS[i % len(COLOURS)] if i >= 0 else INK, "marker": MARKERS[i % len(MARKERS)], "ls": line}


def add_legend(figure: Figure, drawn: list[Any]) -> None:
    """Name the rows under the panel: two beside each other, or one where two are too wide; the figure grows by many."""
    place: dict[str, Any] = {"loc": "outside lower center", "frameon": False, "fontsize": 8}
    legend = figure.legend(handles=drawn, ncols=2, **place)
    two, lines, grown = legend.get_window_extent(), -(-len(drawn) // 2), 0.0
    if two.width > figure.bbox.width:
        legend.remove()
        legend = figure.legend(handles=drawn, ncols=1, **place)
        lines, grown = len(drawn), two.height  # about what it has grown by
    more = legend.get_window_extent().height * (1 - LEGEND_LINES / lines)
    figure.set_figheight(figure.get_figheight() + max(grown, more) / figure.dpi)


def short_label(text: str, count: str = "") -> str:
    """Shorten a label in its middle, and add the seeds; matplotlib hides those that begin with an underscore.

    Rows are told apart by how they begin, trials of a row by how they end.
    """
    text = (text if len(text) <= 34 else f"{text[:16]}…{text[-16:]}") + (f" ({count})" if count else "")
    return f" {text}" if text.startswith("_") else text


def file_slug(text: str) -> str:
    """Make a file's name of a text."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:40] or "x"
