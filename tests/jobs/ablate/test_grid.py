"""The grid: designs, the equal budget, and the refusal of what would be no comparison, with the line."""

from __future__ import annotations

from pathlib import Path

import pytest

from codo.config import PretrainConfig
from codo.errors import CodoError
from codo.jobs.ablate.resolve import equal_epochs, load_grid
from codo.jobs.ablate.tuning import trials_of
from tests.conftest import REPOSITORY

HEAD = """\
title: T
design: {design}
base: {{preset: codo-small, views: 1, optim: {{epochs: 20}}}}
seeds: [0, 1]
transfer:
  tuned: {{fraction: 0.5, epochs: 3}}
"""


def grid(tmp_path: Path, design: str, body: str):
    (tmp_path / "grid.yaml").write_text(HEAD.format(design=design) + body)
    return load_grid(tmp_path / "grid.yaml")


def refused(tmp_path: Path, design: str, body: str) -> str:
    with pytest.raises(CodoError) as raised:
        grid(tmp_path, design, body)
    return str(raised.value).removeprefix(str(tmp_path / "grid.yaml"))


def test_one_at_a_time(tmp_path):
    found = grid(
        tmp_path,
        "one_at_a_time",
        "axes:\n  hierarchy: false\n  no paste: {background: false}\n  jitter: {mode: none}\n"
        "  views: {values: [2, 4]}\n  r: {field: jitter.ratio, values: [0.3]}\ninclude_none: true\n",
    )
    assert {row.name: row.changes for row in found.rows} == {
        "random": None,
        "full": {},
        "hierarchy": {"hierarchy": False},
        "no paste": {"background": False},
        "jitter": {"jitter.mode": "none"},
        "views=2": {"views": 2, "optim.epochs": 13},
        "views=4": {"views": 4, "optim.epochs": 8},
        "r=0.3": {"jitter.ratio": 0.3},
    }
    assert found.reference == "full"
    random, full = found.rows[:2]
    assert random.transfers["tuned"].weights == "none"
    assert random.transfers["tuned"].architecture == full.transfers["tuned"].architecture
    assert full.pretrain.jitter.ratio == 0.15
    assert [row.composites for row in found.rows[5:7]] == [39, 40], "of 40: within half an epoch"
    transfer = full.transfers["tuned"]
    assert (transfer.data.fraction, transfer.optim.epochs, transfer.optim.iterations) == (0.5, 3, None)
    assert {row.pretrain.run.threads for row in found.rows} == {transfer.run.threads} == {1}


def test_where_the_stage_loss_pools_the_box_what_shapes_it_is_an_axis(tmp_path):
    body = (
        "axes:\n  stage: {alignment: false, loss.stage: 1}\n  which: {loss.stage_levels: [4, 5]}\n"
        "  jitter: {jitter.ratio: 0.3}\n  pool: {model.roi_aligned: true}\n"
    )
    assert [row.name for row in grid(tmp_path, "ladder", body).rows][-4:] == ["stage", "which", "jitter", "pool"]


def test_ladder_adds_up(tmp_path):
    body = "axes:\n  + a: {loss.image: 0.5}\n  + b: {jitter: {ratio: 0.3}, paste.source: self}\nbase_row: start\n"
    found = grid(tmp_path, "ladder", body)
    assert [(row.name, row.changes) for row in found.rows] == [
        ("start", {}),
        ("+ a", {"loss.image": 0.5}),
        ("+ b", {"loss.image": 0.5, "jitter.ratio": 0.3, "paste.source": "self"}),
    ]
    assert found.rows[2].pretrain.paste.source == "self"
    assert found.reference == "start"


def test_factorial_has_all_combinations(tmp_path):
    body = "axes:\n  a: {loss.image: 0.5}\n  b: {paste.source: self}\n  c: {jitter.mode: anchor}\nreference: a + c\n"
    found = grid(tmp_path, "factorial", body)
    assert [row.name for row in found.rows] == ["none", "a", "b", "a + b", "c", "a + c", "b + c", "a + b + c"]
    assert len({tuple(row.plan.factors.values()) for row in found.rows}) == 8
    assert found.rows[5].plan.factors == {"a": True, "b": False, "c": True}
    assert found.rows[5].changes == {"loss.image": 0.5, "jitter.mode": "anchor"}
    assert found.reference == "a + c"


