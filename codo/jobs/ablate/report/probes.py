"""The probes of the pretrainings: which of them are drawn, and all of them as tables."""

from __future__ import annotations

from typing import NamedTuple

from codo.jobs.ablate.prediction import rank_correlation
from codo.jobs.ablate.report import words
from codo.jobs.ablate.results import Cell, Results
from codo.jobs.ablate.statistics import spread

PROBE = "probe/"
COMMON = "backbone"
"""The representation whose probes have no prefix, see `codo.probe`: every method has it."""

HEADLINE = (
    "hard_top1",
    "view_hard_top1",
    "variance_ratio",
    "box_slope",
    "effective_rank",
    "knn",
    "box_head/view_hard_top1",
)
"""The probes that are drawn where there are more than these."""


class ProbeLine(NamedTuple):
    """A probe, written out: its name, chance (empty where unknown), and row -> mean and deviation."""

    name: str
    chance: str
    values: dict[str, str]


def by_pretraining(results: Results) -> dict[tuple[str, int], Cell]:
    """Find a cell with probes for each row and seed: protocols share them, and they stand if the transfer does not."""
    found: dict[tuple[str, int], Cell] = {}
    for cell in results.cells:
        if any(name.startswith(PROBE) for name in cell.metrics):
            found.setdefault((cell.row, cell.seed), cell.model_copy(update={"status": "done"}))
    return found


def probe_names(results: Results) -> list[str]:
    """Name the probes, `probe/NAME`, in the order they come in."""
    names = (name for cell in results.cells for name in cell.metrics if name.startswith(PROBE))
    return list(dict.fromkeys(names))


def drawn_probes(results: Results) -> list[str]:
    """Choose the probes that are drawn: all of a few, else those of `HEADLINE`."""
    return headlines(probe_names(results))


def headlines(names: list[str]) -> list[str]:
    """Choose among probes: all of a few, else those of `HEADLINE`."""
    if len(names) <= len(HEADLINE):
        return names
    return [name for name in (f"{PROBE}{short}" for short in HEADLINE) if name in names] or names[: len(HEADLINE)]


def chance_of(results: Results, probe: str) -> float | None:
    """Compute what an embedding that knows nothing has, over all pretrainings; None where that is not known."""
    found = [c.probed.chance[probe] for c in by_pretraining(results).values() if c.probed and probe in c.probed.chance]
    return sum(found) / len(found) if found else None


def probe_tables(results: Results) -> dict[str, list[ProbeLine]]:
    """Collect the probes of each representation."""
    cells = [c.model_copy(update={"protocol": ""}) for c in by_pretraining(results).values()]
    single = results.model_copy(update={"cells": cells})
    tables: dict[str, list[ProbeLine]] = {}
    for name in probe_names(results):
        found = {row.name: spread(single, row.name, "", name) for row in results.rows}
        if any(s.n for s in found.values()):
            place, slash, short = name.removeprefix(PROBE).rpartition("/")
            chance = chance_of(results, name)
            values = {row: words.with_count(s, 3) for row, s in found.items()}
            line = ProbeLine(short, words.number(chance, 3) if chance is not None else "", values)
            tables.setdefault(place if slash else COMMON, []).append(line)
    return tables


def predictions(results: Results) -> dict[str, dict[str, str]]:
    """Write out how the drawn probes rank the rows, beside the metric: protocol -> probe -> correlation and interval.

    Protocols with too few rows are left out; there are none where rows of one seed were probed on other images.
    """
    tables: dict[str, dict[str, str]] = {}
    if words.probed_apart(results):
        return tables
    for protocol in results.protocols:
        for probe in drawn_probes(results):
            c = rank_correlation(results, protocol, probe)
            if c.value is not None:
                text = f"{words.signed(c.value)} {words.interval(c.low, c.high)}".strip()
                tables.setdefault(protocol, {})[probe.removeprefix(PROBE)] = f"{text}, {c.rows} rows"
    return tables
