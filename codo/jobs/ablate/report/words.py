"""How the report writes numbers, and what it says in words."""

from __future__ import annotations

import json

from codo.jobs.ablate.analysis import Analysis
from codo.jobs.ablate.results import Results
from codo.jobs.ablate.statistics import (
    ALPHA,
    FEWEST,
    MARGIN,
    MARGIN_SHARE,
    MOST,
    Comparison,
    Spread,
    Verdict,
    smallest_wilcoxon,
)

DASH = "–"

MARKS: dict[Verdict, str] = {
    "helps": "▲",
    "hurts": "▼",
    "more together": "▲",
    "less together": "▼",
    "no difference shown": "≈",
    "not enough seeds to tell": "?",
}
"""A sign for each verdict, so that none is told by colour alone."""

DESIGNS = {
    "one_at_a_time": "Each row is {base} with one thing changed; the rows are compared to {reference}.",
    "ladder": "Each row adds to the row before. Against {reference} the rows show how far from it they are; against "
    "the row before, what the last step is worth.",
    "factorial": "Every combination of the switches. The rows are compared to {reference}; the main effects and "
    "interactions use all rows at once.",
    "rows": "The rows are compared to {reference}.",
}

FROM_BASE = {
    "one_at_a_time": "Each row is {reference} with one thing changed. A difference below zero, its dot left of zero: "
    "the row's mean is lower by so much; the verdict says whether the seeds show a difference.",
    "ladder": "Each row adds to the row before. Against {reference} the rows show what all the steps to there are "
    "worth; against the row before, what the last one is.",
}
"""The same, where the reference is the base."""

HOW_TO_READ = (
    "A difference is taken seed by seed (row less reference, on the seeds that both have) and tested with the paired "
    "t-test; the interval is its 95% interval. p is corrected by Holm for the number of comparisons in its table; the "
    "intervals are not.",
    f"“helps” and “hurts”: p (Holm) is under {ALPHA:g}. “no difference shown”: it is not, and the interval excludes "
    f"differences of the margin or more, which is {MARGIN:g} AP, or {MARGIN_SHARE:.0%} of the reference's mean where "
    f"that is less. “not enough seeds to tell”: fewer than {FEWEST} seeds, or an interval that allows for differences "
    f"that would matter.",
    "± is the standard deviation over seeds. A seed that failed, is missing or has no such number is named, and is "
    "left out on both sides of a comparison; nothing is filled in.",
    f"Wilcoxon's signed-rank test (results in differences.csv) assumes less and cannot decide with few seeds: its "
    f"smallest p is {smallest_wilcoxon(3):g} with three and {smallest_wilcoxon(5):g} with five.",
)
"""What every form of the report explains."""

TUNED = (
    "The trials were judged on the validation images that the rows are judged on, and the luck of one seed's choice is "
    "in no interval: what is tuned has that advantage over what is not."
)
"""How to read rows that were tuned."""

PREDICTION = (
    "Spearman's rank correlation across rows, of each row's mean probe and mean {metric} over its seeds: +1 where the "
    "probe puts the rows in the order that {metric} does, −1 in the opposite one. The interval (Bonett and Wright) "
    "would hold for rows drawn at random, and these were chosen; of many probes, one is high by luck."
)
"""How to read the correlations of probes and metric."""


def number(value: float | None, digits: int = 2) -> str:
    """Write a number with a proper minus.

    Example:
        >>> number(-0.5), number(None), number(-0.0001)
        ('−0.50', '–', '0.00')
    """
    if value is None:
        return DASH
    text = f"{value:.{digits}f}"
    return (text.lstrip("-") if float(text) == 0 else text).replace("-", "−")


def signed(value: float | None, digits: int = 2) -> str:
    """Write a difference with its sign.

    Example:
        >>> signed(1.234), signed(-1.0), signed(0.001)
        ('+1.23', '−1.00', '0.00')
    """
    text = number(value, digits)
    return f"+{text}" if value is not None and float(f"{value:.{digits}f}") > 0 else text


def plus_minus(values: Spread, digits: int = 2) -> str:
    """Write mean and standard deviation; the mean alone of one seed."""
    spread = f" ± {number(values.std, digits)}" if values.std is not None else ""
    return number(values.mean, digits) + spread


