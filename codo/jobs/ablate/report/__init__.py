"""The report of a grid: CSV, Markdown and LaTeX tables, figures, and one page that holds everything."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from codo.errors import CodoError
from codo.jobs.ablate.analysis import Analysis, analyse
from codo.jobs.ablate.results import Results
from codo.runs.files import write_text

if TYPE_CHECKING:
    from rich.console import RenderableType

FILES = ("results.csv", "curves.csv", "differences.csv", "table.md", "table.tex", "report.html")
"""What is written, beside `figures/`."""


def write_report(folder: Path, results: Results) -> None:
    """Write results.csv, curves.csv, differences.csv, table.md, table.tex, figures/*.png and *.svg, and report.html.

    Of an earlier report nothing stays: other PNG and SVG files in figures/ are removed.

    Args:
        folder: of the grid; the samples are found in it.
        results: finished or not.

    Raises:
        CodoError: the results name no reference that is a row, a sample lies outside `folder`, or a file cannot be
            written.
    """
    from codo.jobs.ablate.report.figures import draw
    from codo.jobs.ablate.report.page import render
    from codo.jobs.ablate.report.tables import cells_csv, comparisons_csv, curves_csv, latex, markdown

    analyses = _analyse(results)
    pictures = draw(results, analyses)
    page = render(folder, results, analyses, pictures)
    for picture in pictures:
        picture.save(folder / "figures")
    names = {picture.name for picture in pictures}
    for file in (folder / "figures").glob("*.*"):
        if file.suffix in (".png", ".svg") and file.stem not in names:
            file.unlink()
    texts = (cells_csv(results), curves_csv(results), comparisons_csv(results, analyses), markdown(results, analyses))
    for name, text in zip(FILES, (*texts, latex(results, analyses), page), strict=True):
        write_text(folder / name, text)


def terminal_table(results: Results) -> RenderableType:
    """Build the table for the terminal."""
    from codo.jobs.ablate.report.tables import terminal_table

    return terminal_table(results, _analyse(results))


def _analyse(results: Results) -> list[Analysis]:
    if results.reference not in {row.name for row in results.rows}:
        raise CodoError(f"results: the reference {results.reference!r} is not a row")
    return [analyse(results, protocol) for protocol in results.protocols]
