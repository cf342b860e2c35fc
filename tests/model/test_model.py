"""Encoders and the momentum encoder: what is embedded, where gradients go, in what company keys pass BN."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn
from torchvision.models.detection import fasterrcnn_resnet50_fpn_v2

from codo.backbones import Backbone
from codo.errors import CodoError
from codo.heads import MLPProjector, RoIPool, box_head
from codo.losses import Embeddings
from codo.model import AlignedEncoder, MomentumEncoder, StageEncoder, bn_in_groups, build_encoder

SIZES = {
    "make_box_head": partial(box_head, conv_channels=16, convs=2),
    "box_head_fc": 32,
    "projector_hidden": 32,
    "embedding": 8,
    "canonical_size": 56.0,
}
BOXES = torch.tensor([[4.0, 6, 60, 50], [0, 0, 64, 64], [20, 20, 40, 44], [1, 2, 30, 60]]).expand(4, 4, 4)


def build(alignment=True, embeds=("level",), **more):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build_encoder(Backbone("resnet10t", 16 if alignment else None), embeds=embeds, **(SIZES | more))


@pytest.fixture(scope="module")
def images():
    return torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("alignment", "embeds", "kind"),
    [
        (True, ("level",), AlignedEncoder),
        (True, ("instance",), AlignedEncoder),
        (True, ("image", "instance", "level"), AlignedEncoder),
        (False, ("image",), StageEncoder),
        (False, ("level",), StageEncoder),
        (False, ("image", "level"), StageEncoder),
        (True, ("dense", "level"), AlignedEncoder),
        (False, ("image", "dense"), StageEncoder),
        (True, ("stage",), AlignedEncoder),
        (True, ("level", "stage"), AlignedEncoder),
        (False, ("stage",), StageEncoder),
        (False, ("level", "stage"), StageEncoder),
    ],
)
def test_exactly_what_is_asked_for_is_embedded(images, alignment, embeds, kind):
    encoder = build(alignment, embeds)
    assert isinstance(encoder, kind)
    out = encoder(images, BOXES)
    shapes = {"image": (4, 8), "instance": (4, 8), "level": (4, 4, 8), "dense": (4, 4, 8), "stage": (1, 4, 8)}
    for name, shape in shapes.items():
        embedding = getattr(out, name)
        if name in embeds:
            assert tuple(embedding.shape) == shape
            assert embedding.dtype == torch.float32
        else:
            assert embedding is None


def test_without_alignment_there_is_no_pyramid_and_no_box_head():
    names = {key.split(".")[0] for key in build(False, ("level",)).state_dict()}
    assert names == {"backbone", "stage_projectors"}
    assert not any(key.startswith("backbone.fpn") for key in build(False, ("image",)).state_dict())
    with pytest.raises(CodoError, match="needs alignment"):
        build(False, ("instance",))


def test_cells_are_embedded_one_by_one_with_their_features_beside_them(images):
    encoder = build(False, ("dense",)).eval()
    with torch.no_grad():
        out, stage = encoder(images, BOXES), encoder.backbone.stages(images)[-1]
        cell = encoder.canvas.dense(stage[:, :, 1, 0])  # the third of 2 x 2
    assert torch.allclose(out.dense[2], cell, atol=1e-6)
    assert torch.equal(out.dense_features[2], stage[:, :, 1, 0])
    assert not out.dense_features.requires_grad


def test_a_users_own_projector_and_head_take_the_widths(images):
    asked = []

    def projector(*widths):
        asked.append(widths)
        return nn.Linear(widths[0], widths[2])

    def head(channels, fc):
        return nn.Sequential(nn.Flatten(), nn.Linear(channels * 49, fc))

    encoder = build(embeds=("image", "level"), make_projector=projector, make_box_head=head, pool=RoIPool(0, True))
    assert asked == [(32, 32, 8), (512, 512, 8)]
    assert tuple(encoder(images, BOXES).level.shape) == (4, 4, 8)


def test_the_box_head_is_by_default_torchvisions():
    theirs = fasterrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None).roi_heads.box_head.state_dict()
    ours = build_encoder(Backbone("resnet10t")).box_head.state_dict()
    assert {name: tensor.shape for name, tensor in ours.items()} == {k: v.shape for k, v in theirs.items()}


def test_levels_choose_the_pyramid_levels(images):
    every, two = build().eval(), build(levels=(3, 5)).eval()
    two.load_state_dict(every.state_dict())
    with torch.no_grad():
        assert torch.allclose(every(images, BOXES).level[[1, 3]], two(images, BOXES).level, atol=1e-6)


def test_each_level_pools_its_own_box(images):
    encoder = build().eval()
    moved = BOXES.clone()
    moved[3] = moved[3] * 0.5
    with torch.no_grad():
        a, b = encoder(images, BOXES).level, encoder(images, moved).level
    assert torch.allclose(a[:3], b[:3])
    assert not torch.allclose(a[3], b[3], atol=1e-3)


def test_the_instance_is_pooled_from_its_assigned_level(images):
    encoder = build(embeds=("instance", "level")).eval()
    with torch.no_grad():
        out = encoder(images, BOXES)
    # canonical 56: sides of 50, 64 and 22 and 41 pixels belong to P3, P4, P2, P3.
    rows = torch.tensor([1, 2, 0, 1])
    assert torch.allclose(out.instance, out.level[rows, torch.arange(4)], atol=1e-5)


def test_gradients_reach_every_parameter_that_transfers_and_none_of_the_key_encoder(images):
    encoder = build()
    for module in encoder.modules():  # timm begins with residual branches at zero, through which no gradient passes
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1)
    keys = MomentumEncoder(encoder, 0.9, 2)
    loss = (encoder(images, BOXES).level * keys(images, BOXES, torch.Generator()).level).sum()
    loss.backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
    assert all(p.grad is None and not p.requires_grad for p in keys.parameters())


def test_key_encoder_is_the_moving_average(images):
    encoder = build()
    keys = MomentumEncoder(encoder, 0.75)
    before = {n: p.clone() for n, p in keys.encoder.named_parameters()}
    with torch.no_grad():
        for p in encoder.parameters():
            p.add_(1.0)
    keys.update(encoder)
    for name, p in keys.encoder.named_parameters():
        assert torch.allclose(p, before[name] + 0.25, atol=1e-6), name


class NotingBN(nn.BatchNorm1d):
    """Notes which samples it normalises together."""

    def __init__(self) -> None:
        super().__init__(1)
        self.seen: list[list[float]] = []

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        self.seen.append(rows[:, 0].tolist())
        return rows


class Spy(nn.Module):
    """An encoder that only notes which samples pass through BN together."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = NotingBN()

    def forward(self, images: torch.Tensor, boxes: torch.Tensor, groups: int = 1) -> Embeddings:
        assert torch.equal(boxes[0, :, 0], images[:, 0, 0, 0]), "boxes must be shuffled along with their images"
        with bn_in_groups(self, groups):
            return Embeddings(image=self.norm(images[:, 0, 0]))


