"""Everything once, on the built-in sample data: pretraining, and transfer with and without it."""

from __future__ import annotations

import json
import shutil
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

SAMPLE = {"train": 112, "val": 32, "foregrounds": 480, "size": 224}
PRETRAIN = {"views": 1, "optim.epochs": 6}
TRANSFER = {"optim.epochs": 4, "optim.eval_every": 2, "detection.min_size": [160], "detection.max_size": 224}
"""Sizes that two cores can bear in some minutes; too small for any conclusion."""

BEGUN = {"config.yaml", "environment.json", "coverage.json", "metrics.jsonl"}
"""What a run may have written before its first checkpoint."""


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
    data = out / "sample-data"
    if not data.exists():
        say(f"1. sample data -> {data}")
        generate_sample_data(data, **SAMPLE, progress=counter("rendering"))
    sources = {"data.foregrounds": str(data / "foregrounds"), "data.backgrounds": str(data / "detection")}
    config = load_pretrain_config(preset="codo-small", flags=PRETRAIN | sources)
    say(f"2. what pretraining will see -> {out / 'preview.png'}")
    preview(config, 6, out / "preview.png")

    say(f"3. pretraining without labels -> {out / 'pretrain'}")
    run = out / "pretrain"
    _finish(run, say, partial(pretraining.resume, run), partial(pretraining.pretrain, config, run))
    rows = []
    for number, (name, weights) in enumerate({"none": "none", "codo": str(run)}.items(), 4):
        folder = out / f"transfer-{name}"
        say(f"{number}. transfer with weights {weights} -> {folder}")
        flags = TRANSFER | {"weights": weights, "data.root": str(data / "detection")}
        settings = transferring.load_transfer_config(preset="small", flags=flags)
        summary = _finish(
            folder,
            say,
            partial(transferring.resume, folder),
            partial(transferring.transfer, settings, folder),
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


def _finish(
    folder: Path, say: Callable[[str], None], resume: Callable[[], Any], start: Callable[[], Any]
) -> dict[str, Any]:
    """Bring the run in `folder` to its end, and read its summary."""
    if (folder / "summary.json").is_file():
        say("   finished before, kept")
    elif (folder / "checkpoint.pt").is_file():
        say("   stopped before, goes on")
        resume()
    else:
        if folder.is_dir() and {file.name for file in folder.iterdir()} <= BEGUN:
            shutil.rmtree(folder)  # stopped before its first checkpoint; anything else there is refused by `start`
        start()
    return json.loads((folder / "summary.json").read_text(encoding="utf-8"))
