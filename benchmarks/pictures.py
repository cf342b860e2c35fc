"""Pictures for benchmarks: the real ones, where they are here, and made-up ones where the content does not matter."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from PIL import Image

LINKS = 30_000
"""Names that one file gets; ext4 allows 65,000."""


def real_images() -> Path | None:
    """Find the folder of real data sets, $CODO_DATA or `../shared/data` beside the checkout; None if it is not here."""
    folder = Path(os.environ.get("CODO_DATA") or Path(__file__).parents[2] / "shared" / "data")
    return folder if folder.is_dir() else None


def write_pictures(folder: Path, count: int, side: int, seed: int = 0) -> None:
    """Write JPEGs of `side` x `side` pixels: a coarse random pattern, smoothed."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for i in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        coarse.resize((side, side), Image.Resampling.BICUBIC).save(folder / f"{i:06d}.jpg", quality=90)


def link_pictures(folder: Path, count: int, side: int) -> None:
    """Write `count` JPEGs, a thousand in a folder: hard links to a few, so that the disk holds the names alone."""
    write_pictures(folder / "sources", -(-count // LINKS), side)
    sources = sorted((folder / "sources").iterdir())
    for i in range(count - len(sources)):
        if i % 1000 == 0:
            inner = folder / f"{i // 1000:04d}"
            inner.mkdir()
        os.link(sources[i // LINKS], inner / f"{i:07d}.jpg")
