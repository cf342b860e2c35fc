"""The cell loss: cells of the pooled box with the part of the key's box that shows the same."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from codo.augment import CropView, PasteView, ViewSampler
from codo.backbones import Backbone
from codo.config import load_pretrain_config
from codo.errors import CodoError
from codo.losses import CellLoss, Embeddings
from codo.losses.cell import cell_overlaps, shown
from codo.model import build_encoder
from tests.model.test_model import build
from tests.parts import run_of

SIDE = 64


def rectangles(seed: int, *shape: int) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    low = torch.rand(*shape, 2, generator=rng) * 30
    return torch.cat([low, low + 10 + 20 * torch.rand(*shape, 2, generator=rng)], -1)


def shares_by_counting(query, key, cells: int, fine: int = 240) -> np.ndarray:
    """Scatter points over the cells of one grid and count where they fall in the other; edges may run backwards."""
    found = np.zeros((cells * cells, cells * cells))
    place = (np.arange(fine) + 0.5) / fine
    own = (place * cells).astype(int)
    there = []
    for axis in (0, 1):
        at = query[axis] + place * (query[axis + 2] - query[axis])
        share = (at - key[axis]) / (key[axis + 2] - key[axis])
        there.append(np.where((share >= 0) & (share < 1), np.floor(share * cells), -1).astype(int))
    for y in range(fine):
        for x in range(fine):
            if there[1][y] >= 0 and there[0][x] >= 0:
                found[own[y] * cells + own[x], there[1][y] * cells + there[0][x]] += 1
    return found / (fine / cells) ** 2


@pytest.mark.parametrize("mirrored", [False, True])
def test_overlaps_are_shares_of_area(mirrored):
    query, key = torch.tensor([3.0, 2, 23, 17]), torch.tensor([8.0, -4, 29, 14])
    if mirrored:
        key = key[[2, 1, 0, 3]]
    counted = shares_by_counting(query.tolist(), key.tolist(), 4)
    assert np.abs(cell_overlaps(query, key, 4).numpy() - counted).max() < 0.04
    assert counted.max() > 0.3
    assert counted.sum(1).min() == 0


def test_a_grid_over_itself_is_the_identity_and_mirrored_runs_backwards():
    grid = torch.tensor([2.0, 5, 9, 40])
    assert torch.allclose(cell_overlaps(grid, grid, 7), torch.eye(49), atol=1e-5)
    backwards = cell_overlaps(grid, grid[[2, 1, 0, 3]], 7).view(7, 7, 7, 7)
    for y in range(7):
        assert torch.allclose(backwards[y, :, y, :], torch.eye(7).flip(1), atol=1e-5)


@pytest.mark.parametrize("kind", ["paste", "crop"])
def test_sources_say_where_in_the_foreground_each_pixel_of_a_patch_is_from(kind):
    """Red rises from left to right and green from top to bottom: a patch's colours are its place in the foreground."""
    x, y = np.meshgrid(np.arange(240), np.arange(200))
    foreground = np.stack([x, y, np.zeros_like(x)], 2).astype(np.uint8)
    view = (
        PasteView(SIDE, lambda rng, epoch: np.full((SIDE, SIDE, 3), 255, np.uint8))
        if kind == "paste"
        else CropView(SIDE)
    )
    flipped = set()
    for seed in range(8):
        views = ViewSampler(view, queries=1)(foreground, lambda n, s=seed: np.random.default_rng([s, n]).spawn(2))
        for image, box, source, flip in zip(
            views.images, views.exact_boxes, views.sources, views.colour.flip, strict=True
        ):
            seen_image = (image.flip(1) if flip else image).float()
            x0, y0, x1, y1 = box.int().tolist()
            pixels = torch.tensor([[px, py, px + 1, py + 1] for px in range(x0, x1) for py in range(y0, y1)]).float()
            n = len(pixels)
            from_where = shown(pixels, box.expand(n, 4), source.expand(n, 4))
            centre = (from_where[:, :2] + from_where[:, 2:]) / 2 - 0.5
            colours = torch.stack([seen_image[py, px, :2] for px in range(x0, x1) for py in range(y0, y1)])
            inner = ((centre - centre.mean(0)).abs() < 0.4 * (centre.amax(0) - centre.amin(0))).all(1)
            assert (centre - colours)[inner].abs().max() < 2
            flipped.add(bool(flip))
    assert flipped == {False, True}


