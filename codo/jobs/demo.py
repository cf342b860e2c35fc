"""Everything once, on the built-in sample data: pretraining, and transfer with and without it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from codo.config import load_pretrain_config
from codo.data.sample import generate_sample_data
from codo.errors import CodoError
from codo.jobs import pretrain as pretraining
from codo.jobs import transfer as transferring
from codo.jobs.pretrain.preview import preview
from codo.runs.console import counter
from codo.runs.files import write_text
from codo.runs.repeat import bring_to_end

SAMPLE = {"train": 112, "val": 32, "foregrounds": 480, "size": 224}
PRETRAIN = {"views": 1, "optim.epochs": 6}
TRANSFER = {"optim.epochs": 4, "optim.eval_every": 2, "detection.min_size": [160], "detection.max_size": 224}
"""Sizes that two cores can bear in some minutes; too small for any conclusion."""


def demo(out: Path, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Run the demonstration; what a former call has finished is kept, what it left half-done goes on.

    Args:
        out: folder for everything it writes.
        say: told what happens.

    Returns:
        A row for each of `none` and `codo`: `weights` and the `curve`, AP and AP50 by epoch.

    Raises:
        CodoError: `out` is a file, or cannot be written.
    """
    if out.exists() and not out.is_dir():
        raise CodoError(f"--out {out} is a file; name a folder")

    def found(what: str) -> None:
        say(f"   {what}")

    data = out / "sample-data"
    if not data.exists():
        say(f"1. sample data -> {data}")
        with counter("rendering") as show:
            generate_sample_data(data, **SAMPLE, progress=show)
    sources = {"data.foregrounds": str(data / "foregrounds"), "data.backgrounds": str(data / "detection")}
    config = load_pretrain_config(preset="codo-small", flags=PRETRAIN | sources)
    say(f"2. what pretraining will see -> {out / 'preview.png'}")
    preview(config, 6, out / "preview.png")

    say(f"3. pretraining without labels -> {out / 'pretrain'}")
    run = out / "pretrain"
    bring_to_end(run, partial(pretraining.pretrain, config, run), partial(pretraining.resume, run), found)
    rows = []
    for number, (name, weights) in enumerate({"none": "none", "codo": str(run)}.items(), 4):
        folder = out / f"transfer-{name}"
        say(f"{number}. transfer with weights {weights} -> {folder}")
        flags = TRANSFER | {"weights": weights, "data.root": str(data / "detection")}
        settings = transferring.load_transfer_config(preset="small", flags=flags)
        summary = bring_to_end(
            folder,
            partial(transferring.transfer, settings, folder),
            partial(transferring.resume, folder),
            found,
        )
        rows.append({"weights": name, "curve": summary["curve"]})
    write_text(out / "table.md", markdown(rows))
    return rows


def markdown(rows: list[dict[str, Any]]) -> str:
    """Write the AP by epoch as a Markdown table."""
    epochs = [point["epoch"] for point in rows[0]["curve"]]
    lines = [
        "| weights | " + " | ".join(f"AP, epoch {epoch:g}" for epoch in epochs) + " |",
        "|---" * (len(epochs) + 1) + "|",
        *(f"| {row['weights']} | " + " | ".join(f"{point['AP']:.2f}" for point in row["curve"]) + " |" for row in rows),
    ]
    return "\n".join(lines) + "\n"
