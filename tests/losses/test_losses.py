"""Each loss against a few lines of NumPy, and InfoNCE against its closed form (method.md, invariant 3)."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from codo.losses import Embeddings, ImageLoss, InstanceLoss, KeyQueue, LevelLoss, info_nce


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def numpy_info_nce(q, k, queue, negatives, t):
    q, k = q.double().numpy(), k.double().numpy()
    losses = []
    for i in range(len(q)):
        others = [q[i] @ k[j] for j in range(len(k)) if j != i] if negatives != "queue" else []
        stale = list(queue.double().numpy() @ q[i]) if negatives != "batch" else []
        logits = np.array([q[i] @ k[i], *stale, *others]) / t
        losses.append(-logits[0] + np.log(np.exp(logits).sum()))
    return np.mean(losses)


@pytest.mark.parametrize("negatives", ["queue", "batch", "both"])
@pytest.mark.parametrize("temperature", [0.07, 0.2, 1.0])
def test_info_nce_equals_numpy(negatives, temperature):
    q, k, queue = unit(6, 16), unit(6, 16, seed=1), unit(20, 16, seed=2)
    ours = info_nce(q, k, queue, negatives=negatives, temperature=temperature)
    assert float(ours.loss) == pytest.approx(numpy_info_nce(q, k, queue, negatives, temperature), rel=1e-5)


def test_closed_form_of_identical_embeddings_and_orthogonal_negatives():
    eye, t = torch.eye(10), 0.2
    queue = info_nce(eye[:4], eye[:4], eye[4:])
    assert float(queue.loss) == pytest.approx(math.log(1 + 6 * math.exp(-1 / t)), rel=1e-5)
    batch = info_nce(eye[:4], eye[:4], negatives="batch")
    assert float(batch.loss) == pytest.approx(math.log(1 + 3 * math.exp(-1 / t)), rel=1e-5)
    both = info_nce(eye[:4], eye[:4], eye[4:], negatives="both")
    assert float(both.loss) == pytest.approx(math.log(1 + 9 * math.exp(-1 / t)), rel=1e-5)


def test_accuracies_tell_stale_negatives_from_fresh_ones():
    # All keys of the batch alike, the queue elsewhere: told by freshness alone.
    fresh, stale = F.normalize(torch.ones(4, 8), dim=1), F.normalize(-torch.ones(9, 8), dim=1)
    contrast = info_nce(fresh, fresh, stale)
    assert float(contrast.queue_accuracy) == 1
    assert float(contrast.batch_accuracy) == 0
    assert math.isnan(float(info_nce(fresh, fresh, negatives="batch").queue_accuracy))


def test_gradient_reaches_the_query_alone():
    q, k, queue = unit(4, 8).requires_grad_(), unit(4, 8, seed=1), KeyQueue(12, 8, torch.Generator())
    info_nce(q, k, queue.keys).loss.backward()
    assert q.grad is not None
    assert q.grad.abs().sum() > 0
    assert queue.keys.grad is None


def test_a_queue_is_required_where_it_is_named():
    with pytest.raises(ValueError, match="needs a queue"):
        info_nce(unit(2, 4), unit(2, 4), negatives="both")


def test_queue_is_first_in_first_out_over_the_end():
    queue = KeyQueue(5, 1, torch.Generator().manual_seed(0))
    assert torch.allclose(queue.keys.norm(dim=1), torch.ones(5))
    for step in range(4):
        queue.push(torch.tensor([[2.0 * step], [2.0 * step + 1]]))
    assert sorted(queue.keys[:, 0].tolist()) == [3, 4, 5, 6, 7]
    queue.push(torch.arange(100.0, 107.0)[:, None])
    assert sorted(queue.keys[:, 0].tolist()) == [102, 103, 104, 105, 106]
    assert set(queue.state_dict()) == {"keys", "position"}


def test_image_and_instance_losses_are_info_nce_of_their_embedding():
    q, k, queue = unit(5, 8), unit(5, 8, seed=1), unit(7, 8, seed=2)
    expected = numpy_info_nce(q, k, queue, "queue", 0.2)
    assert float(ImageLoss()(Embeddings(image=q), Embeddings(image=k), [queue]).loss) == pytest.approx(expected)
    contrast = InstanceLoss()(Embeddings(instance=q), Embeddings(instance=k), [queue])
    assert float(contrast.loss) == pytest.approx(expected)


def test_level_loss_is_the_weighted_sum_with_a_queue_a_level():
    q, k, weights = unit(4, 5, 8), unit(4, 5, 8, seed=1), (0.1, 0.4, 0.7, 1.0)
    queues = [unit(7, 8, seed=10 + i) for i in range(4)]
    loss = LevelLoss(weights)
    each = [numpy_info_nce(q[i], k[i], queues[i], "queue", 0.2) for i in range(4)]
    contrast = loss(Embeddings(level=q), Embeddings(level=k), queues)
    assert float(contrast.loss) == pytest.approx(float(np.dot(weights, each)), rel=1e-5)
    assert loss.queues == 4
    assert [tuple(keys.shape) for keys in loss.keys(Embeddings(level=k))] == [(5, 8)] * 4
    swapped = loss(Embeddings(level=q), Embeddings(level=k), queues[::-1])
    assert float(swapped.loss) != pytest.approx(float(contrast.loss), rel=1e-5)


def test_embeddings_take_and_concatenate_over_samples():
    e = Embeddings(image=unit(4, 3), level=unit(2, 4, 3, seed=1))
    back = Embeddings.concatenate([e.take(torch.tensor([0, 1])), e.take(torch.tensor([2, 3]))])
    assert torch.equal(back.image, e.image)
    assert torch.equal(back.level, e.level)
    assert back.instance is None
