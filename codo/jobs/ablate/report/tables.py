"""The tables: CSV of all cells and all comparisons, Markdown, LaTeX (booktabs), and the one for the terminal."""

from __future__ import annotations

import csv
import io
import re
from typing import TYPE_CHECKING

from codo.jobs.ablate.analysis import Analysis
from codo.jobs.ablate.report.probes import predictions
from codo.jobs.ablate.report.words import (
    HOW_TO_READ,
    MARKS,
    PREDICTION,
    compared,
    design_note,
    families,
    interval,
    number,
    p_value,
    plus_minus,
    probed,
    repeats_note,
    sentence,
    tuning_note,
    warnings,
)
from codo.jobs.ablate.results import Results
from codo.jobs.ablate.statistics import Comparison, Verdict

if TYPE_CHECKING:
    from rich.console import RenderableType


def cells_csv(results: Results) -> str:
    """Write a line a cell, with all metrics, errors, times and fingerprints; empty where there is none.

    Where transfers are repeated, the deciding metric of each stands beside the means.
    """
    metrics = list(dict.fromkeys(name for cell in results.cells for name in cell.metrics))
    repeats = range(results.repeats if results.repeats > 1 else 0)
    parts = {
        f"{part}/{name}": (part, name)
        for part in ("errors", "seconds", "fingerprints")
        for cell in results.cells
        for name in getattr(cell, part)
    }
    single = [f"{results.metric} of transfer {i + 1}" for i in repeats]
    lines: list[list[object]] = [["row", "protocol", "seed", "status", *metrics, *single, *parts, "failure"]]
    for cell in results.cells:
        values: list[object] = [cell.metrics.get(name) for name in metrics]
        values += [cell.repeats[i].get(results.metric) if cell.repeats else None for i in repeats]
        values += [getattr(cell, part).get(name) for part, name in parts.values()]
        lines.append([cell.row, cell.protocol, cell.seed, cell.status, *values, cell.failure])
    return _csv(lines)


def curves_csv(results: Results) -> str:
    """Write a line an evaluation in the course of a cell's transfer, AP in per cent; the mean of repeated ones."""
    lines: list[list[object]] = [["row", "protocol", "seed", "step", "epoch", "AP"]]
    lines += [[c.row, c.protocol, c.seed, p.step, p.epoch, p.AP] for c in results.cells for p in c.curve]
    return _csv(lines)


def comparisons_csv(results: Results, analyses: list[Analysis]) -> str:
    """Write a line a comparison, with all that was computed of it."""
    names = ("mean", "std", "low", "high", "p", "p_holm", "wilcoxon", "effect", "verdict")
    lines: list[list[object]] = [["protocol", "family", "name", "against", "n", "seeds", *names, "absent"]]
    lines += [
        [a.protocol, heading, c.name, c.against, c.n, " ".join(map(str, c.differences))]
        + [getattr(c, name) for name in names]
        + ["; ".join(f"seed {seed} {why}" for seed, why in c.absent.items())]
        for a in analyses
        for heading, family in families(results, a)
        for c in family
    ]
    return _csv(lines)


def markdown(results: Results, analyses: list[Analysis]) -> str:
    """Write the tables in Markdown, a heading a protocol."""
    m = results.metric
    text = [f"# {_md(results.title)}", "", _md(results.question), "", _md(design_note(results)), ""]
    for line in (*warnings(results), *probed(results)):
        text += [f"> Mind: {_md(line)}", ""]
    for a in analyses:
        text += [f"## {_md(a.protocol)}", ""]
        text += [f"| row | {m} | n | difference to {_md(results.reference)} [95%] | p (Holm) | verdict |"]
        text += ["|---|---:|---|---:|---:|---|"]
        for row in results.rows:
            values, c = a.spreads[row.name], a.comparisons.get(row.name)
            last = [compared(c, values), p_value(c.p_holm), _verdict(c)] if c else ["reference", "", ""]
            bold = "**" if c and c.verdict == "helps" else ""
            text.append(
                f"| {' | '.join([_md(row.name), bold + plus_minus(values) + bold, _md(values.count), *last])} |"
            )
        text += ["", _md(note)] if (note := repeats_note(results, a)) else []
        for heading, family in families(results, a)[1:]:
            text += ["", f"{_md(heading)}:", ""]
            text += [f"- {_md(_named(c))}: {_md(sentence(c, m))}" for c in family]
        text.append("")
    for protocol, found in predictions(results).items():
        text += [
            f"## Do the probes tell {_md(m)}? {_md(protocol)}",
            "",
            "| probe | rank correlation [95%] |",
            "|---|---:|",
        ]
        text += [f"| {_md(probe)} | {_md(value)} |" for probe, value in found.items()]
        text += ["", _md(PREDICTION.format(metric=m)), ""]
    text += [f"- {_md(line)}" for line in HOW_TO_READ]
    return "\n".join(text) + "\n"


LATEX_MARKS: dict[Verdict, str] = {
    "helps": r"^{\uparrow}",
    "hurts": r"^{\downarrow}",
    "no difference shown": r"^{\approx}",
    "not enough seeds to tell": "^{?}",
}


