"""The one place that seeds: every generator is a function of a purpose and of integer keys.

Nothing is drawn from global state, so there is no generator state to save: a resumed run, or one with another number
of loader workers, asks for the same keys and gets the same numbers.
"""

from __future__ import annotations

import zlib

import numpy as np
import torch


def _entropy(purpose: str, keys: tuple[int, ...]) -> list[int]:
    return [zlib.crc32(purpose.encode()), *keys]


def _sequence(purpose: str, keys: tuple[int, ...]) -> np.random.SeedSequence:
    return np.random.SeedSequence(_entropy(purpose, keys))


def generator(purpose: str, *keys: int) -> np.random.Generator:
    """Make the NumPy generator of `(purpose, *keys)`.

    Args:
        purpose: what is drawn, e.g. `"view"`; streams of different purposes are independent.
        keys: non-negative, always as many for one purpose: seed, then epoch, step, sample or view.
    """
    return np.random.default_rng(_sequence(purpose, keys))


def generators(count: int, purpose: str, *keys: int) -> list[np.random.Generator]:
    """Make what `generator(purpose, *keys).spawn(count)` gives, in less time."""
    entropy = _entropy(purpose, keys)
    return [
        np.random.Generator(np.random.PCG64(np.random.SeedSequence(entropy, spawn_key=(child,))))
        for child in range(count)
    ]


def integer_seed(purpose: str, *keys: int) -> int:
    """Make a 63-bit seed of `(purpose, *keys)`, for libraries that want an integer."""
    return int(_sequence(purpose, keys).generate_state(1, np.uint64)[0] >> 1)


def torch_generator(purpose: str, *keys: int) -> torch.Generator:
    """Make the torch generator (on the processor) of `(purpose, *keys)`."""
    return torch.Generator().manual_seed(integer_seed(purpose, *keys))
