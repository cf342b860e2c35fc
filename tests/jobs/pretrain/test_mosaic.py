"""Mosaics: several samples on one canvas, each still contrasted with its own key."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from codo.augment import mosaic
from codo.errors import CodoError
from codo.heads import RoIPool
from codo.jobs.pretrain.build import build_dataset, find_sources
from codo.jobs.pretrain.training import Run
from codo.losses import ImageLoss
from codo.model import MomentumEncoder
from codo.parts import Parts
from tests.parts import run_of

WIDE = {"optim.batch_size": 16, "mosaic": 2, "model.bn_groups": 2}


@pytest.fixture
def wide(tiny, images):
    """`tiny` with WIDE, on all 17 pictures."""
    return partial(tiny, **WIDE, **{"data.foregrounds": str(images)})


def test_every_box_holds_on_the_canvas_what_it_held_in_its_view():
    rng = torch.Generator().manual_seed(0)
    images = torch.rand(8, 3, 32, 32, generator=rng).contiguous(memory_format=torch.channels_last)
    boxes = torch.tensor([[3.0, 5, 15, 20]]) + torch.arange(8.0)[:, None]
    order = torch.randperm(8, generator=rng)
    canvases, placed = mosaic(images, torch.stack([boxes, boxes + 1]), order, 2)
    assert canvases.shape == (2, 3, 64, 64)
    assert canvases.is_contiguous(memory_format=torch.channels_last)
    for row, sample in enumerate(order.tolist()):
        for shift in (0, 1):
            x0, y0, x1, y1 = (boxes[sample] + shift).int().tolist()
            left, top, right, bottom = placed[shift, row].int().tolist()
            there = canvases[row // 4, :, top:bottom, left:right]
            assert torch.equal(there, images[sample, :, y0:y1, x0:x1])


def test_boxes_are_pooled_from_the_image_they_lie_on():
    features, boxes = torch.randn(2, 5, 9, 9), torch.rand(6, 4) * 8 + torch.tensor([0.0, 0, 20, 20])
    assert torch.allclose(RoIPool()(features, boxes, 4), RoIPool()(features, boxes, 4, torch.arange(6) // 3), atol=1e-6)


@pytest.mark.parametrize("hierarchy", [False, True])
def test_each_query_meets_its_own_key(wide, hierarchy):
    """With one view for query and key, both encoders alike, every row is most like itself, wherever it was laid."""
    run = run_of(wide(hierarchy=hierarchy, **{"model.bn_groups": 1}))
    batch = next(run.batches(1))
    run.method.key_encoder.eval()
    run.method.query_encoder.eval()
    queries, key = run.trainer._prepare(batch.views, 0)
    twin = queries._replace(exact=queries.jittered)
    keys = run.trainer._keys(twin, torch.Generator().manual_seed(0))
    local = run.method.query_encoder(queries.images, queries.jittered, 1).take(queries.rows)
    name = "level" if hierarchy else "instance"
    assert torch.allclose(getattr(local, name), getattr(keys, name), atol=1e-5)
    assert not torch.equal(queries.rows, key.rows)  # each view has its own grouping


def test_rows_are_those_of_the_samples(wide):
    run = run_of(wide(**{"colour.flip_p": 0.0}))
    batch = next(run.batches(1))
    view = run.trainer._prepare(batch.views, 0)[0]
    rows = view.exact[0][view.rows]
    offset = rows - batch.views.exact_boxes[:, 0]
    assert torch.equal(offset % 64, torch.zeros(16, 4))  # a tile is 64 px
    assert {tuple(o) for o in offset.int().tolist()} <= {(x, y, x, y) for x in (0, 64) for y in (0, 64)}


def test_shuffled_keys_come_back_in_order_with_several_boxes_an_image():
    class Spy(torch.nn.Module):
        def forward(self, images, boxes, groups=1):
            from codo.losses import Embeddings

            each = boxes.shape[1] // len(images)
            owner = images[:, 0, 0, 0].repeat_interleave(each)
            return Embeddings(instance=torch.stack([owner, boxes[0, :, 0]], 1))

    images = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 3, 1, 1)
    boxes = torch.arange(8.0).view(1, 8, 1).expand(4, 8, 4)
    found = MomentumEncoder(Spy(), 0.9, 2)(images, boxes, torch.Generator().manual_seed(1)).instance
    assert found.tolist() == [[i // 2, i] for i in range(8)]


def test_a_mosaic_learns_and_is_fixed_by_its_seed(wide):
    def losses():
        run = run_of(wide())
        return [run.advance(batch).loss for batch in run.batches(2)]

    first = losses()
    assert first == losses()
    assert first != [run_of(wide(mosaic=1)).advance(b).loss for b in run_of(wide()).batches(1)]


def test_keys_are_normalised_in_other_company_than_their_queries(wide):
    """The second half of the batch is the other BN group of the first half's queries, and bears on their keys."""
    run = run_of(wide())
    views, seen = next(run.batches(1)).views, []
    for number in range(6):
        key = run.trainer._prepare(views, number)[-1]
        others = key._replace(images=torch.cat([key.images[:2], -key.images[2:]]))
        keys, changed = (run.trainer._keys(v, torch.Generator().manual_seed(number)).level for v in (key, others))
        seen.append(not torch.allclose(keys[:, :8], changed[:, :8], atol=1e-4))
    assert any(seen)


def test_sub_batches_change_nothing(wide):
    whole = run_of(wide())
    parts = run_of(wide(**{"optim.accumulate": 2}))
    batch = next(whole.batches(1))
    assert parts.advance(batch).loss == pytest.approx(whole.advance(batch).loss, rel=1e-5)
    for a, b in zip(whole.method.query_encoder.parameters(), parts.method.query_encoder.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"mosaic": 2}, "do not divide the batch of 4 in 2 BN groups"),
        ({**WIDE, "alignment": False}, "needs alignment"),
        ({**WIDE, "loss.image": 1.0}, "whole images of one sample"),
        ({**WIDE, "optim.batch_size": 8}, r"each of the 2 BN groups .* is one image of 2 x 2 .* optim.batch_size=16"),
    ],
)
def test_what_no_mosaic_can_be_made_of_is_refused(tiny, fields, words):
    with pytest.raises(CodoError, match=words):
        tiny(**fields)


def test_a_custom_loss_on_whole_images_is_refused(wide):
    config = wide()
    with pytest.raises(CodoError, match="mosaic"):
        Run(config, build_dataset(config, find_sources(config)), Parts(losses=[ImageLoss(negatives="batch")]))
