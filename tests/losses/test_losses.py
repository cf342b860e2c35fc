"""Each loss against a few lines of NumPy, and InfoNCE against its closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from codo.heads import MLPProjector
from codo.losses import (
    Contrast,
    CosineLoss,
    DenseLoss,
    Embeddings,
    ImageLoss,
    InfoNCELoss,
    InstanceLoss,
    KeyQueue,
    LevelLoss,
    Loss,
    StageLoss,
    info_nce,
)


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


def filled(rows: torch.Tensor) -> KeyQueue:
    queue = KeyQueue(*rows.shape, torch.Generator())
    queue.push(rows)
    return queue


def test_the_length_of_an_embedding_does_not_matter():
    q, k, queue = unit(5, 8), unit(5, 8, seed=1), unit(7, 8, seed=2)
    scaled = info_nce(q * torch.arange(1.0, 6)[:, None], k * 0.1, queue)
    assert float(scaled.loss) == pytest.approx(float(info_nce(q, k, queue).loss), rel=1e-6)


def test_image_and_instance_losses_are_info_nce_of_their_embedding():
    q, k, queue = unit(5, 8), unit(5, 8, seed=1), unit(7, 8, seed=2)
    expected = numpy_info_nce(q, k, queue, "queue", 0.2)
    for kind, name in {ImageLoss: "image", InstanceLoss: "instance"}.items():
        loss = kind([filled(queue)])
        assert float(loss(Embeddings(**{name: q}), Embeddings(**{name: k})).loss) == pytest.approx(expected)


@pytest.mark.parametrize("negatives", ["queue", "both"])
def test_a_loss_without_its_queues_is_refused(negatives):
    with pytest.raises(ValueError, match="needs a queue"):
        LevelLoss([filled(unit(4, 8))], negatives=negatives, weights=(1, 1))
    with pytest.raises(ValueError, match="needs a queue"):
        DenseLoss(negatives=negatives)


def test_keys_are_taken_in_after_the_step_normalised():
    loss, key = ImageLoss([filled(unit(6, 8))]), Embeddings(image=3 * unit(2, 8, seed=1))
    before = loss.queues[0].keys.clone()
    loss(key, key)
    assert torch.equal(loss.queues[0].keys, before)
    loss.update(key)
    assert torch.allclose(loss.queues[0].keys[:2], unit(2, 8, seed=1), atol=1e-6)
    assert torch.equal(loss.queues[0].keys[2:], before[2:])
    assert set(loss.state_dict()) == {"queues.0.keys", "queues.0.position"}


@pytest.mark.parametrize("kind", [LevelLoss, StageLoss])
def test_level_and_stage_loss_are_the_weighted_sum_with_a_queue_a_level(kind):
    def embeddings(rows):
        return Embeddings(**{kind.embeds: rows})

    q, k, weights = unit(4, 5, 8), unit(4, 5, 8, seed=1), (0.1, 0.4, 0.7, 1.0)
    queues = [unit(7, 8, seed=10 + i) for i in range(4)]
    loss = kind([filled(queue) for queue in queues], weights=weights)
    each = [numpy_info_nce(q[i], k[i], queues[i], "queue", 0.2) for i in range(4)]
    contrast = loss(embeddings(q), embeddings(k))
    assert float(contrast.loss) == pytest.approx(float(np.dot(weights, each)), rel=1e-5)
    swapped = kind([filled(queue) for queue in queues[::-1]], weights=weights)(embeddings(q), embeddings(k))
    assert float(swapped.loss) != pytest.approx(float(contrast.loss), rel=1e-5)
    loss.update(embeddings(k))
    for queue, keys in zip(loss.queues, k, strict=True):
        assert torch.allclose(queue.keys[:5], keys, atol=1e-6)


def test_cosine_loss_equals_numpy():
    predictor = MLPProjector(8, 12, 8, bn=True)
    q, k = 2 * unit(3, 6, 8), unit(3, 6, 8, seed=1)
    rows = q.reshape(18, 8).double().numpy()
    first, bn, _, last = predictor.layers
    hidden = rows @ first.weight.detach().double().numpy().T + first.bias.detach().double().numpy()
    hidden = (hidden - hidden.mean(0)) / np.sqrt(hidden.var(0) + bn.eps)
    out = np.maximum(hidden, 0) @ last.weight.detach().double().numpy().T + last.bias.detach().double().numpy()
    out /= np.linalg.norm(out, axis=1, keepdims=True)
    cosines = (out.reshape(3, 6, 8) * k.double().numpy()).sum(2)
    expected = np.dot([0.5, 1.0, 2.0], (2 - 2 * cosines).mean(1))
    loss = CosineLoss("level", predictor, weights=(0.5, 1.0, 2.0))
    contrast = loss(Embeddings(level=q), Embeddings(level=k))
    assert float(contrast.loss) == pytest.approx(expected, rel=1e-4)
    assert math.isnan(float(contrast.queue_accuracy))
    assert {name for name, p in loss.named_parameters() if p.requires_grad} >= {"predictor.layers.0.weight"}


def test_cosine_loss_counts_the_queries_nearest_to_their_own_key():
    eye = torch.eye(4)
    loss = CosineLoss("image", torch.nn.Identity())
    assert float(loss(Embeddings(image=eye), Embeddings(image=eye)).batch_accuracy) == 1
    assert float(loss(Embeddings(image=eye), Embeddings(image=eye[[1, 0, 2, 3]])).batch_accuracy) == 0.5


@pytest.mark.parametrize("negatives", ["queue", "batch", "both"])
def test_dense_loss_equals_numpy(negatives):
    cells, batch = 4, 3
    q, k = 2 * unit(cells, batch, 8), unit(cells, batch, 8, seed=1)
    fq, fk = unit(cells, batch, 5, seed=2), 3 * unit(cells, batch, 5, seed=3)
    queue = unit(7, 8, seed=4)
    losses = []
    nq, nk, nfq, nfk = (t.double().numpy() for t in (q / 2, k, fq, fk / 3))
    pooled = nk.mean(0)
    pooled /= np.linalg.norm(pooled, axis=1, keepdims=True)
    for b in range(batch):
        for g in range(cells):
            match = np.argmax([nfq[g, b] @ nfk[h, b] for h in range(cells)])
            stale = list(queue.double().numpy() @ nq[g, b]) if negatives != "batch" else []
            others = [nq[g, b] @ pooled[o] for o in range(batch) if o != b] if negatives != "queue" else []
            logits = np.array([nq[g, b] @ nk[match, b], *stale, *others]) / 0.2
            losses.append(-logits[0] + np.log(np.exp(logits).sum()))
    loss = DenseLoss(filled(queue), negatives=negatives)
    key = Embeddings(dense=k, dense_features=fk)
    contrast = loss(Embeddings(dense=q, dense_features=fq), key)
    assert float(contrast.loss) == pytest.approx(np.mean(losses), rel=1e-5)
    loss.update(key)
    assert np.allclose(loss.queue.keys[:batch].numpy(), pooled, atol=1e-6)


def test_a_sum_is_taken_where_the_losses_are():
    loss = torch.zeros((), device="meta")
    terms = [Contrast(loss), Contrast(loss, loss, loss)]
    assert {value.device.type for value in Contrast.sum(terms, (1.0, 1.0))} == {"meta"}


def test_losses_are_of_one_kind():
    assert all(issubclass(kind, Loss) for kind in (InfoNCELoss, CosineLoss, DenseLoss))
    with pytest.raises(AssertionError, match="built without instance embeddings"):
        InstanceLoss(negatives="batch")(Embeddings(image=unit(2, 4)), Embeddings(image=unit(2, 4)))


def test_embeddings_take_and_concatenate_over_samples():
    e = Embeddings(image=unit(4, 3), level=unit(2, 4, 3, seed=1))
    back = Embeddings.concatenate([e.take(torch.tensor([0, 1])), e.take(torch.tensor([2, 3]))])
    assert torch.equal(back.image, e.image)
    assert torch.equal(back.level, e.level)
    assert back.instance is None


def test_queue_accuracy_asks_for_more_than_every_key_of_the_queue():
    q, k = torch.eye(4)[:1], F.normalize(torch.tensor([[1.0, 0, 0, 1]]), dim=1)  # cosine .71
    stale = torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]])  # 1, 0, 0: the mean is below .71
    assert float(info_nce(q, k, stale).queue_accuracy) == 0


def test_the_accuracies_of_a_sum_are_means_each_of_its_own():
    terms = [Contrast(torch.tensor(1.0), torch.tensor(q), torch.tensor(b)) for q, b in ((0.2, 0.9), (0.4, 0.5))]
    total = Contrast.sum(terms, (3.0, 1.0))
    assert (float(total.queue_accuracy), float(total.batch_accuracy)) == pytest.approx((0.3, 0.7))


@pytest.mark.parametrize("negatives", ["queue", "batch", "both"])
def test_the_temperature_given_is_the_one_used(negatives):
    q, k, queue = unit(5, 8), unit(5, 8, seed=1), unit(7, 8, seed=2)
    loss = ImageLoss([filled(queue)], temperature=0.5, negatives=negatives)
    found = loss(Embeddings(image=q), Embeddings(image=k)).loss
    assert float(found) == pytest.approx(numpy_info_nce(q, k, queue, negatives, 0.5), rel=1e-5)


@pytest.mark.parametrize("negatives", ["queue", "batch", "both"])
def test_dense_loss_takes_any_temperature_and_any_lengths(negatives):
    cells, batch = 4, 3
    q, k, queue = unit(cells, batch, 8), unit(cells, batch, 8, seed=1), unit(7, 8, seed=4)
    fq, fk = unit(cells, batch, 5, seed=2), unit(cells, batch, 5, seed=3)
    length = [0.1 + 3 * torch.rand(cells, batch, 1, generator=torch.Generator().manual_seed(i)) for i in range(4)]
    key = Embeddings(dense=k * length[1], dense_features=fk * length[3])
    loss = DenseLoss(filled(queue), negatives=negatives, temperature=0.5)
    query = (q * length[0]).requires_grad_()
    found = loss(Embeddings(dense=query, dense_features=fq * length[2]), key).loss
    # The same in plain torch, cell by cell; its gradient too (it comes from positives and negatives).
    twin = (q * length[0]).requires_grad_()
    pooled, terms = F.normalize((k * length[1]).mean(0), dim=1), []
    for b in range(batch):
        for g in range(cells):
            one = F.normalize(twin[g, b], dim=0)
            logits = [one @ k[int((fk[:, b] @ fq[g, b]).argmax()), b]]
            logits += [one @ row for row in queue] if negatives != "batch" else []
            logits += [one @ pooled[o] for o in range(batch) if o != b] if negatives != "queue" else []
            logits = torch.stack(logits) / 0.5
            terms.append(logits.logsumexp(0) - logits[0])
    expected = torch.stack(terms).mean()
    assert float(found) == pytest.approx(float(expected), rel=1e-5)
    for value in (found, expected):
        value.backward()
    assert torch.allclose(query.grad, twin.grad, atol=1e-6)
    loss.update(key)
    assert torch.allclose(loss.queue.keys[:batch], pooled, atol=1e-6)


@pytest.mark.parametrize("negatives", ["queue", "batch", "both"])
def test_the_gradient_of_info_nce_is_that_of_its_formula(negatives):
    k, queue = unit(4, 8, seed=1), unit(6, 8, seed=2)
    q, twin = unit(4, 8).requires_grad_(), unit(4, 8).requires_grad_()
    info_nce(q, k, queue, negatives=negatives).loss.backward()
    among = F.normalize(twin, dim=1) @ k.T
    columns = [among.diagonal()[:, None]]
    columns += [F.normalize(twin, dim=1) @ queue.T] if negatives != "batch" else []
    columns += [among[~torch.eye(4, dtype=torch.bool)].view(4, 3)] if negatives != "queue" else []
    logits = torch.cat(columns, 1) / 0.2
    (logits.logsumexp(1) - logits[:, 0]).mean().backward()
    assert torch.allclose(q.grad, twin.grad, atol=1e-6)


def test_cosine_loss_does_not_mind_the_length_of_the_key():
    q, k, loss = unit(6, 8), unit(6, 8, seed=1), CosineLoss("image", nn.Identity())
    longer = k * torch.arange(1.0, 7)[:, None]
    same = [float(loss(Embeddings(image=q), Embeddings(image=e)).loss) for e in (k, longer)]
    assert same[0] == pytest.approx(same[1], rel=1e-6)


def test_cosine_accuracy_looks_for_the_key_of_a_query_and_not_for_the_query_of_a_key():
    eye = torch.eye(3)
    q = torch.stack([eye[0], eye[0] + 0.5 * eye[1], eye[2]])  # the second is nearer to the first key
    found = CosineLoss("image", nn.Identity())(Embeddings(image=q), Embeddings(image=eye)).batch_accuracy
    assert float(found) == pytest.approx(2 / 3)
