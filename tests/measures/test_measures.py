"""Each measure against a few lines of NumPy, and on embeddings whose figures are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from codo.measures import (
    alignment,
    box_sensitivity,
    effective_rank,
    knn_accuracy,
    majority_share,
    retrieval,
    spearman,
    uniformity,
    variance_shares,
)
from codo.measures.variance import chance_ratio

N, M, D = 7, 4, 5


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def instances(count: int = N, number: int = M) -> torch.Tensor:
    """Show the instance, whatever the background."""
    return torch.eye(count)[:, None].expand(count, number, count)


def backgrounds(count: int = N, number: int = M) -> torch.Tensor:
    """Show the background alone."""
    return torch.eye(number)[None].expand(count, number, number)


def unit(rows: torch.Tensor) -> np.ndarray:
    e = rows.double().numpy()
    return e / np.linalg.norm(e, axis=-1, keepdims=True)


@pytest.mark.parametrize("other", [False, True])
@pytest.mark.parametrize("hard", [False, True])
def test_retrieval_equals_numpy(hard, other):
    queries, gallery = noise(N, M, D), noise(N, M, D, seed=1) if other else None
    q, g = unit(queries), unit(queries if gallery is None else gallery)
    places = []
    for i in range(N):
        for b in range(M):
            for c in range(M):
                if c != b:
                    right = q[i, b] @ g[i, c]
                    wrong = [q[i, b] @ g[j, b if hard else c] for j in range(N) if j != i]
                    places.append(1 + sum(w > right for w in wrong))
    found = retrieval(queries, hard=hard, gallery=gallery)
    assert found.top1 == pytest.approx(np.mean([p == 1 for p in places]))
    assert found.mean_ap == pytest.approx(np.mean([1 / p for p in places]))
    assert found.chance_top1 == pytest.approx(1 / N)
    assert found.chance_ap == pytest.approx(np.mean([1 / p for p in range(1, N + 1)]))


def test_an_invariant_embedding_finds_all_and_the_background_alone_nothing():
    for hard in (True, False):
        assert retrieval(instances(), hard=hard)[:2] == (1.0, 1.0)
    hard, easy = (retrieval(backgrounds(), hard=hard) for hard in (True, False))
    assert hard.top1 == 0.0
    assert hard.mean_ap == pytest.approx(1 / N)  # always the last
    assert easy.top1 == pytest.approx(1 / N)  # no candidate is nearer than another: chance
    assert easy.mean_ap == pytest.approx(easy.chance_ap)


def test_between_them_the_hard_variant_tells_how_much_the_background_counts():
    mixed = [torch.cat([instances(), weight * backgrounds()], 2) for weight in (0.5, 0.9, 1.1, 2.0)]
    assert [retrieval(e, hard=True).top1 for e in mixed] == [1, 1, 0, 0]  # from where it outweighs the instance
    assert [retrieval(e, hard=False).top1 for e in mixed] == [1, 1, 1, 1]


def test_collapsed_embeddings_score_chance_and_noise_does_nearly():
    for hard in (True, False):
        same = retrieval(torch.ones(N, M, D) + 1e-9 * noise(N, M, D), hard=hard)
        assert same[:2] == pytest.approx(same[2:])
        random = retrieval(noise(30, 6, 64), hard=hard)
        assert random[:2] == pytest.approx(random[2:], abs=0.03)


def test_variance_equals_numpy_and_its_ends_are_known():
    e = unit(noise(N, M, D) + 2 * noise(N, 1, D, seed=2))
    within = np.mean([np.sum((e[i, b] - e[i].mean(0)) ** 2) for i in range(N) for b in range(M)])
    between = np.mean([np.sum((e[i].mean(0) - e.mean((0, 1))) ** 2) for i in range(N)])
    found = variance_shares(torch.from_numpy(e))
    assert found.ratio == pytest.approx(within / between)
    assert found.instance == pytest.approx(between / (within + between))
    assert sum(found[1:]) == pytest.approx(1)
    assert variance_shares(instances()).ratio == pytest.approx(0, abs=1e-12)
    alone = variance_shares(backgrounds())
    assert alone.ratio == math.inf
    assert alone.background == pytest.approx(1)
    assert all(math.isnan(value) for value in variance_shares(torch.ones(N, M, D)))
    assert variance_shares(noise(300, 8, 64)).ratio == pytest.approx(chance_ratio(300, 8), rel=0.05)


def test_alignment_and_uniformity_equal_numpy():
    raw = 3 * noise(N, M, D)
    e = unit(raw)
    pairs = [np.sum((e[i, b] - e[i, c]) ** 2) for i in range(N) for b in range(M) for c in range(b)]
    assert alignment(raw) == pytest.approx(np.mean(pairs))
    assert alignment(instances()) == 0
    rows = e[:, 0]
    potential = [math.exp(-2 * np.sum((rows[i] - rows[j]) ** 2)) for i in range(N) for j in range(i)]
    assert uniformity(raw[:, 0]) == pytest.approx(math.log(np.mean(potential)))
    assert uniformity(torch.ones(N, D)) == pytest.approx(0, abs=1e-9)


class WithoutDoubles(torch.Tensor):
    """On a device that has no doubles, as MPS has none."""

    def double(self):
        raise TypeError("no float64 here")

    def cpu(self):
        return self.as_subclass(torch.Tensor)


@pytest.mark.parametrize("count", [4, 12])  # fewer and more rows than dimensions
def test_effective_rank_equals_numpy(count):
    rows = noise(count, 6)
    singular = np.linalg.svd((rows - rows.mean(0)).double().numpy(), compute_uv=False)
    share = singular[singular > 1e-9] / singular.sum()
    assert effective_rank(rows.as_subclass(WithoutDoubles)) == effective_rank(rows)
    assert effective_rank(rows) == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=1e-4)


def test_knn_equals_numpy():
    rows, labels = noise(40, 6), torch.arange(40) % 3
    rows += 1.5 * torch.eye(6)[labels]
    e, right = unit(rows), 0
    for i in range(40):
        cosine = e @ e[i]
        cosine[i] = -np.inf
        votes = np.zeros(3)
        for j in np.argsort(-cosine)[:5]:
            votes[labels[j]] += math.exp(cosine[j] / 0.07)
        right += votes.argmax() == labels[i]
    assert 0.4 < right / 40 < 1
    assert knn_accuracy(rows, labels, 5) == pytest.approx(right / 40)
    assert knn_accuracy(torch.eye(3)[labels], labels) == 1
    assert majority_share(torch.tensor([0, 2, 2, 2])) == 0.75


def test_spearman_shares_the_rank_of_ties():
    a, b = torch.tensor([1.0, 2, 2, 3, 9]), torch.tensor([5.0, 1, 4, 4, 8])
    # By hand: ranks 1 2.5 2.5 4 5 and 4 1 2.5 2.5 5.
    ranks = np.array([[1, 2.5, 2.5, 4, 5], [4, 1, 2.5, 2.5, 5]])
    assert spearman(a, b) == pytest.approx(np.corrcoef(ranks)[0, 1])
    assert spearman(a, a.exp()) == pytest.approx(1)
    assert spearman(a, -a) == pytest.approx(-1)
    assert math.isnan(spearman(a, torch.ones(5)))


def test_box_sensitivity_equals_numpy():
    exact, jittered, iou = noise(N, D), noise(N, 3, D, seed=1), torch.rand(N, 3, generator=torch.manual_seed(0))
    e, j = unit(exact), unit(jittered)
    other = np.mean([e[a] @ e[b] for a in range(N) for b in range(N) if a != b])
    similarity = np.array([[(e[i] @ j[i, k] - other) / (1 - other) for k in range(3)] for i in range(N)])
    found = box_sensitivity(exact, jittered, iou)
    assert found.slope == pytest.approx(np.polyfit(iou.numpy().ravel(), similarity.ravel(), 1)[0], rel=1e-5)
    assert found.rank_correlation == pytest.approx(spearman(iou.flatten(), torch.from_numpy(similarity).flatten()))
    assert sum(boxes for *_, boxes in found.curve) == 3 * N
    low, high, mean, _ = found.curve[0]
    inside = (iou.numpy() >= low) & (iou.numpy() < high)
    assert mean == pytest.approx(similarity[inside].mean())


def test_boxes_that_change_nothing_and_boxes_that_change_in_proportion():
    iou = torch.rand(N, 6, generator=torch.manual_seed(0))
    exact = torch.eye(2 * N)[:N]
    still = box_sensitivity(exact, exact[:, None].expand(N, 6, 2 * N), iou)
    assert still.slope == pytest.approx(0, abs=1e-9)
    assert math.isnan(still.rank_correlation)
    turned = exact[:, None] * iou[..., None] + torch.eye(2 * N)[N:, None] * (1 - iou**2).sqrt()[..., None]
    moving = box_sensitivity(exact, turned, iou)  # cosine = IoU, other instances are orthogonal
    assert moving.slope == pytest.approx(1, rel=1e-5)
    assert moving.rank_correlation == pytest.approx(1)


@pytest.mark.parametrize(
    "call",
    [
        lambda: retrieval(torch.ones(1, 3, 2), hard=True),
        lambda: retrieval(torch.ones(3, 1, 2), hard=False),
        lambda: knn_accuracy(torch.ones(1, 2), torch.zeros(1, dtype=torch.long)),
        lambda: box_sensitivity(torch.ones(1, 2), torch.ones(1, 2, 2), torch.ones(1, 2)),
    ],
)
def test_too_few_are_refused(call):
    with pytest.raises(ValueError, match="at least 2"):
        call()


def test_the_variance_does_not_mind_lengths_and_noise_has_the_chance_ratio():
    rows = noise(7, 4, 5)
    scaled = rows * (0.1 + 3 * torch.rand(7, 4, 1, generator=torch.Generator().manual_seed(1)))
    assert variance_shares(scaled) == pytest.approx(variance_shares(rows))
    within, between = np.array(
        [[1 - v.instance, v.instance] for i in range(300) for v in [variance_shares(noise(5, 3, 64, seed=i))]]
    ).mean(0)
    assert within / between == pytest.approx(chance_ratio(5, 3), rel=0.05)
    assert chance_ratio(5, 3) == 2.5


def test_knn_over_more_images_than_it_takes_at_once():
    rows, labels = noise(1100, 6), torch.arange(1100) % 3
    rows += 0.8 * torch.eye(6)[labels]
    e = unit(rows)
    cosine = e @ e.T
    np.fill_diagonal(cosine, -np.inf)
    nearest = np.argsort(-cosine, 1)[:, :5]
    weight = np.exp(np.take_along_axis(cosine, nearest, 1) / 0.07)
    votes = np.stack([(weight * (labels.numpy()[nearest] == c)).sum(1) for c in range(3)], 1)
    assert knn_accuracy(rows, labels, 5) == pytest.approx((votes.argmax(1) == labels.numpy()).mean())


def test_the_curve_ends_with_boxes_that_fit():
    exact = torch.eye(3)
    found = box_sensitivity(exact, exact[:, None].expand(3, 2, 3), torch.tensor([[0.0, 1.0]] * 3))
    assert [(low, high, boxes) for low, high, _, boxes in found.curve] == [(0.0, 0.1, 3), (0.9, 1.0, 3)]
