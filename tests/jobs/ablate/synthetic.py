"""Made-up results that look like a grid's: for tests, and for looking at the report."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
from PIL import Image, ImageDraw

from codo.jobs.ablate.results import Cell, Point, Results, Row

WORTH = {
    "codo": 0.0,
    "no background": -2.6,
    "no alignment": -4.1,
    "no hierarchy": -0.9,
    "no jitter": -0.1,
    "<one> view & $5_%": 0.6,
    "not pretrained": -7.5,
}
CHANGES: dict[str, dict[str, Any] | None] = {
    "codo": {},
    "no background": {"background": False},
    "no alignment": {"alignment": False},
    "no hierarchy": {"hierarchy": False},
    "no jitter": {"jitter.mode": "none"},
    "<one> view & $5_%": {"views": 1, "optim.epochs": 60},
    "not pretrained": None,
}
ERRORS = {"classification": 4.0, "localisation": 9.0, "both": 1.0, "duplicate": 0.4, "background": 3.0, "missed": 6.0}
PROBES = {
    "background_top1": 0.6,
    "background_map": 0.4,
    "variance_ratio": 0.3,
    "alignment": 0.5,
    "rank": 40.0,
}


def make_cell(row: str, protocol: str, seed: int, worth: float, base: float, epochs: int = 24) -> Cell:
    """Make up a finished cell."""
    rng = np.random.default_rng([seed, *row.encode(), *protocol.encode()])
    luck = np.random.default_rng([seed, *protocol.encode()]).normal(0, 1.2)
    AP = base + worth + luck + rng.normal(0, 0.35)
    steps = range(2, epochs + 1, 2)
    curve = [
        Point(step=50 * e, epoch=e, AP=round(AP * (1 - np.exp(-(e + worth / 4) / 6)) + rng.normal(0, 0.15), 4))
        for e in steps
    ]
    curve[-1] = curve[-1].model_copy(update={"AP": round(AP, 4)})
    pretrained = row != "not pretrained"
    metrics: dict[str, float | None] = {
        "AP": round(AP, 4),
        "AP50": round(AP * 1.7, 4),
        "AP75": round(AP * 0.9, 4),
        "APs": None,
        "curve_area": round(float(np.mean([p.AP for p in curve])), 4),
    }
    if pretrained:
        metrics |= {f"probe/{k}": round(v * (1 + worth / 20 + rng.normal(0, 0.03)), 4) for k, v in PROBES.items()}
    loss = [(s, float(8.5 * np.exp(-s / 400) + 3 + worth / 10 + rng.normal(0, 0.08))) for s in range(0, 1500, 25)]
    slug = f"{row.split()[-1]}-{seed}"
    commands = [f"codo pretrain --config jobs/{slug}.yaml --seed {seed} --out pretrain/{slug}"] if pretrained else []
    return Cell(
        row=row,
        protocol=protocol,
        seed=seed,
        status="done",
        metrics=metrics,
        curve=curve,
        errors={k: round(max(0.0, v - worth / 3 + rng.normal(0, 0.3)), 3) for k, v in ERRORS.items()},
        loss=loss if pretrained else [],
        folders={"pretrain": f"pretrain/{slug}", "transfer": f"transfer/{slug}"},
        commands=[*commands, f"codo transfer --weights pretrain/{slug} --data cards --out transfer/{slug}"],
        fingerprints={
            "pretrain": f"{crc32(slug.encode()):012x}",
            "transfer": f"{crc32((slug + protocol).encode()):012x}",
        },
        seconds={"pretrain": 1440.0 + 60 * seed, "transfer": 420.0},
    )


def make_results(seeds: int = 5) -> Results:
    """Make up a one-at-a-time grid: 7 rows, 2 protocols, a failed and a missing cell."""
    bases = {"cards, 100 labels, fine-tuned": 19.0, "bccd, 10% of labels, frozen": 31.0}
    cells = [
        make_cell(row, protocol, seed, worth, base)
        for row, (protocol, base), seed in product(WORTH, bases.items(), range(seeds))
        for worth in [WORTH[row]]
    ]
    first, second = bases
    for i, cell in enumerate(cells):
        if (cell.row, cell.protocol, cell.seed) == ("no hierarchy", first, 1):
            cells[i] = Cell(
                row=cell.row,
                protocol=first,
                seed=1,
                status="failed",
                failure="RuntimeError: <script>alert('loss')</script> is not finite at step 1,204",
                commands=cell.commands,
                folders=cell.folders,
            )
        if (cell.row, cell.protocol, cell.seed) == ("no jitter", second, seeds - 1):
            cells[i] = Cell(row=cell.row, protocol=second, seed=cell.seed, status="missing")
    return Results(
        title="Components of CoDo, one at a time",
        question="What is each component worth, on playing cards and on blood cells?",
        design="one_at_a_time",
        reference="codo",
        base="codo",
        rows=[Row(name=name, changes=changes) for name, changes in CHANGES.items()],
        protocols=list(bases),
        seeds=list(range(seeds)),
        cells=cells,
        environment={
            "codo": "0.1.0",
            "python": "3.11.7",
            "packages": {"torch": "2.9.0", "torchvision": "0.24.0", "timm": "1.0.20"},
            "git": {"commit": "6a94ab2", "dirty": False},
            "hardware": {"cpu": "2 cores", "gpu": None},
        },
        command="codo ablate experiments/components.yaml --out runs/components",
    )


def make_factorial(values: dict[tuple[bool, ...], list[float]], switches: list[str]) -> Results:
    """Make a factorial of the given AP: combination of switches -> AP by seed."""
    rows = [
        Row(name=" ".join(s if on else "-" for s, on in zip(switches, c, strict=True)), changes={}, factors=factors)
        for c in values
        for factors in [dict(zip(switches, c, strict=True))]
    ]
    cells = [
        Cell(row=row.name, protocol="p", seed=seed, status="done", metrics={"AP": AP})
        for row, found in zip(rows, values.values(), strict=True)
        for seed, AP in enumerate(found)
    ]
    seeds = list(range(len(next(iter(values.values())))))
    return Results(
        title="factorial",
        design="factorial",
        reference=rows[0].name,
        rows=rows,
        protocols=["p"],
        seeds=seeds,
        cells=cells,
    )


def draw_samples(results: Results, folder: Path) -> None:
    """Draw a contact sheet for the first rows, and name them in `results`."""
    for number, row in enumerate(results.rows[:3]):
        sheet = Image.new("RGB", (900, 420), "#f4f4f2")
        draw = ImageDraw.Draw(sheet)
        for x, y in product(range(8, 880, 110), range(30, 400, 128)):
            draw.rectangle((x, y, x + 100, y + 118), fill=f"hsl({(x * 3 + y + 90 * number) % 360}, 45%, 60%)")
            draw.rectangle((x + 20, y + 25, x + 75, y + 90), outline="#2e9e4f", width=2)
            draw.rectangle((x + 14, y + 31, x + 80, y + 86), outline="#f28c28", width=2)
        (folder / "samples").mkdir(parents=True, exist_ok=True)
        sheet.save(folder / "samples" / f"{number}.png")
        results.samples[row.name] = f"samples/{number}.png"