def test_keys_are_batched_for_bn_in_another_company_than_queries():
    size, groups = 8, 2
    tags = torch.arange(float(size))
    images, boxes = tags[:, None, None, None].expand(size, 1, 1, 2), tags[None, :, None].expand(4, size, 4)
    query = Spy()
    query(images, boxes, groups)
    differing, keys = 0, MomentumEncoder(Spy(), 0.9, groups)
    for step in range(50):
        keys.encoder.norm.seen.clear()
        out = keys(images, boxes, torch.Generator().manual_seed(step))
        assert torch.equal(out.image[:, 0], tags), "keys must come back in the order of their queries"
        assert sorted(tag for group in keys.encoder.norm.seen for tag in group) == tags.tolist()
        differing += {frozenset(g) for g in keys.encoder.norm.seen} != {frozenset(g) for g in query.norm.seen}
    assert query.norm.seen == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert differing >= 45  # one order in 35 keeps the company


@pytest.mark.parametrize(
    ("alignment", "embeds"),
    [(True, ("image", "instance", "level", "dense", "stage")), (False, ("image", "level", "dense", "stage"))],
)
def test_a_pass_in_groups_is_a_pass_for_each(images, alignment, embeds):
    more = {"make_projector": partial(MLPProjector, bn=True), "stage_levels": (3, 5)}
    whole, apart = build(alignment, embeds, **more), build(alignment, embeds, **more)
    together = whole(images, BOXES)
    whole.load_state_dict(apart.state_dict())
    found = whole(images, BOXES, 2)
    expected = Embeddings.concatenate([apart(images[rows], BOXES[:, rows]) for rows in (slice(0, 2), slice(2, 4))])
    for name in embeds:
        assert torch.allclose(getattr(found, name), getattr(expected, name), atol=1e-4), name
        assert not torch.allclose(getattr(together, name), getattr(expected, name), atol=1e-3), name
    # Running statistics and gradients too.
    for name, value in apart.state_dict().items():
        assert torch.allclose(whole.state_dict()[name].float(), value.float(), atol=1e-4), name
    gradients = []
    for encoder, out in ((whole, found), (apart, expected)):
        sum(getattr(out, name).square().mean() for name in embeds).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in encoder.parameters() if p.grad is not None]))
    mine, other = gradients
    # BN over two samples is steep: a rounding moves a ReLU. Rows mixed up would differ by the gradient itself.
    assert float((mine - other).norm()) < 0.05 * float(other.norm())
    assert torch.equal(whole.eval()(images, BOXES).image, whole(images, BOXES).image)


def test_one_group_leaves_the_order_alone():
    spy = MomentumEncoder(Spy(), 0.9, 1)
    tags = torch.arange(4.0)
    spy(tags[:, None, None, None].expand(4, 1, 1, 2), tags[None, :, None].expand(4, 4, 4), torch.Generator())
    assert spy.encoder.norm.seen == [tags.tolist()]


VIEWS = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def test_dense_features_have_no_gradient():
    assert not build(False, ("dense",)).train()(VIEWS, BOXES).dense_features.requires_grad


def test_without_alignment_levels_are_the_means_of_the_stages():
    encoder = build(False, ("level", "image")).eval()
    with torch.no_grad():
        out, stages = encoder(VIEWS, BOXES), encoder.backbone.stages(VIEWS)
        for row, k in enumerate("2345"):
            expected = encoder.stage_projectors[k](stages[row].mean((2, 3)))
            assert torch.allclose(out.level[row], expected, atol=1e-6)
        assert torch.allclose(out.image, encoder.canvas.image(stages[-1].mean((2, 3))), atol=1e-6)


def test_keys_pass_bn_in_as_many_groups_as_queries_in_an_order_of_the_generator():
    tags = torch.arange(8.0)
    shown, boxes = tags[:, None, None, None].expand(8, 1, 1, 2), tags[None, :, None].expand(4, 8, 4)
    seen = []
    for state in (0, 1):
        torch.manual_seed(state)
        keys = MomentumEncoder(Spy(), 0.9, 2)
        keys(shown, boxes, torch.Generator().manual_seed(5))
        seen.append(keys.encoder.norm.seen)
    assert [len(group) for group in seen[0]] == [4, 4]
    assert seen[0] == seen[1] != [[0, 1, 2, 3], [4, 5, 6, 7]]