def latex(results: Results, analyses: list[Analysis]) -> str:
    r"""Write the table in LaTeX: two columns a protocol, bold where a row helps, a sign for every verdict."""
    m, counts = latex_escape(results.metric), [s.n for a in analyses for s in a.spreads.values()]
    head = " & ".join(rf"\multicolumn{{2}}{{c}}{{{latex_escape(a.protocol)}}}" for a in analyses)
    rules = "".join(rf"\cmidrule(lr){{{2 * i + 2}-{2 * i + 3}}}" for i in range(len(analyses)))
    lines = [
        r"% \usepackage{booktabs}",
        r"\begin{table}",
        r"\centering",
        r"\begin{tabular}{l" + "rl" * len(analyses) + "}",
        r"\toprule",
        rf" & {head} \\",
        rules,
        " & ".join(["row", *[m, r"difference [95\%]"] * len(analyses)]) + r" \\",
        r"\midrule",
    ]
    for row in results.rows:
        fields = [latex_escape(row.name)]
        for a in analyses:
            values, c = a.spreads[row.name], a.comparisons.get(row.name)
            value = latex_escape(plus_minus(values))
            value = rf"\textbf{{{value}}}" if c and c.verdict == "helps" else value
            of = f"{values.n}/{values.n + len(values.absent)}"
            fields.append(value + (f" ({of})" if values.absent else ""))
            fields.append(f"{latex_escape(compared(c, values))}${LATEX_MARKS[c.verdict]}$" if c else "reference")
        start = "{}" if fields[0].startswith(("[", "*")) else ""  # the line break before would take it for its own
        lines.append(start + " & ".join(fields) + r" \\")
    seeds = f"{max(counts, default=0)} seeds; fewer where given in brackets" if counts else "no seeds"
    signs = ", ".join(f"${mark}$ {verdict}" for verdict, mark in LATEX_MARKS.items())
    caption = (
        f"{latex_escape(results.title)}. Mean $\\pm$ standard deviation over {seeds}. Differences to "
        f"{latex_escape(results.reference)} are paired by seed, with 95\\% intervals (paired $t$-test, "
        f"Holm-corrected within a column): {signs}."
    )
    caption += "".join(
        f" {latex_escape(f'{a.protocol}: {note}')}" for a in analyses if (note := repeats_note(results, a))
    )
    caption += f" {latex_escape(tuning_note(results))}" if results.tuning is not None else ""
    caption += "".join(f" Mind: {latex_escape(line)}." for line in warnings(results))
    lines += [r"\bottomrule", r"\end{tabular}", rf"\caption{{{caption}}}", r"\end{table}"]
    return "\n".join(lines) + "\n"


SPECIAL = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "−": "$-$",
    "±": r"$\pm$",
    "×": r"$\times$",
    "→": r"$\rightarrow$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "←": r"$\leftarrow$",
    **{c: "\\" + c for c in "&%$#_"},
}


def latex_escape(text: str) -> str:
    r"""Escape what means something to LaTeX; of signs beyond ASCII, those that tables are made of.

    Example:
        >>> print(latex_escape("5% of a_b"))
        5\% of a\_b
    """
    return "".join(SPECIAL.get(c, c) for c in " ".join(text.split()))


def terminal_table(results: Results, analyses: list[Analysis]) -> RenderableType:
    """Build the tables for the terminal, one a protocol."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    styles: dict[Verdict, str] = {"helps": "green", "hurts": "red"}
    parts: list[RenderableType] = []
    for a in analyses:
        table = Table(title=Text(a.protocol, "bold"), title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for name in ("row", results.metric, "n"):
            table.add_column(Text(name), justify="left" if name == "row" else "right")
        table.add_column(Text(f"difference to {results.reference} [95%]"), justify="right", min_width=21)
        table.add_column("p (Holm)", justify="right")
        table.add_column("verdict")
        for row in results.rows:
            values, c = a.spreads[row.name], a.comparisons.get(row.name)
            fields = [row.name, plus_minus(values), values.short_count]
            fields += [compared(c, values), p_value(c.p_holm), _verdict(c)] if c else ["reference", "", ""]
            table.add_row(*map(Text, fields), style=styles.get(c.verdict, "") if c else "bold")
        parts.append(table)
        for heading, family in families(results, a)[1:]:
            parts.append(Text(f"{heading}:"))
            parts += [Text(f"  {MARKS[c.verdict]} {_named(c)}: {sentence(c, results.metric)}") for c in family]
        parts += [Text(note)] if (note := repeats_note(results, a)) else []
        gaps = {name: s.count for name, s in a.spreads.items() if s.absent}
        parts += [Text(f"  {name}: n = {count}") for name, count in gaps.items()]
    parts += [Text(tuning_note(results))] if results.tuning is not None else []
    parts += [Text(f"mind: {line}", "yellow") for line in warnings(results)]
    return Group(*parts)


def metric_rows(results: Results, analysis: Analysis) -> list[dict[str, str]]:
    """Collect the main table of a protocol, a dict a row, everything written out."""
    return [
        {
            "row": row.name,
            "value": plus_minus(values),
            "interval": interval(values.low, values.high),
            "count": values.count,
            "difference": compared(c, values) if c else "",
            "p": p_value(c.p) if c else "",
            "p_holm": p_value(c.p_holm) if c else "",
            "effect": number(c.effect) if c else "",
        }
        for row in results.rows
        for values, c in [(analysis.spreads[row.name], analysis.comparisons.get(row.name))]
    ]


def _named(c: Comparison) -> str:
    return f"{c.name}, against {c.against}" if c.against else c.name


def _verdict(c: Comparison) -> str:
    return f"{MARKS[c.verdict]} {c.verdict}"


def _md(text: str) -> str:
    """Escape what means something to Markdown, and to HTML within it."""
    text = re.sub(r"([\\`*_{}\[\]|#])", r"\\\1", " ".join(text.split()))
    text = re.sub(r"^(\d{0,9})([-+.)])", r"\1\\\2", text)  # a list, where a line begins with it
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _csv(lines: list[list[object]]) -> str:
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows(lines)
    return file.getvalue()
