"""The page: one file, no script, nothing fetched; everything from data is escaped by jinja2."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.ticker import MaxNLocator
from PIL import Image

from codo.data.images import ImageError, decode
from codo.errors import CodoError
from codo.jobs.ablate.analysis import Analysis
from codo.jobs.ablate.report import words
from codo.jobs.ablate.report.figures import SECTIONS, Picture, error_counts, error_means
from codo.jobs.ablate.report.probes import predictions, probe_tables
from codo.jobs.ablate.report.tables import metric_rows
from codo.jobs.ablate.results import Cell, Results
from codo.jobs.ablate.statistics import Comparison, spread
from codo.runs.console import duration

SAMPLE_WIDTH = 1200
"""Contact sheets are made no wider than this, in pixels."""


KINDS = {"▲": "helps", "▼": "hurts", "≈": "no", "?": "not"}
"""Mark of a verdict -> class in the style sheet."""


def render(folder: Path, results: Results, analyses: Sequence[Analysis], pictures: Sequence[Picture]) -> str:
    """Render report.html.

    Args:
        folder: of the grid, where the samples are.
        results: of the grid.
        analyses: of all protocols.
        pictures: all figures.
    """
    figures = {section: [p for p in pictures if p.section == section] for section in SECTIONS}
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            style=resources.files(__package__).joinpath("templates/style.css").read_text(encoding="utf-8"),
            r=results,
            analyses=analyses,
            figures=figures,
            forests=[_forests(results, a) for a in analyses],
            tables=[metric_rows(results, a) for a in analyses],
            extra=[_extra_metrics(results, a.protocol) for a in analyses],
            errors=[error_means(results, a.protocol) for a in analyses],
            error_counts=[error_counts(results, a.protocol) for a in analyses],
            probes=probe_tables(results),
            predictions=predictions(results),
            how_to_predict=words.PREDICTION,
            samples=[(row, _sample(folder, file)) for row, file in results.samples.items()],
            failures=[c for c in results.cells if c.status == "failed"],
            probe_failures=words.probe_failures(results),
            probed=words.probed(results),
            missing=[c for c in results.cells if c.status == "missing"],
            environment=list(_flat(results.environment)),
            warnings=words.warnings(results),
            hardware=words.hardware(results),
            note=words.design_note(results),
            repeats=[words.repeats_note(results, a) for a in analyses],
            how_to_read=words.HOW_TO_READ,
            totals=_totals(results),
            seeds=words.seeds,
            marks=words.MARKS,
        )
    )


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader(__package__),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters |= {
        "number": words.number,
        "signed": words.signed,
        "duration": duration,
        "json": lambda value: json.dumps(value, ensure_ascii=False),
    }
    return environment


def _forests(results: Results, a: Analysis) -> list[dict[str, Any]]:
    """Lay out a protocol's plots: what a ladder or factorial is about first, the rows against the reference last."""
    families = words.families(results, a)
    return [_forest(heading, family, results.metric) for heading, family in [*families[1:], *families[:1]]]


def _forest(heading: str, family: Sequence[Comparison], metric: str) -> dict[str, Any]:
    """Lay out a dot-and-whisker plot: positions in per cent of its width, so that it fits any screen."""
    ends = [0.0]
    for c in family:
        ends += [*c.differences.values(), *(v for v in (c.low, c.high) if v is not None)]
    # An interval of two seeds can be as wide as all others together; it runs out of the plot instead.
    seen = [abs(v) for c in family for v in c.differences.values()] or [1.0]
    limit = 2.5 * max(max(seen), 0.5)
    low, high = max(min(ends), -limit), min(max(ends), limit)
    pad = 0.06 * (high - low) or 1.0
    low, high = low - pad, high + pad

    def at(value: float) -> float:
        return round(100 * min(1.0, max(0.0, (value - low) / (high - low))), 2)

    ticks = [t for t in MaxNLocator(6, steps=[1, 2, 5, 10]).tick_values(low, high) if low <= t <= high]
    digits = 0 if all(float(t).is_integer() for t in ticks) else 2
    return {
        "heading": heading,
        "zero": at(0.0),
        "ticks": [{"at": at(t), "text": words.signed(t, digits)} for t in ticks],
        "rows": [
            {
                "c": c,
                "low": at(c.low) if c.low is not None else None,
                "high": at(c.high) if c.high is not None else None,
                "mean": at(c.mean) if c.mean is not None else None,
                "seeds": [at(v) for v in c.differences.values()],
                "text": words.difference(c),
                "p": words.p_value(c.p_holm),
                "alt": f"{c.name}: {words.sentence(c, metric)}",
                "kind": KINDS[words.MARKS[c.verdict]],
                "more_seeds": words.more_seeds(c),
            }
            for c in family
        ],
    }


def _extra_metrics(results: Results, protocol: str) -> dict[str, dict[str, str]]:
    """Collect the metrics besides the deciding one and the probes: metric -> row -> mean and deviation."""
    names = dict.fromkeys(name for c in results.cells if c.protocol == protocol for name in c.metrics)
    chosen = [n for n in names if not n.startswith("probe/") and n != results.metric]
    found = {n: {row.name: spread(results, row.name, protocol, n) for row in results.rows} for n in chosen}
    return {
        n: {row: words.with_count(s) for row, s in rows.items()}
        for n, rows in found.items()
        if any(s.n for s in rows.values())
    }


def _sample(folder: Path, file: str) -> dict[str, Any]:
    """Read a contact sheet as a data URI, or say why not. It may not lie outside the folder."""
    path = (folder / file).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise CodoError(f"results.json: the sample {file!r} lies outside {folder}")
    try:
        image = Image.fromarray(decode(path))
    except ImageError as error:
        absent = isinstance(error.__cause__, FileNotFoundError)
        return {"uri": "", "missing": f"{file} {'is not there' if absent else 'cannot be read as an image'}"}
    image.thumbnail((SAMPLE_WIDTH, 10 * SAMPLE_WIDTH))
    data = io.BytesIO()
    image.save(data, "JPEG", quality=85)
    encoded = base64.b64encode(data.getvalue()).decode()
    return {"uri": f"data:image/jpeg;base64,{encoded}", "width": image.width, "height": image.height}


def _flat(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Flatten nested settings to dotted names."""
    if isinstance(value, dict) and value:
        return [
            pair for key, inner in value.items() for pair in _flat(inner, f"{prefix}.{key}" if prefix else str(key))
        ]
    return [(prefix, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))] if prefix else []


def _totals(results: Results) -> dict[str, Any]:
    """Count cells, and the time of the runs behind them, shared ones once."""
    seconds: dict[str, dict[Any, float]] = {}
    for cell in results.cells:
        for job, taken in cell.seconds.items():
            seconds.setdefault(job.split()[0], {})[_run_of(cell, job)] = taken  # `transfer 2` is a transfer
    states = [cell.status for cell in results.cells]
    return {
        "cells": len(states),
        "done": states.count("done"),
        "jobs": {job: (len(runs), duration(sum(runs.values()))) for job, runs in seconds.items()},
    }


def _run_of(cell: Cell, job: str) -> Any:
    return cell.folders.get(job) or (cell.row, cell.protocol, cell.seed, job)
