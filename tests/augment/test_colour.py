"""Colour on the composite: against torchvision's operations, and view by view."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.models import ResNet50_Weights
from torchvision.transforms.v2 import functional as F
from torchvision.transforms.v2 import functional as TF

from codo.augment import ColourJitter, ColourParameters, denormalise, finish_views
from codo.augment.colour import BRIGHTNESS, CONTRAST, SATURATION
from codo.augment.finish import _colour_all, _finish_all, gaussian_blur
from codo.augment.pixels import IMAGENET_MEAN, IMAGENET_STD


@pytest.fixture(scope="module")
def view() -> torch.Tensor:
    """A picture without extreme values, so that nothing is clamped on the way: `(1, 48, 48, 3)` uint8."""
    coarse = np.random.default_rng(0).integers(90, 160, (6, 6, 3), dtype=np.uint8)
    return torch.from_numpy(coarse).repeat_interleave(8, 0).repeat_interleave(8, 1)[None]


def parameters(factors=(1.0, 1.0, 1.0, 0.0), order=(0, 1, 2, 3), grey=False, sigma=0.0, flip=False):
    one = ColourParameters(
        torch.tensor(factors), torch.tensor(order), torch.tensor(grey), torch.tensor(sigma), torch.tensor(flip)
    )
    return ColourParameters.stack([one])


def test_nothing_drawn_is_normalisation_alone(view):
    out = finish_views(view, parameters())
    expected = (view[0].permute(2, 0, 1).float() / 255 - torch.tensor(IMAGENET_MEAN)[:, None, None]) / torch.tensor(
        IMAGENET_STD
    )[:, None, None]
    assert torch.allclose(out[0], expected, atol=1e-5)
    assert out.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("which", "value", "reference"),
    [
        (BRIGHTNESS, 1.3, F.adjust_brightness),
        (CONTRAST, 0.6, F.adjust_contrast),
        (CONTRAST, 1.2, F.adjust_contrast),
        (SATURATION, 0.5, F.adjust_saturation),
        (SATURATION, 1.4, F.adjust_saturation),
    ],
)
def test_each_operation_is_torchvisions(view, which, value, reference):
    factors = [1.0, 1.0, 1.0, 0.0]
    factors[which] = value
    ours = denormalise(finish_views(view, parameters(factors)))[0]
    theirs = reference(view[0].permute(2, 0, 1).float() / 255, value)
    assert torch.allclose(ours, theirs, atol=2e-3)


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (1, 2, 0, 3), (2, 0, 3, 1), (3, 1, 0, 2)])
def test_the_drawn_order_is_kept(view, order):
    factors = (1.2, 0.7, 1.3, 0.0)
    steps = [F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue]
    theirs = view[0].permute(2, 0, 1).float() / 255
    for i in order:
        theirs = steps[i](theirs, factors[i])
    ours = denormalise(finish_views(view, parameters(factors, order)))[0]
    assert torch.allclose(ours, theirs, atol=4e-3)


def test_hue_turns_the_way_torchvision_does(view):
    base = view[0].permute(2, 0, 1).float() / 255
    for turn in (-0.1, 0.05, 0.1):
        ours = denormalise(finish_views(view, parameters((1.0, 1.0, 1.0, turn))))[0]
        theirs = F.adjust_hue(base, turn)
        against = F.adjust_hue(base, -turn)
        assert (ours - theirs).abs().mean() < 0.35 * (ours - base).abs().mean() + 0.02
        assert (ours - theirs).abs().mean() < (ours - against).abs().mean()


def test_a_full_turn_of_hue_changes_nothing(view):
    full = finish_views(view, parameters((1.0, 1.0, 1.0, 1.0)))
    assert torch.allclose(full, finish_views(view, parameters()), atol=1e-4)


def test_grey_is_last_and_complete(view):
    out = denormalise(finish_views(view, parameters((1.1, 0.9, 1.4, 0.1), grey=True)))[0]
    assert torch.allclose(out[0], out[1], atol=1e-5)
    assert torch.allclose(out[1], out[2], atol=1e-5)


def test_blur_is_a_gaussian():
    impulse = torch.zeros(1, 3, 33, 33)
    impulse[:, :, 16, 16] = 1
    sigma = 1.7
    out = gaussian_blur(impulse, torch.tensor([sigma]))[0, 0]
    place = torch.arange(33.0) - 16
    line = torch.exp(-(place**2) / (2 * sigma**2))
    line = line / line.sum()
    assert torch.allclose(out, line[:, None] * line, atol=1e-6)
    flat = gaussian_blur(torch.ones(2, 3, 20, 20), torch.tensor([0.1, 2.0]))
    assert torch.allclose(flat, torch.ones(2, 3, 20, 20), atol=1e-5)


def test_flip_and_parameters_are_per_view(view):
    both = ColourParameters(*(torch.cat(c) for c in zip(parameters(), parameters(flip=True, sigma=1.0), strict=True)))
    out = finish_views(view.repeat(2, 1, 1, 1), both)
    assert torch.equal(out[0], finish_views(view, parameters())[0])
    assert torch.allclose(out[1], finish_views(view, parameters(sigma=1.0))[0].flip(2), atol=1e-5)


def test_the_draws_follow_moco_v2():
    rng = np.random.default_rng(0)
    drawn = ColourParameters.stack([ColourJitter()(rng) for _ in range(4000)])
    changed = (drawn.factors != torch.tensor([1.0, 1.0, 1.0, 0.0])).any(1)
    assert changed.float().mean() == pytest.approx(0.8, abs=0.02)
    assert drawn.grey.float().mean() == pytest.approx(0.2, abs=0.02)
    assert (drawn.sigma > 0).float().mean() == pytest.approx(0.5, abs=0.025)
    assert drawn.flip.float().mean() == pytest.approx(0.5, abs=0.025)
    used = drawn.factors[changed]
    assert used[:, :3].min() == pytest.approx(0.6, abs=0.01)
    assert used[:, :3].max() == pytest.approx(1.4, abs=0.01)
    assert used[:, 3].abs().max() == pytest.approx(0.1, abs=0.005)
    assert drawn.sigma[drawn.sigma > 0].mean() == pytest.approx(1.05, abs=0.05)
    assert len({tuple(o) for o in drawn.order.tolist()}) == 24


def test_a_factor_is_never_below_zero():
    rng = np.random.default_rng(0)
    drawn = np.array([ColourJitter(brightness=1.5, p=1)(rng).factors[0] for _ in range(2000)])
    assert drawn.min() == pytest.approx(0, abs=0.01)
    assert drawn.max() == pytest.approx(2.5, abs=0.01)
    assert drawn.mean() == pytest.approx(1.25, abs=0.05)


def test_a_switch_moves_no_other_number():
    a, b = (ColourJitter(**s)(np.random.default_rng(3)) for s in ({"p": 1.0}, {"p": 1.0, "grey_p": 0.0, "blur_p": 0.0}))
    assert torch.equal(a.factors, b.factors)
    assert torch.equal(a.order, b.order)
    assert torch.equal(a.flip, b.flip)


@pytest.fixture(scope="module")
def drawn() -> tuple[torch.Tensor, ColourParameters]:
    """Twelve noisy views of the whole range of values, each with its own draw."""
    rng = np.random.default_rng(5)
    coarse = torch.from_numpy(rng.integers(0, 256, (12, 16, 16, 3), dtype=np.uint8))
    views = coarse.repeat_interleave(3, 1).repeat_interleave(3, 2)
    return views, ColourParameters.stack([ColourJitter()(rng) for _ in range(12)])


def of_rows(parameters: ColourParameters, rows: list[int]) -> ColourParameters:
    return ColourParameters(*(column[rows] for column in parameters))


def test_a_processor_and_a_gpu_compute_the_same(drawn):
    views, colour = drawn
    one_by_one, all_at_once = finish_views(views, colour), _finish_all(colour, _colour_all(views, colour))
    # The kernel ends after three sigmas on a processor: on an edge from black to white that is .3 of 255 levels.
    assert (denormalise(one_by_one) - denormalise(all_at_once)).abs().max() < 0.3 / 255
    sharp = colour._replace(sigma=torch.zeros(12))
    assert torch.allclose(finish_views(views, sharp), _finish_all(sharp, _colour_all(views, sharp)), atol=1e-5)


@pytest.mark.parametrize("exact", [False, True])
def test_a_view_does_not_depend_on_those_beside_it(drawn, exact):
    views, colour = drawn
    together = finish_views(views, colour, exact=exact)
    for rows in ([0], [3, 8], [11, 5, 2, 7]):
        assert torch.allclose(finish_views(views[rows], of_rows(colour, rows), exact=exact), together[rows], atol=1e-5)
    assert len({int(r) for r in (3 * colour.sigma).ceil()}) > 3  # kernels of several sizes were beside each other


@pytest.mark.parametrize("sigma", [0.1, 2.0, 5.0, 40.0])
def test_the_blur_renormalises_at_the_border(sigma):
    views = torch.zeros(1, 48, 48, 3, dtype=torch.uint8)
    views[:, :, :20] = 255
    views[:, :7] = 90
    ours = denormalise(finish_views(views, parameters(sigma=sigma)))
    whole = gaussian_blur(views.permute(0, 3, 1, 2).float() / 255, torch.tensor([sigma]))
    assert (ours - whole).abs().max() < 0.004


def test_exact_colour_is_torchvisions_clamps_and_all(drawn):
    views, colour = drawn
    steps = [F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue]
    ours = finish_views(views, colour, exact=True)
    expected = []
    for i, view in enumerate(views):
        image = view.permute(2, 0, 1).float() / 255
        for which in colour.order[i].tolist():
            image = steps[which](image, float(colour.factors[i, which]))
        image = F.rgb_to_grayscale(image, 3) if colour.grey[i] else image
        if colour.sigma[i]:
            image = gaussian_blur(image[None], colour.sigma[i : i + 1])[0]
        expected.append(F.normalize(image.flip(2) if colour.flip[i] else image, IMAGENET_MEAN, IMAGENET_STD))
    assert torch.allclose(ours, torch.stack(expected), atol=1e-4)
    assert ours.is_contiguous(memory_format=torch.channels_last)
    assert (ours - finish_views(views, colour)).abs().mean() > 0.02  # what the affine map leaves out is not nothing


def test_grey_is_luma(view):
    out = denormalise(finish_views(view, parameters((1.1, 1.0, 1.0, 0.0), grey=True)))[0]
    base = TF.adjust_brightness(view[0].permute(2, 0, 1).float() / 255, 1.1)
    assert torch.allclose(out, TF.rgb_to_grayscale(base, 3), atol=2e-3)


def test_the_normalisation_is_imagenets():
    theirs = ResNet50_Weights.IMAGENET1K_V1.transforms()
    assert (list(IMAGENET_MEAN), list(IMAGENET_STD)) == (theirs.mean, theirs.std)


def test_each_strength_bounds_its_own_factor_on_both_sides():
    jitter = ColourJitter(brightness=0.1, contrast=0.2, saturation=0.3, hue=0.05, p=1, blur_p=1, blur_sigma=(3.0, 4.0))
    drawn = jitter.draw([np.random.default_rng(i) for i in range(3000)])
    assert drawn.factors.amin(0).tolist() == pytest.approx([0.9, 0.8, 0.7, -0.05], abs=2e-3)
    assert drawn.factors.amax(0).tolist() == pytest.approx([1.1, 1.2, 1.3, 0.05], abs=2e-3)
    assert (drawn.sigma.min(), drawn.sigma.max()) == pytest.approx((3, 4), abs=0.01)


def test_what_is_drawn_is_independent():
    drawn = ColourJitter(p=0.5).draw([np.random.default_rng(i) for i in range(4000)])
    changed = (drawn.factors != torch.tensor([1.0, 1.0, 1.0, 0.0])).any(1)
    switches = np.corrcoef(torch.stack([changed, drawn.grey, drawn.sigma > 0, drawn.flip]).float().numpy())
    factors = np.corrcoef(drawn.factors[changed].T.numpy())
    for found in (switches, factors):
        assert np.abs(found - np.eye(4)).max() < 0.1