def with_count(values: Spread, digits: int = 2) -> str:
    """Write mean and standard deviation, and of how many seeds where some are absent."""
    return plus_minus(values, digits) + (f" (n = {values.short_count})" if values.n and values.absent else "")


def seeds(n: int, expected: int) -> str:
    """Say how many seeds there are, where they are not all.

    Example:
        >>> seeds(3, 3), seeds(2, 3)
        ('n = 3', 'n = 2 of 3')
    """
    return f"n = {n}" if n == expected else f"n = {n} of {expected}"


def interval(low: float | None, high: float | None) -> str:
    """Write an interval; empty if there is none."""
    return f"[{number(low)}, {number(high)}]" if low is not None and high is not None else ""


def difference(c: Comparison) -> str:
    """Write a difference with its interval."""
    return f"{signed(c.mean)} {interval(c.low, c.high)}".strip()


def compared(c: Comparison, values: Spread) -> str:
    """Write a row's difference with its interval, and on how many seeds where these are not all that the row has."""
    return difference(c) + (f" (n = {c.n})" if c.n and c.n != values.n else "")


def p_value(p: float | None) -> str:
    """Write a p-value.

    Example:
        >>> p_value(0.0004), p_value(0.0123), p_value(None)
        ('< 0.001', '0.012', '–')
    """
    return DASH if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def sentence(c: Comparison, metric: str) -> str:
    """Say what a comparison came to."""
    if c.mean is None:
        return f"{c.verdict}: no seed to compare on"
    more = f", p = {p_value(c.p_holm)}" if c.p_holm is not None else ""
    hint = f"; {more_seeds(c)}" if more_seeds(c) else ""
    return f"{c.verdict}: {difference(c)} {metric}{more.replace('p = <', 'p <')}, n = {c.count}{hint}"


def more_seeds(c: Comparison) -> str:
    """Say how many seeds would tell, about; empty where that is no question."""
    needed = c.seeds_needed
    if c.verdict != "not enough seeds to tell" or needed is None or needed <= c.n:
        return ""
    if c.margin == 0:
        return "there is no margin: the reference's mean is 0"
    many = "1,000 seeds or more" if needed >= MOST else f"about {needed} seeds"
    return f"±{c.margin:.2g} AP would take {many}"


def probe_failures(results: Results) -> list[tuple[str, int, str]]:
    """Collect row, seed and reason of the probes that failed, each once, however many protocols share it."""
    found = {(c.row, c.seed): c.failures["probe"] for c in results.cells if "probe" in c.failures}
    return [(row, seed, why) for (row, seed), why in found.items()]


def probed(results: Results) -> list[str]:
    """Say where the probes looked at images of the training, and where rows of one seed at different ones."""
    cells = {(c.row, c.seed): c.probed for c in results.cells if c.probed is not None}
    said = []
    trained = ", ".join(f"{row} (seed {seed})" for (row, seed), looked in cells.items() if not looked.held_out)
    if trained:
        said.append(f"Not held out: the pretraining may have seen the images that it is probed on: {trained}.")
    unlike: dict[str, list[str]] = {}
    for seed, groups in probed_apart(results).items():
        unlike.setdefault(" | ".join(map(", ".join, groups)), []).append(str(seed))
    for rows, seeds in unlike.items():
        many = ", ".join(seeds)
        said.append(f"Not comparable: in seed {many}, rows on either side of | were probed on other images: {rows}.")
    return said


def probed_apart(results: Results) -> dict[int, list[list[str]]]:
    """Group the rows by the images that they were probed on, of each seed where these are not the same for all."""
    cells = {(c.row, c.seed): c.probed.images for c in results.cells if c.probed is not None}
    found = {}
    for seed in results.seeds:
        groups: dict[str, list[str]] = {}
        for (row, of), images in cells.items():
            if of == seed:
                groups.setdefault(images, []).append(row)
        if len(groups) > 1:
            found[seed] = list(groups.values())
    return found


def hardware(results: Results) -> str:
    """Say what the finished jobs ran on; empty where that is not known."""
    found = results.environment.get("hardware")
    names = [n for kind in found.values() if isinstance(kind, list) for n in kind] if isinstance(found, dict) else []
    return "; ".join(dict.fromkeys(map(str, names)))


