"""The switches of the composites beyond the paper: off they change no byte, on they do what they say and no more."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from codo.augment import patch_size, random_crop
from codo.data.images import resize
from codo.jobs.pretrain.build import build_dataset, find_sources
from codo.jobs.pretrain.preview import preview, shown_epoch
from codo.runs.caching import cache_root
from codo.runs.seed import generators
from tests.parts import tiny_config

SIDE = 64


def dataset_of(config):
    return build_dataset(config, find_sources(config))


def views_of(config, epoch=0, samples=12):
    """Images `(N, V + 1, S, S, 3)`, exact and pooled boxes `(N, V + 1, 4)`."""
    dataset = dataset_of(config)
    views = [dataset[(epoch, i)].views for i in range(samples)]
    return [torch.stack(column) for column in list(zip(*views, strict=True))[:3]]


def is_crop(exact):
    return (exact == torch.tensor([0.0, 0.0, SIDE, SIDE])).all(-1)


def test_without_the_switches_a_view_is_insloc_s_composite_bit_for_bit(tiny):
    # Written out step by step, from the view's own generator: crop, patch, background, place; then the jitter.
    dataset = dataset_of(tiny(views=1, seed=4))
    assert dataset.sampler.view.soft_edge == 0
    for index in range(6):
        views = dataset[(3, index)].views
        for row, number in enumerate((1, 0)):
            rng, _ = generators(2, "view", 4, 3, index, number)
            foreground = dataset.foregrounds[index]
            box = random_crop(rng, foreground.shape[1], foreground.shape[0])
            width, height = patch_size(rng, box[2] - box[0], box[3] - box[1], SIDE)
            patch = resize(foreground, width, height, box)
            rng.random()  # which source
            backgrounds = dataset.sampler.view.background.downstream
            composite = backgrounds[int(rng.integers(len(backgrounds)))].copy()
            assert composite.shape == (SIDE, SIDE, 3)
            x, y = int(rng.integers(SIDE - width + 1)), int(rng.integers(SIDE - height + 1))
            composite[y : y + height, x : x + width] = patch
            assert (views.images[row].numpy() == composite).all()
            x0, x1 = (SIDE - x - width, SIDE - x) if views.colour.flip[row] else (x, x + width)
            assert views.exact_boxes[row].tolist() == [x0, y, x1, y + height]
            jittered = dataset.sampler.jitter(rng, views.exact_boxes[row].numpy().copy(), SIDE)
            assert (views.boxes[row].numpy() == jittered).all()


def test_a_soft_edge_moves_nothing(tiny):
    hard, soft = views_of(tiny()), views_of(tiny(**{"paste.soft_edge": 0.2}))
    assert torch.equal(hard[1], soft[1])
    assert torch.equal(hard[2], soft[2])
    assert not torch.equal(hard[0], soft[0])


@pytest.mark.parametrize("jitter", ["ratio", "anchor"])
def test_a_view_of_either_kind_is_the_one_that_all_would_be(tiny, jitter):
    fields = {"views": 3, "jitter.mode": jitter}
    mixed = views_of(tiny(**fields, **{"paste.p": 0.6}))
    pasted, cropped = views_of(tiny(**fields)), views_of(tiny(**fields, background=False))
    crop = is_crop(mixed[1])
    assert 0.2 < crop.float().mean() < 0.6
    assert (crop.any(1) & ~crop.all(1)).any()  # of one sample some are, some are not
    for some, composites, crops in zip(mixed, pasted, cropped, strict=True):
        assert torch.equal(some[crop], crops[crop])
        assert torch.equal(some[~crop], composites[~crop])
    assert torch.equal(mixed[1][crop], mixed[2][crop])  # the canvas is not jittered
    assert not torch.equal(mixed[1][~crop], mixed[2][~crop])


def test_the_share_is_p(tiny):
    view = dataset_of(tiny(**{"paste.p": 0.3})).sampler.view
    kinds = [view.choose(generators(1, "view", 0, 0, i, 0)[0], 0) is view.pasted for i in range(2000)]
    assert np.mean(kinds) == pytest.approx(0.3, abs=0.03)


class Shift:
    """A user's own jitter, named by its path below."""

    def __call__(self, rng, box, canvas):
        return box + np.float32(rng.random())


def test_a_jitter_of_the_user_s_own_has_the_canvas_too(tiny):
    named = {"jitter.custom": f"{__file__}:Shift"}
    mixed, cropped = views_of(tiny(**named, **{"paste.p": 0.5})), views_of(tiny(**named, background=False))
    crop = is_crop(mixed[1])
    assert (mixed[2][crop] != mixed[1][crop]).all()
    assert torch.equal(mixed[2][crop], cropped[2][crop])


