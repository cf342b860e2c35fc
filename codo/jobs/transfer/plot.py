"""The curve of AP, drawn."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

from codo.jobs.transfer.curve import Point
from codo.runs.files import atomic_path

FORMATS = ("png", "svg")


def plot_curves(folder: Path, curves: Mapping[str, Sequence[Point]], title: str) -> None:
    """Draw AP over steps, from (0, 0), as `curve.png` and `curve.svg`.

    Args:
        folder: where to.
        curves: name -> evaluations; those without AP are left out.
        title: above the plot.

    Raises:
        CodoError: the files cannot be written.
    """
    # Imported here: half a second that only the end of a run spends. No pyplot: it looks for a screen.
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.subplots()
    for name, curve in curves.items():
        points = [(0, 0.0), *((p["step"], p["AP"]) for p in curve if p["AP"] is not None)]
        axes.plot(*zip(*points, strict=True), marker="o", markersize=3, label=_plain(name))
    axes.set(xlabel="step", ylabel="AP (per cent)", title=_plain(title), xlim=(0, None), ylim=(0, None))
    axes.grid(alpha=0.3)
    if len(curves) > 1:
        axes.legend()
    for kind in FORMATS:
        # Equal curves give equal files: no date, and names that no clock salts.
        with (
            atomic_path(folder / f"curve.{kind}") as temporary,
            rc_context({"svg.hashsalt": "codo"}),
            warnings.catch_warnings(),
        ):
            warnings.filterwarnings("ignore", "Glyph .* missing")  # names may be in any script
            figure.savefig(temporary, format=kind, dpi=120, metadata={"Date": None} if kind == "svg" else None)


def _plain(text: str) -> str:
    """Keep matplotlib from reading $...$ as mathematics, and from a file name's bytes that are no text."""
    return text.encode(errors="backslashreplace").decode().replace("$", r"\$")
