"""Presets are the literature: InsLoc and MoCo v2 are settings of CoDo; each paper has its own samples and losses."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from codo.augment import AnchorJitter, box_iou
from codo.config import load_pretrain_config
from codo.config.presets import PRESETS
from codo.jobs.pretrain.build import build_dataset, find_sources
from codo.losses import CosineLoss, KeyQueue
from tests.parts import TINY, run_of, tiny_config

SMALL = [name for name in PRESETS if name.endswith("-small")]

TERMS = {
    "codo": {"level": 1.0},
    "insloc": {"level": 1.0},
    "moco_v2": {"image": 1.0},
    "detco": {"level": 1.0},
    "soco": {"instance": 1.0},
    "densecl": {"image": 0.5, "dense": 0.5},
}


def shrunk(images, preset: str, **fields):
    """The preset, with the sizes of a test; its method stays."""
    sizes = {key: value for key, value in TINY.items() if key not in ("views", "loss.negatives", "model.bn_groups")}
    sources = {"data.foregrounds": str(images / "foregrounds"), "data.backgrounds": str(images / "backgrounds")}
    groups = {"model.bn_groups": min(2, load_pretrain_config(preset=preset).model.bn_groups)}
    return load_pretrain_config(preset=preset, flags=sizes | sources | groups | fields)


def losses(config, steps: int = 2) -> list[float]:
    run = run_of(config)
    batches = run.batches(steps)
    return [run.advance(next(batches)).loss for _ in range(steps)]


@pytest.mark.parametrize("preset", ["codo", "insloc", "moco_v2"])
def test_the_recipe_of_the_full_scale_is_mocos(preset):
    config = load_pretrain_config(preset=preset)
    optim, loss, model = config.optim, config.loss, config.model
    assert (optim.name, optim.lr, optim.momentum, optim.weight_decay) == ("sgd", 0.03, 0.9, 1e-4)
    assert (optim.epochs, optim.batch_size) == (200, 256)
    assert (loss.queue_size, loss.temperature, loss.negatives) == (65536, 0.2, "queue")
    assert (model.key_momentum, model.embedding, model.backbone) == (0.999, 128, "resnet50")


def test_codo_with_own_backgrounds_anchor_jitter_on_p5_and_one_view_is_insloc(images):
    fields = {
        "views": 1,
        "paste.source": "self",
        "jitter.mode": "anchor",
        "jitter.levels": [5],
        "model.roi_sampling_ratio": 0,
        "model.roi_aligned": True,
    }
    assert load_pretrain_config(preset="codo", flags=fields) == load_pretrain_config(preset="insloc")
    assert losses(tiny_config(images, **fields)) == losses(
        load_pretrain_config(
            preset="insloc",
            flags=TINY
            | {"data.foregrounds": str(images / "foregrounds"), "data.backgrounds": str(images / "backgrounds")},
        )
    )


def test_all_three_switches_off_and_one_view_is_moco_v2():
    off = {"background": False, "alignment": False, "hierarchy": False, "views": 1, "canvas": 224}
    optimizer = {"optim.nesterov": False, "optim.schedule": "epoch"}
    assert load_pretrain_config(preset="codo", flags=off | optimizer) == load_pretrain_config(preset="moco_v2")


def test_inslocs_samples_follow_its_distributions(images):
    config = shrunk(images, "insloc", canvas=256)
    dataset = build_dataset(config, find_sources(config))
    exact, jittered, wide = [], [], []
    for epoch in range(20):
        for index in range(len(dataset)):
            views = dataset[(epoch, index)].views
            assert views.images.shape[0] == 2
            exact += views.exact_boxes.tolist()
            jittered.append(float(box_iou(views.boxes[:1].numpy(), views.exact_boxes[:1].numpy())[0, 0]))
            x0, y0, x1, y1 = views.boxes[0].tolist()
            wide.append(x0 < 0 or y0 < 0 or x1 > 256 or y1 > 256)
    boxes = np.array(exact)
    sides = boxes[:, 2:] - boxes[:, :2]
    root = np.sqrt(sides.prod(1))
    # What InsLoc's distributions give, within the spread that 480 views of 12 foregrounds leave.
    assert np.median(root) == pytest.approx(170, abs=8)
    assert (root**2).mean() / 256**2 == pytest.approx(0.45, abs=0.03)
    assert np.percentile(root, [5, 95]) == pytest.approx([129, 215], abs=9)
    assert np.median(sides[:, 0] / sides[:, 1]) == pytest.approx(1.19, abs=0.2)
    assert np.mean(jittered) == pytest.approx(0.55, abs=0.03)
    assert np.mean(wide) == pytest.approx(0.42, abs=0.12)
    assert isinstance(dataset.sampler.jitter, AnchorJitter)


def test_insloc_jitters_p5_alone_and_pastes_on_its_own_foregrounds(images):
    run = run_of(shrunk(images, "insloc"))
    seen = []
    run.trainer.encoder.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[1]))
    batch = next(run.batches(1))
    run.advance(batch)
    for level in range(3):
        assert torch.equal(seen[0][level], batch.views.exact_boxes[:, 0])
    assert torch.equal(seen[0][3], batch.views.boxes[:, 0])
    background = run.dataset.sampler.view.background
    assert background.downstream is None
    assert [p.name for p in background.own.pool.paths] == [p.name for p in run.dataset.foregrounds.paths]


def test_moco_v2s_crops_follow_its_distribution(images):
    config = shrunk(images, "moco_v2")
    dataset = build_dataset(config, find_sources(config))
    view = dataset.sampler.view
    assert (view.area, view.aspect) == ((0.2, 1.0), (0.75, pytest.approx(4 / 3)))
    views = dataset[(0, 0)].views
    assert views.exact_boxes.tolist() == [[0, 0, 64, 64]] * 2
    assert torch.equal(views.boxes, views.exact_boxes)


@pytest.mark.parametrize("preset", SMALL)
def test_each_small_preset_learns_what_its_paper_learns(images, preset):
    method = preset.removesuffix("-small")
    config = shrunk(images, preset)
    assert config.loss_weights == TERMS[method]
    run = run_of(config)
    result = run.advance(next(run.batches(1)))
    assert set(result.terms) == set(TERMS[method])
    assert math.isfinite(result.loss)
    assert result.loss == pytest.approx(
        sum(TERMS[method][name] * value for name, value in result.terms.items()), rel=1e-5
    )
    full = load_pretrain_config(preset=method)
    for switch in ("background", "alignment", "hierarchy", "views"):
        assert getattr(config, switch) == getattr(full, switch)


def test_detco_weighs_its_stages():
    config = load_pretrain_config(preset="detco")
    assert config.level_weights == (0.1, 0.4, 0.7, 1.0)
    assert (config.background, config.alignment, config.hierarchy) == (False, False, True)


def test_soco_is_byols_loss_in_both_directions(images):
    config = shrunk(images, "soco-small", **{"optim.lr": 1e-9})
    run = run_of(config)
    batch = next(run.batches(1))
    both = run.advance(batch).loss
    assert isinstance(run.method.losses["instance"], CosineLoss)
    assert not any(isinstance(module, KeyQueue) for module in run.method.modules())
    # By hand: at the start the key encoder is the query encoder.
    twin = run_of(config)
    views = twin.trainer._prepare(batch.views, 0)
    encoder, predictor = twin.method.query_encoder, twin.method.losses["instance"].predictor
    total = 0.0
    for query, key in [(0, 1), (1, 0)]:
        q = predictor(encoder(views[query].images, views[query].jittered).instance)
        k = encoder(views[key].images, views[key].exact).instance
        total += float((2 - 2 * torch.cosine_similarity(q, k)).mean().detach())
    assert both == pytest.approx(total, rel=1e-4)
    one = run_of(shrunk(images, "soco-small", **{"optim.lr": 1e-9, "loss.symmetric": False})).advance(batch).loss
    assert one != pytest.approx(both, rel=0.1)


def test_socos_key_momentum_rises_to_one(images):
    run = run_of(shrunk(images, "soco-small", **{"optim.epochs": 4}))
    momenta = []
    for batch in run.batches(run.steps):
        run.advance(batch)
        momenta.append(run.method.key_encoder.momentum)
    assert momenta[0] == 0.99
    assert all(a < b for a, b in itertools.pairwise(momenta))
    assert run.schedule.key_momentum(run.steps) == pytest.approx(1)
