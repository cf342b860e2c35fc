"""Shared fixtures: a small set of made-up images, the real ones where they are, a config that runs in a second."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.parts import tiny_config

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)  # small networks gain nothing from more, and a busy machine loses much


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Keep the decoded images and sample data of tests out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CODO_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@contextmanager
def _full_disk(limit: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def full_disk() -> Callable[[int], AbstractContextManager[None]]:
    """`with full_disk(1000):` lets every write past 1000 bytes of a file fail, as on a full disk."""
    return _full_disk


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real images: $CODO_DATA, or `../shared/data` beside the checkout."""
    folder = Path(os.environ.get("CODO_DATA") or REPOSITORY.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip("real images are not here; set CODO_DATA to their folder")
    return folder


def picture(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """Draw a picture with structure: a coarse random pattern, smoothed."""
    coarse = rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `foregrounds/` (12 pictures) and `backgrounds/` (5)."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for name, count in {"foregrounds": 12, "backgrounds": 5}.items():
        (root / name).mkdir()
        for i in range(count):
            width, height = (int(n) for n in rng.integers(70, 160, 2))
            Image.fromarray(picture(rng, width, height)).save(root / name / f"{i:02d}.png")
    return root


@pytest.fixture
def tiny(images: Path) -> Any:
    """`tiny_config` of the made-up images."""
    return partial(tiny_config, images)