@pytest.mark.parametrize("t", [0.2, 0.5])
def test_the_loss_is_a_soft_cross_entropy_over_own_cells_and_those_in_the_same_place_of_others(t):
    levels, batch, side, width = 2, 3, 2, 5
    rng = torch.Generator().manual_seed(4)
    q, k = (torch.randn(levels * side**2, batch, width, generator=rng) for _ in range(2))
    boxes, exact = rectangles(0, levels, batch), rectangles(7, 1, batch)
    source_q, source_k = rectangles(11, 1, batch), rectangles(13, 1, batch)
    found = CellLoss(temperature=t)(
        Embeddings(cell=q, boxes=boxes, exact_boxes=exact, sources=source_q), Embeddings(cell=k, sources=source_k)
    )
    total = weight = 0.0
    unit = [e / np.linalg.norm(e, axis=-1, keepdims=True) for e in (q.numpy(), k.numpy())]
    for level in range(levels):
        for b in range(batch):
            ex, so = exact[0, b].numpy(), source_q[0, b].numpy()
            scale = (so[2:] - so[:2]) / (ex[2:] - ex[:2])
            grid = np.concatenate([so[:2] + (boxes[level, b].numpy()[i : i + 2] - ex[:2]) * scale for i in (0, 2)])
            shares = shares_by_counting(grid.tolist(), source_k[0, b].tolist(), side, fine=400)
            for i in range(side**2):
                row = level * side**2 + i
                own = [unit[0][row, b] @ unit[1][level * side**2 + j, b] / t for j in range(side**2)]
                others = [unit[0][row, b] @ unit[1][row, c] / t for c in range(batch) if c != b]
                log_sum = math.log(sum(math.exp(s) for s in (*own, *others)))
                total += sum(share * (log_sum - s) for share, s in zip(shares[i], own, strict=True))
                weight += shares[i].sum()
    assert float(found.loss) == pytest.approx(total / weight, rel=0.01)
    assert math.isnan(float(found.batch_accuracy))


def test_views_that_share_nothing_cost_nothing():
    cell = torch.randn(4, 2, 3, requires_grad=True)
    box = torch.tensor([[[0.0, 0, 8, 8]]]).expand(1, 2, 4)
    query = Embeddings(cell=cell, boxes=box, exact_boxes=box, sources=box)
    loss = CellLoss()(query, Embeddings(cell=cell.detach(), sources=box + 100)).loss
    loss.backward()
    assert loss.item() == 0
    assert float(cell.grad.abs().max()) == 0


@pytest.mark.parametrize("embeds", [("level",), ("instance",), ("level", "instance"), ()])
def test_the_encoder_embeds_every_cell_of_the_boxes_it_pools(embeds):
    encoder = build_encoder(Backbone("resnet10t", 16), embeds=(*embeds, "cell"), embedding=8, canonical_size=56)
    found = encoder.eval()(torch.randn(3, 3, 64, 64), rectangles(1, 4, 3))
    pooled = 4 * ("level" in embeds) + ("instance" in embeds or not embeds)
    assert found.boxes.shape == (pooled, 3, 4)
    assert found.cell.shape == (49 * pooled, 3, 8)


def test_a_cell_sees_what_lies_in_it():
    """A change of the image at the lower right of a box moves the embeddings of the cells there most."""
    encoder = build_encoder(Backbone("resnet10t", 16), embeds=("level", "cell"), levels=(2,), embedding=8).eval()
    image, box = torch.randn(2, 3, 64, 64), torch.tensor([8.0, 8, 56, 56]).expand(4, 2, 4)
    changed = image.clone()
    changed[0, :, 50:56, 50:56] += 5
    moved = (encoder(changed, box).cell - encoder(image, box).cell).norm(dim=2).detach()
    near, far = moved[:, 0].view(7, 7)[5:, 5:].mean(), moved[:, 0].view(7, 7)[:2, :2].mean()
    assert float(near) > 2 * float(far)
    assert float(moved[:, 1].max()) == 0


