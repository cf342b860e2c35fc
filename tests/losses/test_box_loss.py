"""The box loss: a detector's regression, from the jittered box to the patch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.models.detection._utils import BoxCoder

from codo.backbones import Backbone
from codo.errors import CodoError
from codo.heads import assign_levels
from codo.losses import BoxLoss, Embeddings, box_offsets
from codo.model import build_encoder
from tests.model.test_model import build
from tests.parts import run_of


def boxes_of(seed, *shape):
    low = torch.rand(*shape, 2, generator=torch.Generator().manual_seed(seed)) * 30
    return torch.cat(
        [low, low + 10 + 20 * torch.rand(*shape, 2, generator=torch.Generator().manual_seed(seed + 1))], -1
    )


def test_offsets_are_those_that_torchvisions_detectors_learn():
    exact, boxes = boxes_of(0, 50), boxes_of(5, 50)
    coder = BoxCoder((10.0, 10.0, 5.0, 5.0))
    assert torch.allclose(box_offsets(exact, boxes), coder.encode_single(exact, boxes), atol=1e-5)
    assert torch.allclose(coder.decode_single(box_offsets(exact, boxes), boxes), exact, atol=1e-4)


def test_the_loss_is_the_smooth_l1_of_the_four_offsets():
    exact, boxes = boxes_of(0, 1, 6), boxes_of(3, 2, 6)
    seen = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(9))
    error = np.abs((seen - box_offsets(exact.expand(2, 6, 4), boxes)).numpy())
    by_hand = np.where(error < 1 / 9, 0.5 * error**2 * 9, error - 0.5 / 9).sum(2).mean()
    query = Embeddings(offsets=seen, boxes=boxes, exact_boxes=exact)
    assert float(BoxLoss()(query, Embeddings()).loss) == pytest.approx(by_hand, rel=1e-5)


@pytest.mark.parametrize("embeds", [("level",), ("instance",), ("level", "instance"), ()])
def test_the_encoder_says_which_boxes_it_pooled(embeds):
    encoder = build_encoder(Backbone("resnet10t", 16), embeds=(*embeds, "offsets"), embedding=8, canonical_size=56)
    boxes = boxes_of(1, 4, 3)
    found = encoder.eval()(torch.randn(3, 3, 64, 64), boxes)
    rows = 4 * ("level" in embeds) + ("instance" in embeds or not embeds)
    assert found.offsets.shape == found.boxes.shape == (rows, 3, 4)
    if "level" in embeds:
        assert torch.equal(found.boxes[:4], boxes)
    if "level" not in embeds:
        for i in range(3):
            assert any(torch.equal(found.boxes[0, i], boxes[k, i]) for k in range(4))


def test_training_lowers_the_box_loss_and_leaves_the_rest_of_the_network_as_it_starts(tiny):
    config = tiny(**{"loss.box": 1.0, "optim.epochs": 12, "optim.lr": 0.5, "optim.batch_size": 4})
    run, plain = run_of(config), run_of(tiny())
    theirs = dict(plain.method.query_encoder.named_parameters())
    for name, value in run.method.query_encoder.named_parameters():
        assert name.startswith("offsets.") or torch.equal(value, theirs[name])
    terms = [run.advance(batch).terms for batch in run.batches(run.steps)]
    assert set(terms[0]) == {"level", "box"}
    first, last = (np.mean([t["box"] for t in part]) for part in (terms[:6], terms[-6:]))
    assert last < 0.9 * first


def test_gradients_reach_head_and_backbone_and_the_projector_none(tiny):
    run = run_of(tiny(**{"loss.box": 1.0, "loss.level": 1e-30}))
    run.trainer.optimizer.step = lambda *_: None
    run.trainer.optimizer.zero_grad = lambda **_: None
    run.advance(next(run.batches(1)))
    reached = {
        n: float(p.grad.abs().max()) for n, p in run.method.query_encoder.named_parameters() if p.grad is not None
    }
    assert max(v for n, v in reached.items() if n.startswith("projector")) < 1e-20
    for part in ("box_head", "backbone.fpn", "backbone.body", "offsets"):
        assert max(v for n, v in reached.items() if n.startswith(part)) > 1e-6, part


def test_sub_batches_and_mosaics_give_the_same_kind_of_loss(tiny):
    wide = {"optim.batch_size": 8, "loss.box": 1.0}
    whole, parts = run_of(tiny(**wide)), run_of(tiny(**wide, **{"optim.accumulate": 2}))
    batch = next(whole.batches(1))
    assert parts.advance(batch).terms["box"] == pytest.approx(whole.advance(batch).terms["box"], rel=1e-4)
    tiled = run_of(tiny(**wide, mosaic=2, model__bn_groups=1))
    seen = {}
    loss = tiled.method.losses["box"]
    loss.register_forward_pre_hook(lambda module, inputs: seen.update(query=inputs[0]))
    tiled.advance(batch)
    # As tiles shift both boxes alike, what is to be found stays.
    jittered, exact = batch.views.boxes[:, 0], batch.views.exact_boxes[:, 0]
    wanted = box_offsets(seen["query"].exact_boxes, seen["query"].boxes)
    assert torch.allclose(wanted, box_offsets(exact, jittered).expand_as(wanted), atol=1e-4)


@pytest.mark.parametrize("fields", [{"background": False}, {"alignment": False}, {"jitter.mode": "none"}])
def test_without_a_jittered_patch_there_is_nothing_to_find(tiny, fields):
    with pytest.raises(CodoError, match=r"loss\.box: needs"):
        tiny(**{"loss.box": 1.0}, **fields)


def test_the_boxes_named_are_the_boxes_pooled():
    """Each level its own box, all different: also of the assigned level and of chosen ones."""
    sizes = torch.tensor([20.0, 30, 45, 60])[:, None].expand(4, 2)  # canonical 56: P2, P3, P3, P4, by P5's box alone
    boxes = torch.stack(
        [torch.cat([torch.full((4, 2), float(k)), torch.full((4, 2), 33.0 + 2 * k)], 1) for k in range(3)]
    )
    boxes = torch.cat([boxes, torch.cat([torch.full((4, 2), 3.0), 3 + sizes], 1)[None]])
    image = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    rows = assign_levels(boxes[-1], 56.0) - 2
    assert rows.tolist() == [0, 1, 1, 2]
    own = boxes[rows, torch.arange(4)]
    with torch.no_grad():
        encoder = build(embeds=("level", "instance", "offsets"), levels=(3, 5)).eval()
        found = encoder(image, boxes)
        assert torch.equal(found.boxes, torch.stack([boxes[1], boxes[3], own]))
        # What the offsets are of: pooled by hand from those boxes.
        pyramid = list(encoder.backbone.pyramid(encoder.backbone.stages(image)).values())
        by_hand = torch.cat(
            [encoder.pool(pyramid[r][i : i + 1], own[i : i + 1], 2 ** (int(r) + 2)) for i, r in enumerate(rows)]
        )
        features = encoder.box_head(by_hand)
        assert torch.allclose(found.offsets[2], encoder.offsets(features), atol=1e-5)
        assert torch.allclose(found.instance, encoder.projector(features), atol=1e-5)
