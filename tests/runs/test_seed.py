"""Seeds: the same numbers for ever, others for every purpose and key, nothing global."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from codo.runs.seed import generator, generators, integer_seed, torch_generator


def test_streams_are_those_of_every_earlier_version() -> None:
    # Recorded. Other numbers mean that old runs can no longer be resumed or repeated.
    assert integer_seed("view", 0, 1, 2) == 5860940464376466602
    assert generator("view", 0, 1, 2).integers(0, 2**32, 3).tolist() == [2968690273, 2949508447, 1081129570]
    drawn = torch.randint(0, 2**31, (3,), generator=torch_generator("view", 0, 1, 2))
    assert drawn.tolist() == [1683563451, 1877593333, 812459531]


def test_generators_are_those_that_one_spawns() -> None:
    spawned = generator("view", 3, 4, 5).spawn(3)
    made = generators(3, "view", 3, 4, 5)
    assert [g.bit_generator.state for g in made] == [g.bit_generator.state for g in spawned]


def test_asking_again_begins_again() -> None:
    first = generator("view", 3, 4)
    head = first.random(5)
    first.random(1000)
    assert np.array_equal(generator("view", 3, 4).random(5), head)
    assert torch.equal(*(torch.rand(5, generator=torch_generator("view", 3, 4)) for _ in range(2)))


def test_purposes_and_keys_and_their_order_all_count() -> None:
    asked = [
        (purpose, *keys) for purpose in ("view", "paste", "order", "") for keys in np.ndindex(4, 3, 3)
    ]  # 144 streams
    assert len({integer_seed(*key) for key in asked}) == len(asked)
    assert len({generator(*key).random() for key in asked}) == len(asked)
    assert len({torch.rand(1, generator=torch_generator(*key), dtype=torch.float64).item() for key in asked}) == 144


def test_streams_of_two_purposes_and_of_neighbours_are_uncorrelated() -> None:
    draws = np.stack([generator(*key).standard_normal(20_000) for key in [("a", 0), ("b", 0), ("a", 1), ("b", 1)]])
    off_diagonal = np.corrcoef(draws)[np.triu_indices(4, 1)]
    assert np.abs(off_diagonal).max() < 5 / np.sqrt(20_000)


def test_seeds_fit_every_library_and_use_their_range() -> None:
    seeds = [integer_seed("range", key) for key in range(200)]
    assert all(type(seed) is int and 0 <= seed < 2**63 for seed in seeds)
    assert max(seeds) > 2**62  # not cut to 32 bits


def test_nothing_global_is_read_or_moved() -> None:
    before, state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first = generator("view", 1).random(), torch.rand(1, generator=torch_generator("view", 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], state)  # noqa: NPY002
    with torch.random.fork_rng():
        torch.manual_seed(123)
        second = generator("view", 1).random(), torch.rand(1, generator=torch_generator("view", 1))
    assert first == second


def test_a_negative_key_is_refused() -> None:
    with pytest.raises(ValueError, match="non-negative"):
        generator("view", -1)