def test_it_leaves_all_other_numbers_as_they_are_but_for_its_gradient(tiny):
    beside, without = (run_of(tiny(**{"loss.cell": weight})) for weight in (1e-30, 0))
    theirs = dict(without.method.query_encoder.named_parameters())
    for name, value in beside.method.query_encoder.named_parameters():
        assert name.startswith("cell.") or torch.equal(value, theirs[name])
    terms = [run.advance(next(run.batches(1))).terms for run in (beside, without)]
    assert set(terms[0]) == {"level", "cell"}
    assert terms[0]["level"] == terms[1]["level"]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"mosaic": 2, "optim.batch_size": 8, "model.bn_groups": 1},
        {"background": False},
        {"hierarchy": False, "loss.instance": 0},
        {"loss.symmetric": True},
        {"optim.accumulate": 2},
    ],
    ids=lambda fields: ", ".join(fields) or "codo",
)
def test_training_lowers_it(tiny, fields):
    run = run_of(tiny(**{"optim.batch_size": 4, "optim.epochs": 12, "optim.lr": 8.0} | fields | {"loss.cell": 1}))
    views = next(run.batches(1)).views
    terms = [run.trainer.step(views, 1, run.schedule).terms["cell"] for _ in range(24)]
    assert terms[-1] < 0.95 * terms[0]


def test_sub_batches_change_nothing(tiny):
    fields = {"loss.cell": 1, "optim.batch_size": 8, "model.bn_groups": 4}
    results = [run_of(tiny(**fields, **{"optim.accumulate": n})) for n in (1, 2)]
    terms = [[run.advance(b).terms["cell"] for b in run.batches(3)] for run in results]
    assert terms[0] == pytest.approx(terms[1], rel=1e-4)


def test_in_a_mosaic_sources_stay_with_their_samples(tiny):
    """Laid out in a mosaic and taken back, what a patch shows is still that of its sample."""
    run = run_of(
        tiny(**{"loss.cell": 1, "mosaic": 2, "optim.batch_size": 8, "model.bn_groups": 1, "jitter.mode": "none"})
    )
    batch = next(run.batches(1))
    prepared = run.trainer._prepare(batch.views, 0)
    for v, view in enumerate(prepared):
        assert torch.equal(view.sources[0][view.rows], batch.views.sources[:, v])


def test_what_it_cannot_be_used_with_is_refused(tiny):
    with pytest.raises(CodoError, match=r"loss\.cell: needs alignment"):
        load_pretrain_config(flags={"alignment": False, "hierarchy": False, "loss.cell": 1.0})
    with pytest.raises(CodoError, match=r"loss\.cell: needs a box head"):
        build_encoder(
            Backbone("resnet10t", 16),
            embeds=("level", "cell"),
            make_box_head=lambda channels, fc: nn.Linear(channels, fc),
        )


def test_cells_lie_row_after_row_of_the_box():
    """A change at the upper RIGHT of a box moves the cells there, not those at the lower left."""
    encoder = build(embeds=("level", "cell"), levels=(2,)).eval()
    image, box = (
        torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)),
        torch.tensor([8.0, 8, 56, 56]).expand(4, 2, 4),
    )
    changed = image.clone()
    changed[0, :, 8:14, 50:56] += 5
    with torch.no_grad():
        moved = (encoder(changed, box).cell - encoder(image, box).cell).norm(dim=2)[:, 0].view(7, 7)
    assert float(moved[:2, 5:].mean()) > 2 * float(moved[5:, :2].mean())


def test_cells_come_box_after_box():
    boxes = torch.stack([rectangles(i, 4) for i in range(4)])
    image = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    every, one = build(embeds=("level", "cell")).eval(), build(embeds=("level", "cell"), levels=(4,)).eval()
    one.load_state_dict(every.state_dict())
    with torch.no_grad():
        assert torch.allclose(every(image, boxes).cell[98:147], one(image, boxes).cell, atol=1e-5)
