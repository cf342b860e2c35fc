"""What is watched: collapse and the clock."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from codo.jobs.pretrain.watch import Collapse, collapse_measures
from codo.losses import Embeddings


def rows(seed: int, batch: int = 12, width: int = 8) -> torch.Tensor:
    return torch.randn(batch, width, generator=torch.Generator().manual_seed(seed)) + 0.5


@pytest.mark.parametrize("batch", [6, 12])  # fewer and more samples than dimensions
def test_the_measures_equal_numpy(batch):
    raw = 3 * rows(0, batch)
    e = raw.double().numpy()
    e /= np.linalg.norm(e, axis=1, keepdims=True)
    singular = np.linalg.svd(e - e.mean(0), compute_uv=False)
    share = singular / singular.sum()
    share = share[share > 1e-9]
    measures = collapse_measures(Embeddings(image=raw))
    assert measures["embedding_std"] == pytest.approx(e.std(0).mean() * math.sqrt(8), rel=1e-5)
    pairs = [e[i] @ e[j] for i, j in itertools.combinations(range(batch), 2)]
    assert measures["embedding_cosine"] == pytest.approx(np.mean(pairs), rel=1e-5)
    assert measures["embedding_rank"] == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=1e-4)


def test_of_several_embeddings_the_worst_counts():
    good, bad = rows(0), torch.ones(12, 8) + 1e-3 * rows(1)
    alone = collapse_measures(Embeddings(image=bad))
    assert collapse_measures(Embeddings(level=torch.stack([good, bad, good]))) == pytest.approx(alone)
    together = collapse_measures(Embeddings(image=good, instance=bad))
    assert together["embedding_std"] == pytest.approx(alone["embedding_std"])


def test_spread_embeddings_measure_one_and_full_rank():
    spread = collapse_measures(Embeddings(image=torch.randn(4000, 16, generator=torch.Generator().manual_seed(0))))
    assert spread["embedding_std"] == pytest.approx(1, abs=0.02)
    assert spread["embedding_cosine"] == pytest.approx(0, abs=0.01)
    assert spread["embedding_rank"] == pytest.approx(16, rel=0.01)


@pytest.mark.parametrize(
    ("measures", "said"),
    [
        ({"embedding_std": 0.01, "embedding_rank": 9.0}, "nearly the same"),
        ({"embedding_std": 0.8, "embedding_rank": 1.2}, "lie on a line"),
        ({"embedding_std": 0.8, "embedding_rank": 9.0}, None),
    ],
)
def test_collapse_is_said_in_plain_words_and_not_of_the_first_steps(measures, said):
    watch = Collapse()
    assert watch.update(Collapse.STEPS - 1, measures) is None
    warning = watch.update(Collapse.STEPS, measures)
    assert (warning is None) if said is None else (said in warning)


def test_where_nothing_is_contrasted_nothing_is_watched():
    assert Collapse().update(Collapse.STEPS, collapse_measures(Embeddings(offsets=rows(0)[None, :, :4]))) is None


def test_one_bad_reading_is_no_collapse():
    watch = Collapse()
    for step in range(0, 200, 10):
        assert watch.update(step, {"embedding_std": 0.9, "embedding_rank": 20.0}) is None
    assert watch.update(210, {"embedding_std": 0.0, "embedding_rank": 1.0}) is None