def test_rows_and_fields_of_the_transfer(tmp_path):
    body = "rows:\n  all: {}\n  none: {weights: none}\n  frozen: {transfer: {norm: frozen_bn}}\nreference: none\n"
    found = grid(tmp_path, "rows", body)
    assert found.rows[2].transfers["tuned"].norm == "frozen_bn"
    assert found.rows[2].pretrain == found.rows[0].pretrain
    assert found.rows[2].changes == {"transfer.norm": "frozen_bn"}
    assert found.rows[1].changes is None


def test_what_is_loaded_of_an_aligned_pretraining_is_an_axis(tmp_path):
    found = grid(tmp_path, "one_at_a_time", "axes:\n  backbone alone: {transfer.load: [backbone]}\n")
    assert [row.transfers["tuned"].load for row in found.rows] == [("backbone", "fpn", "box_head"), ("backbone",)]


@pytest.mark.parametrize(
    ("protocol", "steps", "warmup"),
    [
        ("{preset: 1x}", 90_000, 1000),
        ("{preset: 1x, batch_size: 8}", 180_000, 2000),
        ("{preset: 1x, batch_size: 8, optim: {iterations: 18000}}", 18_000, 2000),
        ("{preset: 1x, batch_size: 8, optim: {warmup_iterations: 50}}", 180_000, 50),
        ("{preset: 1x, batch_size: 8, epochs: 3}", None, 1000),
    ],
)
def test_a_schedule_scales_with_the_batch_as_that_of_codo_transfer(tmp_path, protocol, steps, warmup):
    body = "axes:\n  batch: {transfer.optim.batch_size: 32}\n"
    text = HEAD.format(design="ladder").replace("{fraction: 0.5, epochs: 3}", protocol) + body
    (tmp_path / "grid.yaml").write_text(text)
    base, large = load_grid(tmp_path / "grid.yaml").rows
    optim = base.transfers["tuned"].optim
    assert (optim.iterations, optim.warmup_iterations) == (steps, warmup)
    if protocol == "{preset: 1x}":
        assert large.transfers["tuned"].optim.iterations == 45_000


def test_how_images_are_decoded_is_free_under_equal_composites(tmp_path):
    found = grid(tmp_path, "one_at_a_time", "axes:\n  whole: {data.scaled_decode: false}\n")
    assert [row.pretrain.data.scaled_decode for row in found.rows] == [True, False]