def warnings(results: Results) -> list[str]:
    """Say what a reader should know before any number.

    The plan's notices, jobs that ran on different hardware, pretrained rows of which a frozen part is random, and what
    pretrainings have warned of.
    """
    found = results.environment.get("hardware")
    kinds = found.items() if isinstance(found, dict) else ()
    said = results.notices + [
        f"the {kind} jobs did not run on the same hardware, or not in the same precision: {'; '.join(map(str, names))}"
        for kind, names in kinds
        if isinstance(names, list) and len(names) > 1
    ]
    pretrained = [row.name for row in results.rows if row.changes is not None]
    fresh: dict[str, dict[str, None]] = {}
    for cell in results.cells:
        if cell.frozen_but_fresh and cell.row in pretrained:
            fresh.setdefault(f"{cell.protocol} freezes {', '.join(cell.frozen_but_fresh)}", {})[cell.row] = None
    said += [f"{what}, which is not pretrained in {', '.join(rows)}: random" for what, rows in fresh.items()]
    warned: dict[str, dict[str, dict[int, str]]] = {}
    for cell in results.cells:
        for name, warning in cell.warned.items():
            warned.setdefault(name, {}).setdefault(cell.row, {})[cell.seed] = warning.removeprefix("warning: ")
    for rows in warned.values():
        of = "; ".join(f"{row}, seed {', '.join(map(str, by_seed))}" for row, by_seed in rows.items())
        first = next(iter(next(iter(rows.values())).values()))
        said.append(f"pretrainings have warned ({of}), the first of them: {first}")
    return said


def design_note(results: Results) -> str:
    """Explain the design, as it is true of this reference."""
    base, reference = results.base, results.reference
    text = DESIGNS.get(results.design, DESIGNS["rows"])
    if base == reference:
        text = FROM_BASE.get(results.design, text)
    note = text.format(base=base or "the grid's base", reference=reference)
    bare = [row.name for row in results.rows if row.changes is None]
    note += f" Not pretrained: {', '.join(bare)}." if bare else ""
    return f"{note} {tuning_note(results)}".strip()


def tuning_note(results: Results) -> str:
    """Say how a field was tuned for each row, and what came out; empty where none was."""
    tuning = results.tuning
    if tuning is None:
        return ""
    tried: dict[str, list[str]] = {}
    for trial in tuning.trials:
        value = f"{json.dumps(trial.value, ensure_ascii=False)} ({number(trial.score)})"
        tried.setdefault(trial.row, []).append(f"{value} ←" if trial.chosen else value)
    rows = "; ".join(f"{row}: {', '.join(values)}" for row, values in tried.items())
    others = [row.name for row in results.rows if row.name not in tried]
    note = (
        f"Besides, {tuning.field} was tuned for each row by trials of seed {tuning.seed}, judged by "
        f"{tuning.metric or results.metric} of {tuning.protocol} (in brackets; ← taken; all of it in tuning/): {rows}."
    )
    note += f" Not tuned: {', '.join(others)}." if others else ""
    if len(results.protocols) > 1:
        note += f" For the other transfers the values are {tuning.protocol}'s."
    return f"{note} {TUNED}"


def repeats_note(results: Results, analysis: Analysis) -> str:
    """Say what a cell is the mean of, and how much of the spread is the transfer's; empty where none is repeated."""
    noise, m = analysis.noise, results.metric
    if results.repeats == 1:
        return ""
    note = f"The value of a seed is the mean of {results.repeats} transfers, of different seeds, from one pretraining."
    if noise is None:
        return note
    return (
        f"{note} From one pretraining they differ by ±{number(noise.within)} {m} (standard deviation, pooled over "
        f"{noise.cells} cells of pretrained rows), and their means from seed to seed by ±{number(noise.seeds)}; with "
        f"one transfer each that would be about ±{number(noise.single)}."
    )


def families(results: Results, analysis: Analysis) -> list[tuple[str, list[Comparison]]]:
    """Collect the families of comparisons of a protocol, each with its heading."""
    found = [(f"Difference to {results.reference}", list(analysis.comparisons.values()))]
    if analysis.steps:
        found.append(("Difference to the row before", analysis.steps))
    if analysis.effects:
        found.append(("Main effects and interactions", analysis.effects))
    return [(heading, comparisons) for heading, comparisons in found if comparisons]
