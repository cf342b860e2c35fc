"""How every benchmark writes down what it measured: results/NAME.json and results/NAME.md.

The JSON has `rows`, a list of what the table of `make bench` shows, and whatever else the benchmark measured.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from codo.runs.files import write_json, write_text

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Row:
    """One comparison with a target.

    Attributes:
        work: what was done, as the table says it.
        measured: the two sides' figures in words, `8.3 ms against 2.1 ms`.
        value: what is compared with the target.
        target: what it should reach.
        at_most: whether `value` must not be above the target; else it must not be below.
        unit: of both, `x` for a ratio, `%`.
        note: where it misses, what was tried and why it stopped.

    Example:
        >>> Row("one view", "8 ms against 2 ms", 4.0, 3.0).met
        True
    """

    work: str
    measured: str
    value: float
    target: float
    at_most: bool = False
    unit: str = "x"
    note: str = ""

    @property
    def met(self) -> bool:
        """Whether the target was reached."""
        return self.value <= self.target if self.at_most else self.value >= self.target


def versions(*packages: str) -> dict[str, str]:
    """Look up the versions of installed packages."""
    return {name: importlib.metadata.version(name) for name in packages}


def facts(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """List rows as the JSON holds them and `table` takes them, with the verdict."""
    return [asdict(row) | {"met": row.met} for row in rows]


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Write rows as a Markdown table: the work, the figures, the target, pass or miss."""
    lines = ["| work | measured | value | target | |", "|---|---|---:|---:|---|"]
    for row in rows:
        sign = "≤" if row["at_most"] else "≥"
        verdict = "pass" if row["met"] else f"**miss**{': ' + row['note'] if row['note'] else ''}"
        value, target = (f"{row[k]:.3g} {row['unit']}" for k in ("value", "target"))
        lines.append(f"| {row['work']} | {row['measured']} | {value} | {sign} {target} | {verdict} |")
    return lines


def write(name: str, title: str, command: str, machine: Mapping[str, Any], rows: Sequence[Row], **more: Any) -> str:
    """Write a benchmark's JSON and Markdown; return the Markdown.

    Args:
        name: of the files.
        title: the page's first line.
        command: what made it.
        machine: from `codo.jobs.bench.machine`, with peaks and package versions.
        rows: comparisons with targets; may be empty.
        more: whatever else was measured; `lines`, a list of Markdown lines, is put below the table.
    """
    lines = more.pop("lines", [])
    found = facts(rows)
    write_json(RESULTS / f"{name}.json", {"command": command, "machine": machine, "rows": found, **more})
    about = ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in machine.items())
    page = [f"# {title}", "", f"`{command}`", "", about, "", *(table(found) if found else []), "", *lines]
    text = "\n".join(page).rstrip() + "\n"
    write_text(RESULTS / f"{name}.md", text)
    return text