def test_a_row_may_have_backgrounds_of_its_own_under_equal_composites(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = grid(tmp_path, "one_at_a_time", "axes:\n  others: {data.backgrounds: others}\n")
    assert [row.pretrain.data.backgrounds for row in found.rows][1] == str(tmp_path / "others")
    assert found.rows[0].pretrain.optim.epochs == found.rows[1].pretrain.optim.epochs


def test_the_crop_is_read_where_some_views_are_no_composites(tmp_path):
    found = grid(
        tmp_path,
        "ladder",
        "axes:\n  fewer: {paste.p: 0.5}\n  crop: {crop.area: [0.5, 1.0]}\n"
        "  all: {paste.p: 1.0, crop.area: [0.2, 1.0], paste.warmup_epochs: 3}\n  again: {crop.aspect: [0.5, 2.0]}\n",
    )
    assert [row.name for row in found.rows][1:] == ["fewer", "crop", "all", "again"]


def test_budget_of_equal_epochs(tmp_path):
    found = grid(tmp_path, "one_at_a_time", "budget: epochs\naxes:\n  views: 3\n  long: {optim.epochs: 30}\n")
    assert [row.pretrain.optim.epochs for row in found.rows] == [20, 20, 30]


@pytest.mark.parametrize(("base", "views", "epochs"), [((2, 20), 1, 30), ((1, 20), 2, 13), ((1, 1), 9, 1)])
def test_equal_epochs(base, views, epochs):
    config = PretrainConfig.model_validate({"views": base[0], "optim": {"epochs": base[1]}})
    assert equal_epochs(config, views) == epochs


@pytest.mark.parametrize(
    ("design", "body", "said"),
    [
        (
            "ladder",
            "axes:\n  jit: {jitter.ratoi: 0.1}\n",
            ":8: axes.jit.jitter.ratoi: there is no field 'jitter.ratoi'",
        ),
        ("ladder", "axes:\n  jit: {jitter.ratoi: 0.1}\n", "did you mean jitter.ratio?"),
        (
            "ladder",
            "axes:\n  views: 2\n  a:\n    jitter:\n      ratio: 3\n",
            ":11: axes.a.jitter.ratio: jitter.ratio = 3",
        ),
        ("ladder", "axes:\n  hierarchie: false\n", ":8: axes.hierarchie: there is no field"),
        ("ladder", "axes:\n  hierarchy: true\n", ":8: axes.hierarchy: changes nothing against 'baseline'"),
        (
            "ladder",
            "axes:\n  a: {hierarchy: false}\n  b: {hierarchy: false}\n",
            ":9: axes.b: changes nothing against 'a'",
        ),
        (
            "ladder",
            "axes:\n  a: {background: false}\n  b: {jitter.ratio: 0.3}\n",
            ":9: axes.b: changes nothing against 'a': background is off: the box is the canvas",
        ),
        (
            "ladder",
            "axes:\n  a: {background: false}\n  b: {paste: {p: 0.5, soft_edge: 0.2, background_crop: 0.5}}\n",
            ":9: axes.b: changes nothing against 'a': background is off",
        ),
        (
            "ladder",
            "axes:\n  a: {background: false}\n  b: {paste.warmup_epochs: 2}\n",
            ":9: axes.b: changes nothing against 'a': background is off",
        ),
        ("one_at_a_time", "axes:\n  s: {loss.stage_levels: [4]}\n", "the stage loss is off"),
        (
            "ladder",
            "axes:\n  a: {alignment: false}\n  b: {jitter.ratio: 0.3}\n",
            ":9: axes.b: changes nothing against 'a': alignment is off: no box is pooled",
        ),
        (
            "ladder",
            "axes:\n  a: {alignment: false, loss.stage: 1}\n  b: {model.roi_canonical_size: 50}\n",
            ":9: axes.b: changes nothing against 'a': alignment is off: no box is assigned a level",
        ),
        ("one_at_a_time", "axes:\n  crop: {crop.area: [0.5, 1.0]}\n", "background is on: views are pasted"),
        ("one_at_a_time", "axes:\n  a: {views: 2}\n  b: {views: 2}\n", ":9: axes.b: the rows 'a' and 'b' resolve to"),
        (
            "one_at_a_time",
            "axes:\n  a: {views: 2}\n  a: {views: 3}\n",
            ":9: axes.a: stands here twice, first in line 8",
        ),
        (
            "one_at_a_time",
            "axes:\n  views: 2\nreference: ful\n",
            ":9: reference: no row is called 'ful'; did you mean 'full'?",
        ),
        ("one_at_a_time", "axes:\n  long: {optim.epochs: 9}\n", ":8: axes.long.optim.epochs: optim.epochs is not free"),
        ("one_at_a_time", "axes:\n  b: {optim.batch_size: 8}\n", ":8: axes.b.optim.batch_size: optim.batch_size is"),
        ("one_at_a_time", "axes:\n  few: {data.limit: 9}\n", ":8: axes.few.data.limit: data.limit is not free"),
        ("one_at_a_time", "axes:\n  b: {data.backgrounds: 3}\n", ":8: axes.b.data.backgrounds: a path is expected"),
        (
            "one_at_a_time",
            "axes:\n  a:\n    jitter.ratio: 0.3\n    jitter: {ratio: 0.1}\n",
            ":10: axes.a.jitter.ratio: jitter.ratio stands here twice, first in line 9",
        ),
        (
            "one_at_a_time",
            "axes:\n  a:\n    transfer: {norm: bn}\n    transfer.norm: frozen_bn\n",
            ":10: axes.a.transfer.norm: norm stands here twice, first in line 9",
        ),
        ("one_at_a_time", "axes:\n  seed: 3\n", ":8: axes.seed: seed cannot vary"),
        ("one_at_a_time", "axes:\n  p: {run.precision: bf16}\n", "a row has the machine of all the others"),
        ("one_at_a_time", "axes:\n  t: {transfer.detectr: fcos}\n", "did you mean detector?"),
        ("one_at_a_time", "axes:\n  t: {transfer.detector: fcosx}\n", ":8: axes.t.transfer.detector: detector: one of"),
        (
            "one_at_a_time",
            "axes:\n  a: {alignment: false, loss.instance: 1}\n",
            ":8: axes.a.loss.instance: loss.instance",
        ),
        (
            "ladder",
            "axes:\n  a: {alignment: false}\n  b: {transfer.load: [backbone]}\n",
            ":9: axes.b: changes nothing against 'a': alignment is off: the backbone is all that is pretrained",
        ),
        ("one_at_a_time", "rows:\n  a: {views: 2}\n", "axes: the design `one_at_a_time` needs them"),
        ("one_at_a_time", "axis:\n  a: {views: 2}\n", ":7: axis: no such key; did you mean axes?"),
        ("factorial", "axes:\n  views: {values: [2, 3]}\n", "a factorial has axes that are on or off"),
        (
            "factorial",
            "axes:\n  a: {jitter: {ratio: 0.1}, views: 1}\n  b:\n    paste.p: 0.5\n    jitter.ratio: 0.3\n",
            ":11: axes.b.jitter.ratio: axis 'b' sets jitter.ratio to 0.3 and axis 'a', line 8, to 0.1: the row of both",
        ),
        ("rows", "rows:\n  a: {}\n", "reference: the design `rows` needs"),
        ("rows", "rows:\n  a: {}\n  b: {weights: some}\nreference: a\n", ":9: rows.b.weights: only `weights: none`"),
        ("ladder", "axes:\n  views: 2\nprobes: knn\n", ":9: probes: true, false, or a list of names"),
        ("ladder", "axes:\n  views: 2\nprobes: [1]\n", ":9: probes: true, false, or a list of names"),
        ("ladder", "  '': {}\naxes:\n  views: 2\n", ":7: transfer.: a name is empty"),
        ("ladder", f"  {'x' * 81}: {{}}\naxes:\n  views: 2\n", "x' is longer than 80 characters"),
        ("ladder", "axes:\n  views: 2\n3: x\n", ":9: 3: the name 3 is no text: YAML reads bare"),
        ("rows", "rows:\n  a: {}\nreference: a\nbase_row: b\n", ":10: base_row: under the design `rows` the base is"),
        (
            "ladder",
            "axes:\n  views: 2\ndata: {foregrounds: '${NOT_SET_X}/a'}\n",
            ":9: data.foregrounds: ${NOT_SET_X} is not set",
        ),
        ("ladder", "axes:\n  views: [2\n", ": not YAML"),
        ("ladder", "axes:\n  views: 2024-13-01\n", "is not YAML: month must be in 1..12"),
        ("ladder", "axes:\n  no: {views: 2}\n", ":7: axes: the name False is no text"),
        (
            "one_at_a_time",
            "axes:\n  q: {values: [1], field: [a]}\n",
            ":8: axes.q.field: the name of a field is expected",
        ),
        (
            "one_at_a_time",
            "axes:\n  t: {hierarchy: false, transfer.architecture.fpn_channels: 32}\n",
            "architecture cannot vary: it is the pretraining's `model`",
        ),
        ("one_at_a_time", "axes:\n  t: {transfer.data.val_json: easy.json}\n", "are measured on the same images, at"),
        ("one_at_a_time", "axes:\n  t: {transfer.optim.eval_every: 3}\n", "are measured on the same images, at"),
        (
            "one_at_a_time",
            "  half: {fraction: 0.25, data: nowhere}\naxes:\n  t: {transfer.data.fraction: 0.1}\n",
            ":9: axes.t.transfer.data.fraction: transfer.data.fraction cannot vary between rows: it is what the",
        ),
        ("one_at_a_time", "axes:\n  t: {transfer.run.precision: bf16}\n", "run cannot vary: a row has the machine"),
        (
            "ladder",
            "axes:\n  a: {alignment: false}\n  b: {model.projector_hidden: 50}\n",
            ":9: axes.b: changes nothing against 'a': alignment is off: there is no box head",
        ),
        ("ladder", "axes:\n  b: {loss.level_weights: [1, 1, 1, 1]}\n", "'baseline': these are the values already"),
        ("ladder", "axes:\n  a: {canvas: 128}\n  b: {model.roi_canonical_size: 112}\n", "these are the values already"),
        ("ladder", "axes:\n  b: {model.key_momentum_end: 0.99}\n", "'baseline': these are the values already"),
        (
            "ladder",
            "axes:\n  a: {transfer.load: [backbone, fpn]}\n  b: {transfer.load: [fpn, backbone]}\n",
            ":9: axes.b: changes nothing against 'a': these are the values already",
        ),
        ("ladder", "axes:\n  a: {colour.p: 0}\n  b: {colour.hue: 0.3}\n", "against 'a': colour.p is 0"),
        ("ladder", "axes:\n  a: {colour.blur_p: 0}\n  b: {colour.blur_sigma: [1, 2]}\n", "'a': colour.blur_p is 0"),
        ("ladder", "axes:\n  a: {jitter.p: 0}\n  b: {jitter.ratio: 0.3}\n", "against 'a': jitter.p is 0"),
        ("ladder", "axes:\n  a: {jitter.p: 0}\n  b: {jitter.levels: [5]}\n", "against 'a': jitter.p is 0"),
        (
            "ladder",
            "axes:\n  a: {hierarchy: false, loss.instance: 0, loss.image: 1}\n  b: {jitter.mode: anchor}\n",
            ":9: axes.b: changes nothing against 'a': no loss that is on pools a box",
        ),
        (
            "ladder",
            "axes:\n  a: {transfer.detector: fcos}\n  b: {transfer.detection.rpn_post_nms_test: 5}\n",
            ":9: axes.b: changes nothing against 'a': the detector has one stage: no RPN and no box head",
        ),
        (
            "ladder",
            "axes:\n  a: {optim.name: adamw, optim.lr: 0.001}\n  b: {optim.nesterov: false}\n",
            ":9: axes.b: changes nothing against 'a': optim.name is adamw",
        ),
    ],
)
def test_refused_with_the_line(tmp_path, design, body, said):
    assert said in refused(tmp_path, design, body)


def test_a_refusal_of_the_base_or_a_protocol_names_its_line(tmp_path):
    path = tmp_path / "grid.yaml"
    text = HEAD.format(design="ladder") + "axes:\n  views: 2\n"
    for before, after, said in (
        ("epochs: 20", "epochs: 0", ":3: base.optim.epochs: optim.epochs = 0"),
        ("codo-small", "codo-smal", ":3: base.preset: no preset 'codo-smal'"),
        ("fraction: 0.5", "fraction: 5", ":6: transfer.tuned.fraction: data.fraction = 5"),
        ("fraction: 0.5", "fractoin: 5", ":6: transfer.tuned.fractoin: there is no field"),
        ("fraction: 0.5", "fraction: 0.5, data.fraction: 0.4", ":6: transfer.tuned.fraction: data.fraction stands"),
        ("fraction: 0.5", "weights: x", ":6: transfer.tuned.weights: weights cannot vary"),
        ("seeds: [0, 1]", "seeds: [1, 1]", ":4: seeds: each once"),
        ("preset: codo-small", "config: 3", ":3: base.config: a path is expected, not 3"),
        ("preset: codo-small", "config: [a]", ":3: base.config: a path is expected, not ['a']"),
        ("preset: codo-small", "preset: [a]", ":3: base.preset: no preset ['a']; there are"),
        ("fraction: 0.5", "preset: [a]", ":6: transfer.tuned.preset: no preset ['a']; there are"),
        ("fraction: 0.5", "data: {root: 3}", ":6: transfer.tuned.data.root: a path is expected, not 3"),
        ("fraction: 0.5", "data: {train_json: [x]}", ":6: transfer.tuned.data.train_json: a path is expected"),
        ("base: {", "base: &b {model: *b, ", ":3: an alias of what it stands in itself"),
        ("base: {", "base: &b {<<: *b, ", ":3: an alias of what it stands in itself"),
        ("seeds: [0, 1]", "seeds: &s [0, *s]", ":4: an alias of what it stands in itself"),
        ("seeds: [0, 1]", "seeds: " + "[" * 5000, ": nested too deeply"),
    ):
        path.write_text(text.replace(before, after))
        with pytest.raises(CodoError) as raised:
            load_grid(path)
        assert str(path) + said in str(raised.value)


def test_two_transfers_that_are_the_same_are_refused(tmp_path):
    text = HEAD.format(design="ladder") + "  again: {epochs: 3, fraction: 0.5}\naxes:\n  views: 2\n"
    (tmp_path / "grid.yaml").write_text(text)
    with pytest.raises(CodoError, match=r"grid.yaml:\d+: transfer.again: the transfers 'tuned' and 'again' resolve to"):
        load_grid(tmp_path / "grid.yaml")


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("seeds: [0, 1]", "seeds: [true]", ": seeds.0: input should be a valid integer"),
        ("seeds: [0, 1]", "seeds: []", ": seeds: at least 1 in the list expected"),
        ("seeds: [0, 1]", "seeds: zero", ": seeds: a list is expected"),
        ("seeds: [0, 1]", "seeds: [0, 1]\nrepeats: true", ": repeats: input should be a valid integer"),
        (
            "seeds: [0, 1]",
            "seeds: [0, 1]\ntune: {field: optim.lr, factors: [2], seed: 9}",
            ": tune.factors: at least 2 in the list expected",
        ),
        ("  views: 2", "  '': 2", ": axes.: a name is empty"),
    ],
)
def test_a_value_of_another_kind_is_told_in_words_of_yaml(tmp_path, before, after, said):
    text = HEAD.format(design="ladder") + "axes:\n  views: 2\n"
    (tmp_path / "grid.yaml").write_text(text.replace(before, after))
    with pytest.raises(CodoError) as raised:
        load_grid(tmp_path / "grid.yaml")
    assert said in str(raised.value)