def test_the_warm_up_goes_from_crops_to_composites_by_epochs(tiny):
    warming = tiny(**{"paste.warmup_epochs": 4, "paste.p": 0.8, "optim.epochs": 9})
    steady = tiny(**{"paste.p": 0.8, "optim.epochs": 9})
    view = dataset_of(warming).sampler.view
    assert [view.share(epoch) for epoch in range(6)] == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 0.8])
    first, second, last = (views_of(warming, epoch, 12) for epoch in (0, 1, 4))
    assert is_crop(first[1]).all()
    assert all(torch.equal(a, b) for a, b in zip(first, views_of(tiny(background=False)), strict=True))
    assert 0 < (~is_crop(second[1])).float().mean() < 0.5
    assert all(torch.equal(a, b) for a, b in zip(last, views_of(steady, 4), strict=True))
    full = views_of(tiny(**{"paste.warmup_epochs": 1.5, "optim.epochs": 9}), 2)
    assert all(torch.equal(a, b) for a, b in zip(full, views_of(tiny(), 2), strict=True))


def test_a_mixed_data_set_reaches_the_workers(tiny):
    config = tiny(**{"paste.p": 0.5, "paste.warmup_epochs": 1, "paste.background_crop": 0.5, "paste.soft_edge": 0.1})
    dataset = dataset_of(config)
    again = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(dataset[(1, 3)].views.images, again[(1, 3)].views.images)


