"""The probes as tables in plain words."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from codo.jobs.probe.features import COMMON

WORDS: dict[str, str] = {
    "hard_top1": "finds the instance on another background; the others share the query's",
    "hard_map": "  its mean average precision",
    "easy_top1": "the same; none shares the query's background",
    "easy_map": "  its mean average precision",
    "view_hard_top1": "as hard, and another crop of the instance is looked for",
    "view_hard_map": "  its mean average precision",
    "view_easy_top1": "as easy, and another crop of the instance is looked for",
    "view_easy_map": "  its mean average precision",
    "variance_ratio": "variance between backgrounds / between instances; 0: invariant",
    "box_slope": "similarity lost a unit of IoU; 0: does not look at the box",
    "box_rank_correlation": "Spearman of similarity and IoU",
    "alignment": "squared distance of two backgrounds; chance: of two instances",
    "uniformity": "spread: 0 all the same, -4 all orthogonal",
    "effective_rank": "dimensions used",
    "knn": "accuracy of the 20 nearest labels; chance: the most frequent",
}
"""Name -> what it says, in the order of the table."""


def common_table(found: dict[str, Any]) -> Table:
    """Compose the table of the representation that every method has, of what `codo.probe` returned."""
    table = _table("probe", COMMON, "chance")
    table.add_column("what it says")
    for key, words in WORDS.items():
        if key in found["probes"]:
            table.add_row(key, _figure(found["probes"][key]), _figure(found["chance"].get(key, "")), words)
    return table


def other_table(found: dict[str, Any]) -> Table:
    """Compose the table of the other representations: a row a measure."""
    names = [name for name in found["settings"]["representations"] if name != COMMON]
    table = _table("probe", *names)
    for key in WORDS:
        cells = [found["probes"].get(f"{name}/{key}", "") for name in names]
        if any(cell != "" for cell in cells):
            table.add_row(key, *map(_figure, cells))
    return table


def _table(name: str, *figures: str) -> Table:
    table = Table()
    table.add_column(name, no_wrap=True)
    for figure in figures:
        table.add_column(figure, justify="right", no_wrap=True)
    return table


def _figure(value: float | str | None) -> str:
    return "-" if value is None else value if isinstance(value, str) else f"{value:.3f}"