def test_transfers_whose_names_differ_by_a_blank_are_two(tmp_path):
    text = HEAD.format(design="ladder") + "  'tuned ': {epochs: 2}\naxes:\n  views: 2\n"
    (tmp_path / "grid.yaml").write_text(text)
    assert list(load_grid(tmp_path / "grid.yaml").file.transfer) == ["tuned", "tuned "]


def test_seeds_may_be_given(tmp_path):
    (tmp_path / "grid.yaml").write_text(HEAD.format(design="ladder") + "axes:\n  views: 2\n")
    assert load_grid(tmp_path / "grid.yaml", seeds=(7,)).file.seeds == (7,)
    for seeds, said in (
        ((-1,), r"seeds \[-1\]: input should be greater than or equal to 0"),
        ((0, 0, 1), r"seeds \[0, 0, 1\]: each once"),
        ((), r"seeds \[\]: at least 1 in the list expected"),
    ):
        with pytest.raises(CodoError, match=said):
            load_grid(tmp_path / "grid.yaml", seeds=seeds)


GRIDS = sorted((REPOSITORY / "experiments").glob("*/*.yaml"))


@pytest.mark.parametrize("path", GRIDS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_the_grids_of_the_repository_are_valid(path, monkeypatch):
    monkeypatch.setenv("CODO_DATA", "/absent")  # their data need not be here
    found = load_grid(path)
    assert len(found.rows) >= 2
    assert len(found.file.seeds) >= 3
    if found.file.tune is not None:
        assert len(trials_of(found).rows) >= 2 * len([row for row in found.rows if row.changes is not None])
    first = path.read_text().splitlines()[0]
    assert first.startswith("#")
    assert f"codo ablate {path.relative_to(REPOSITORY)}" in path.read_text(), "it begins with its command"