@pytest.fixture
def large(tmp_path, monkeypatch):
    """Foregrounds and backgrounds of 300 x 200: red rises with x and green with y, foregrounds are blue too."""
    monkeypatch.setenv("CODO_CACHE", str(tmp_path / "cache"))
    y, x = np.mgrid[:200, :300]
    for name, blue in {"foregrounds": 200, "backgrounds": 0}.items():
        (tmp_path / name).mkdir()
        plane = np.stack([x * 255 // 299, y * 255 // 199, np.full_like(x, blue)], 2).astype(np.uint8)
        for i in range(4):
            Image.fromarray(plane).save(tmp_path / name / f"{i}.png")

    def config(**fields):
        return tiny_config(tmp_path, **fields)

    return config


def spans(background):
    """Shares of the image's width and height that a background covers."""
    red, green = (background[..., c].astype(float) / 255 for c in (0, 1))
    return np.ptp(red), np.ptp(green)


def test_a_background_is_a_crop_of_its_image(large):
    dataset = dataset_of(large(**{"paste.background_crop": 0.25}))
    background = dataset.sampler.view.background
    assert background.downstream[0].shape == (128, 192, 3)  # the short side is 64 / sqrt(.25), the aspect the image's
    drawn = [background(np.random.default_rng(i), 0) for i in range(300)]
    assert {d.shape for d in drawn} == {(SIDE, SIDE, 3)}
    assert all((d[..., 2] == 0).all() for d in drawn)
    width, height = np.array([spans(d) for d in drawn]).T
    area, aspect = width * height, width * 1.5 / height  # nothing but the pixels' grid between them and the draw
    assert area.min() == pytest.approx(0.25, abs=0.03)
    assert area.max() > 0.75
    assert area.std() > 0.1
    assert aspect.min() == pytest.approx(0.75, abs=0.05)
    assert aspect.max() == pytest.approx(1.33, abs=0.05)
    whole = spans(dataset_of(large()).sampler.view.background(np.random.default_rng(0), 0))
    assert whole == pytest.approx((1, 1), abs=0.02)


@pytest.mark.parametrize(("least", "pools"), [(0.25, 1), (0.1, 2)])
def test_foregrounds_as_backgrounds_are_kept_once_where_they_have_the_detail(large, least, pools):
    dataset = dataset_of(large(**{"paste.background_crop": least, "paste.source": "self"}))
    background = dataset.sampler.view.background
    drawn = [background(np.random.default_rng(i), 0) for i in range(40)]
    assert all(d.shape == (SIDE, SIDE, 3) and (d[..., 2] == 200).all() for d in drawn)
    assert min(width * height for width, height in map(spans, drawn)) < least + 0.2
    assert background.downstream is None
    assert background.own[0].shape[0] == (144 if pools == 1 else 200)  # 2.25 canvases; all that there is of 203
    assert len(list(cache_root().glob("images/*.pool"))) == pools
    mixed = dataset_of(large(**{"paste.background_crop": least, "paste.source": "mix"})).sampler.view.background
    assert {int(mixed(np.random.default_rng(i), 0)[0, 0, 2]) for i in range(20)} == {0, 200}


def test_an_epoch_has_so_many_backgrounds_and_the_next_one_others(tmp_path, monkeypatch):
    monkeypatch.setenv("CODO_CACHE", str(tmp_path / "cache"))
    for name in ("foregrounds", "backgrounds"):
        (tmp_path / name).mkdir()
        for i in range(40):
            Image.new("RGB", (SIDE, SIDE), (5 * i, 0, 0)).save(tmp_path / name / f"{i:02}.png")

    def drawn(epoch, **fields):
        background = dataset_of(tiny_config(tmp_path, **fields)).sampler.view.background
        return [int(background(np.random.default_rng(i), epoch)[0, 0, 0]) // 5 for i in range(400)]

    few = {"paste.backgrounds_per_epoch": 3}
    epochs = [set(drawn(epoch, **few)) for epoch in range(20)]
    assert {len(epoch) for epoch in epochs} == {3}
    assert len(set().union(*epochs)) > 25  # of 40; chance would have 31
    assert min(np.bincount(drawn(0, **few))[sorted(epochs[0])]) > 90  # of 400, evenly
    assert set(drawn(0, **few, seed=1)) != epochs[0]
    assert drawn(0) == drawn(1) == drawn(0, **{"paste.backgrounds_per_epoch": 40})
    assert len(set(drawn(0))) == 40


def test_all_views_of_an_epoch_have_its_backgrounds(tiny):
    views = {
        number: [views_of(tiny(**{"paste.backgrounds_per_epoch": number}), epoch, 12)[0] for epoch in (0, 0, 1)]
        for number in (1, 2)
    }
    for first, again, later in views.values():
        assert torch.equal(first, again)
        assert not torch.equal(first, later)
    assert not torch.equal(views[1][0], views[2][0])


def test_candidates_move_nothing_and_make_backgrounds_more_alike(tiny, tmp_path):
    images, *boxes = views_of(tiny())
    chosen, *same = views_of(tiny(**{"paste.background_candidates": 6}))
    assert all(torch.equal(a, b) for a, b in zip(boxes, same, strict=True))

    def distance(views, exact):
        """Mean over the views of what lies between the mean colours of patch and ground."""
        found = []
        for image, box in zip(views.flatten(0, 1), exact.flatten(0, 1), strict=True):
            x0, y0, x1, y1 = box.int().tolist()
            inside = torch.zeros(SIDE, SIDE, dtype=torch.bool)
            inside[y0:y1, x0:x1] = True
            pixels = image.float()
            found.append(torch.linalg.norm(pixels[inside].mean(0) - pixels[~inside].mean(0)))
        return torch.stack(found).mean()

    # The flip is drawn with the colour, and a composite is flipped with it: its box stands as after the flip.
    plain = {"colour.flip_p": 0.0}
    (any_, exact, _), (alike, _, _) = (
        views_of(tiny(**plain, **{"paste.background_candidates": number})) for number in (1, 6)
    )
    assert distance(alike, exact) < 0.8 * distance(any_, exact)
    assert not torch.equal(images, chosen)
    mixed = views_of(tiny(**{"paste.background_candidates": 6, "paste.p": 0.5}))
    crop = is_crop(mixed[1])
    assert torch.equal(mixed[0][~crop], chosen[~crop])
    assert preview(tiny(**{"paste.background_candidates": 6}), 4, tmp_path / "sheet.png") == 4


def test_preview_shows_which_views_have_no_background_and_the_epoch_after_the_warm_up(tiny, tmp_path):
    config = tiny(**{"views": 2, "paste.p": 0.5, "paste.warmup_epochs": 1.5, "optim.epochs": 4})
    assert (shown_epoch(config), shown_epoch(tiny())) == (2, 0)
    assert preview(config, 4, tmp_path / "sheet.png") == 4
    with Image.open(tmp_path / "sheet.png") as sheet:
        pixels = np.asarray(sheet.convert("RGB"))
    cells = [[pixels[36 + r * 200 :, 8 + c * 200 :][:192, :192] for c in range(7)] for r in range(4)]
    empty = [[(row[c] == row[c][0, 0]).all() for c in (1, 3, 5)] for row in cells]
    whole = [[row[c][0, 0].tolist() in ([255, 140, 26], [33, 208, 122]) for c in (2, 4, 6)] for row in cells]
    assert empty == whole  # a frame around the canvas
    assert {flag for row in empty for flag in row} == {True, False}
