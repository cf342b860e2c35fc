"""The stage loss: the box from backbone stages, before the pyramid."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torchvision.ops import roi_align

from codo.backbones import STRIDES
from codo.jobs.pretrain.method import Method
from codo.jobs.probe.features import embed, frozen, looks_at_the_box
from tests.parts import run_of

ALONE = {"hierarchy": False, "loss.instance": 0, "loss.stage": 1}
NO_FPN = {"alignment": False, "hierarchy": False, "loss.image": 0, "loss.stage": 1}
BOXES = torch.tensor([[4.0, 6, 60, 50], [-9, 0, 64, 64], [20, 20, 40, 44], [1, 2, 30, 60]])
IMAGES = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def losses(config, steps=2):
    run = run_of(config)
    batches = run.batches(steps)
    return [run.advance(next(batches)).loss for _ in range(steps)]


def own_boxes():
    """One box for each of P2-P5, all different."""
    return torch.stack([BOXES + shift for shift in range(4)])


@pytest.mark.parametrize("aligned", [True, False])
def test_each_stage_pools_the_box_of_its_level_and_has_a_projector_of_its_width(tiny, aligned):
    config = tiny(alignment=aligned, **{"loss.stage": 1, "loss.stage_levels": [3, 5]})
    encoder = Method(config).query_encoder
    with frozen(encoder):
        found, stages = encoder(IMAGES, own_boxes()).stage, encoder.backbone.stages(IMAGES)
        assert found.shape == (2, 4, 16)
        for row, k in enumerate((3, 5)):
            boxes = list(own_boxes()[k - 2][:, None])
            pooled = roi_align(stages[k - 2], boxes, 7, 1 / STRIDES[k - 2], 2, False)  # as the pool of the FPN is set
            projector = encoder.box_stages.projectors[str(k)]
            assert [layer.out_features for layer in projector.layers if isinstance(layer, nn.Linear)] == [
                stages[k - 2].shape[1],
                16,
            ]
            torch.testing.assert_close(found[row], projector(pooled.mean((2, 3))), rtol=1e-4, atol=1e-5)


def touched(encoder):
    return {name for name, p in encoder.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}


@pytest.mark.parametrize(("fields", "levels"), [(ALONE, (5,)), (ALONE, (2, 4)), (NO_FPN, (5,)), (NO_FPN, (2, 4))])
def test_alone_it_reaches_the_backbone_up_to_its_stages_and_neither_fpn_nor_box_head(tiny, fields, levels):
    encoder = Method(tiny(**fields, **{"loss.stage_levels": levels})).query_encoder
    for module in encoder.modules():  # timm begins with residual branches at zero, through which no gradient passes
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1)
    encoder(IMAGES, own_boxes()).stage.square().sum().backward()
    every = {name for name, _ in encoder.named_parameters()}
    deeper = {f"backbone.body.layer{k - 1}" for k in range(max(levels) + 1, 6)}
    others = ("backbone.fpn.", "box_head.", "projector.", *deeper)
    assert touched(encoder) == {name for name in every if not name.startswith(others)}
    assert any(name.startswith("backbone.body.layer1") for name in touched(encoder))


@pytest.mark.parametrize(
    "fields",
    [
        {"loss.stage": 1},
        {"loss.stage": 1, "loss.levels": [2, 3]},
        {**ALONE},
        {**NO_FPN},
        {**NO_FPN, "loss.stage_levels": [3]},
        {**NO_FPN, "loss.stage_levels": [3], "loss.image": 1},
        {**NO_FPN, "loss.stage_levels": [3], "loss.dense": 1},
        {"alignment": False, "loss.levels": [2, 3], "loss.stage": 1},
        {"alignment": False, "loss.levels": [2, 3], "loss.stage": 1, "loss.stage_levels": [4]},
        {"alignment": False, "hierarchy": False, "model.backbone": "hrnet_w18_small"},  # C5 has not all of its branches
    ],
)
def test_ddp_is_told_of_parameters_that_take_no_part(tiny, fields):
    method = Method(tiny(**fields))
    out = method.query_encoder(IMAGES, own_boxes())
    sum(e.sum() for name, e in out._asdict().items() if e is not None and name != "dense_features").backward()
    assert method.all_used == all(p.grad is not None for p in method.query_encoder.parameters())


@pytest.mark.parametrize("fields", [{}, {"alignment": False}, {"hierarchy": False}])
def test_beside_the_others_it_moves_none_of_their_weights_queues_and_numbers(tiny, fields):
    without, beside = (run_of(tiny(**fields, **{"loss.stage": weight})) for weight in (0, 0.5))
    state, more = without.method.state_dict(), beside.method.state_dict()
    assert all(torch.equal(more[name], tensor) for name, tensor in state.items())
    own = {name.partition("box_stages.")[2] or name for name in more.keys() - state.keys()}
    layers = {f"projectors.5.layers.{n}.{kind}" for n in (0, 2) for kind in ("weight", "bias")}
    assert own == layers | {"losses.stage.queues.0.keys", "losses.stage.queues.0.position"}
    batch = next(without.batches(1))
    alone, both = (run.advance(batch) for run in (without, beside))
    name = next(iter(alone.terms))
    assert both.terms[name] == alone.terms[name]
    assert both.loss == pytest.approx(alone.loss + 0.5 * both.terms["stage"], rel=1e-6)


def test_jitter_and_pooling_matter_as_soon_as_it_looks_at_the_box(tiny):
    base = losses(tiny(**NO_FPN))
    for field in ({"jitter.mode": "none"}, {"jitter.levels": [2, 3, 4]}, {"model.roi_aligned": True}):
        assert losses(tiny(**NO_FPN, **field)) != base, field
    # C5 pools the box of P5: what the other levels pool is nothing to it.
    assert losses(tiny(**NO_FPN, **{"jitter.levels": [5]})) == base


@pytest.mark.parametrize("fields", [{}, NO_FPN], ids=["aligned", "no-alignment"])
@pytest.mark.parametrize(
    "form",
    [
        {"loss.negatives": "queue", "loss.symmetric": True},
        {"loss.negatives": "batch", "model.bn_groups": 1},
        {"loss.form": "cosine", "loss.symmetric": True, "model.projector_bn": True},
    ],
    ids=["queue", "batch", "cosine"],
)
def test_it_learns_in_every_form(tiny, fields, form):
    run = run_of(tiny(**fields | form | {"loss.stage": 1, "loss.stage_levels": [4, 5], "optim.lr": 0.2}))
    learns = {"encoder": run.method.query_encoder.box_stages, "loss": run.method.losses["stage"]}
    before = {part: {n: t.clone() for n, t in module.state_dict().items()} for part, module in learns.items()}
    batches = run.batches(2)
    assert all(math.isfinite(run.advance(next(batches)).terms["stage"]) for _ in range(2))
    moved = {
        f"{part}.{name}"
        for part, module in learns.items()
        for name, tensor in module.state_dict().items()
        if not torch.equal(tensor, before[part][name])
    }
    last = 3 if form.get("model.projector_bn") else 2
    assert moved >= {f"encoder.projectors.{k}.layers.{n}.weight" for k in (4, 5) for n in (0, last)}
    own = {"queue": {"queues.0.keys", "queues.1.keys"}, "batch": set()}
    assert moved >= {f"loss.{n}" for n in own.get(form.get("loss.negatives"), {"predictor.layers.0.weight"})}


@pytest.mark.parametrize("fields", [{}, NO_FPN], ids=["aligned", "no-alignment"])
def test_accumulation_changes_no_number(tiny, fields):
    given = fields | {"optim.batch_size": 8, "model.bn_groups": 4, "model.projector_bn": True, "optim.lr": 0.5}
    given |= {"loss.stage": 1, "loss.stage_levels": [3, 5]}
    results = []
    for parts in (1, 4):
        run = run_of(tiny(**given, **{"optim.accumulate": parts}))
        results.append(run.advance(next(run.batches(1))))
    whole, parts = results
    assert parts.terms["stage"] == pytest.approx(whole.terms["stage"], rel=1e-6)
    assert parts.gradient_norm == pytest.approx(whole.gradient_norm, rel=1e-4)


def test_the_probed_embedding_is_of_the_box_and_of_the_deepest_stage(tiny):
    encoder = Method(tiny(**NO_FPN, **{"loss.stage_levels": [3, 4]})).query_encoder
    owners = torch.tensor([0, 0, 3])
    with frozen(encoder):
        found = embed(encoder, IMAGES, BOXES[:3], owners, ["embedding"])["embedding"]
        expected = encoder(IMAGES[owners], BOXES[:3].expand(4, 3, 4)).stage[1]
    torch.testing.assert_close(found, expected)
    assert looks_at_the_box(encoder, "embedding")
    assert not looks_at_the_box(Method(tiny(alignment=False)).query_encoder, "embedding")
    # Behind a box head it remains the box head's, as without the stage loss.
    aligned = Method(tiny(**{"loss.stage": 1})).query_encoder
    with frozen(aligned):
        both = embed(aligned, IMAGES, BOXES[:3], owners, ["box_head", "embedding"])
        torch.testing.assert_close(both["embedding"], aligned.projector(both["box_head"]))


def test_several_boxes_on_an_image_are_embedded_one_by_one(tiny):
    encoder = Method(tiny(**NO_FPN)).query_encoder
    with frozen(encoder):
        found = encoder(IMAGES[:2], own_boxes()).stage
        expected = encoder(IMAGES[[0, 0, 1, 1]], own_boxes()).stage
    torch.testing.assert_close(found, expected)
