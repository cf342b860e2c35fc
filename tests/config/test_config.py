"""Configs: precedence, refusals with a hint, round trip, and no dead field."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from codo.config import PRETRAIN_PRESETS, PretrainConfig, TransferConfig, dump_yaml, fingerprint
from codo.config import load_pretrain_config as load
from codo.config.explain import default_sources, diff, explain_preset
from codo.config.load import differences, read_yaml
from codo.errors import CodoError
from tests.parts import leaves, run_of


def test_precedence_is_preset_file_flags_set(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("preset: small\noptim: {lr: 0.5, epochs: 7, batch_size: 64}\n")
    config = load(file=file, flags={"optim.epochs": 8, "optim.batch_size": 128, "seed": None}, sets=["optim.epochs=9"])
    assert config.optim.lr == 0.5  # file over preset
    assert config.optim.batch_size == 128  # flag over file
    assert config.optim.epochs == 9  # --set over flag
    assert config.canvas == 96  # from the preset that the file names
    assert load(file=file, preset="codo").canvas == 256  # a flag's preset over the file's
    assert config.seed == 0


def test_yamls_bare_off_is_off():
    assert load(sets=["run.cache=off"]).run.cache == "off"


def test_level_weights_default_to_one_a_level():
    assert load(sets=["loss.levels=[3,4]"]).level_weights == (1.0, 1.0)


def test_the_default_preset_runs_when_nothing_is_named_and_a_file_stands_on_its_own(tmp_path):
    assert load().canvas == 96
    file = tmp_path / "c.yaml"
    file.write_text("seed: 3\n")
    assert load(file=file).canvas == 256


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        (["epochs=3"], "no field 'epochs'; did you mean optim.epochs"),
        (["loss.custom=[x]"], "= 'x': write module:Name or file.py:Name"),
        (["optim.epoch=3"], "did you mean optim.epochs"),
        (["hierachy=false"], "did you mean hierarchy"),
        (["optim.lr.x=1"], "no field 'optim.lr.x'"),
        (["optim.epochs=many"], "optim.epochs = 'many'"),
        (["optim.epochs=0"], "optim.epochs = 0"),
        (["jitter.mode=wild"], "'ratio', 'anchor' or 'none'"),
        (["views"], "write field=value"),
        (["views=["], "not YAML"),
        (["optim.lr=.nan"], "optim.lr"),
        (["canvas=100"], "multiple of 32"),
        (["loss.levels=[9]"], "2, 3, 4 or 5"),
        (["loss.levels=[3,2]", "loss.level_weights=[1,1]"], "ascending"),
        (["loss.stage=-1"], "loss.stage"),
        (["loss.stage_levels=[6]"], "2, 3, 4 or 5"),
        (["loss.stage_levels=[]"], "loss.stage_levels: one or more of 2, 3, 4, 5"),
        (["loss.stage_levels=[5,4]"], "loss.stage_levels: one or more of 2, 3, 4, 5, ascending"),
        (["loss.stage_levels=[5,5]"], "loss.stage_levels: one or more of 2, 3, 4, 5, ascending, each once"),
        (["loss.levels=[2,3]", "loss.level_weights=[1,1,1]"], "loss.level_weights: 3 weights for 2 levels"),
        (["loss.level_weights=[0,0,0,0]"], "loss.level_weights: every weight is 0, nothing would be learnt"),
        (["alignment=false", "loss.instance=1"], "needs alignment"),
        (["hierarchy=false", "loss.level=1"], "hierarchy is off"),
        (["optim.batch_size=30", "model.bn_groups=4"], "must divide the batch"),
        (["colour.blur_sigma=[2,1]"], "above the upper bound"),
        (["paste.crop_area=[0.2,1.5]"], "at most 1"),
        (["paste.patch_side=[128,300]"], "at most 256"),
        (["paste.soft_edge=0.6"], "paste.soft_edge = 0.6"),
        (["paste.p=1.5"], "paste.p = 1.5"),
        (["paste.p=0"], "paste.p: 0 pastes nothing; set background=false instead"),
        (["paste.warmup_epochs=-1"], "paste.warmup_epochs = -1"),
        (["optim.epochs=5", "paste.warmup_epochs=5"], "paste.warmup_epochs: 5 is not below optim.epochs"),
        (["optim.epochs=5", "optim.warmup_epochs=6.5"], "optim.warmup_epochs: 6.5 is not below optim.epochs"),
        (["paste.background_crop=0"], "paste.background_crop = 0"),
        (["paste.background_crop=1.1"], "paste.background_crop = 1.1"),
        (["paste.backgrounds_per_epoch=0"], "paste.backgrounds_per_epoch = 0"),
        (["paste.background_candidates=0"], "paste.background_candidates = 0"),
        (["run.threads=-1"], "run.threads"),
        (["paste=3"], "paste = 3"),
        (["optim.lr=2024-99-99"], "--set optim.lr=2024-99-99: the value is not YAML"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(sets, said):
    with pytest.raises(CodoError) as raised:
        load(sets=sets)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("optim: {learning_rate: 1}\n", "no field 'optim.learning_rate'"),
        ("optim: [1, 2\n", "not YAML"),
        ("- a\n- b\n", "holds a list"),
        ("preset: big\n", "there are codo, insloc"),
        ("preset: [a]\n", "there are codo, insloc"),
        ("!!python/object/apply:os.system ['true']\n", "not YAML"),
        ("views: 2024-99-99\n", "not YAML"),
        ("[" * 3000, "nested too deeply"),
        ("views: 2\nviews: 3\n", "'views' stands here twice"),
        ("optim: {lr: 1, lr: 2}\n", "'lr' stands here twice"),
        ("optim: {[1, 2]: 3}\n", "not YAML"),
    ],
)
def test_a_file_that_is_wrong_is_named(tmp_path, text, said):
    file = tmp_path / "c.yaml"
    file.write_text(text)
    with pytest.raises(CodoError, match=said.replace("[", r"\[")) as raised:
        load(file=file)
    assert "\n" not in str(raised.value)
    with pytest.raises(CodoError, match="cannot read"):
        load(file=tmp_path / "absent.yaml")


def test_what_is_no_section_is_refused_with_and_without_a_field_of_it(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("jitter: off\nloss: {negatives: batch}\n")
    for sets in ([], ["jitter.ratio=0.2"], ["loss.queue_size=8"]):
        with pytest.raises(CodoError, match=r"^config: jitter = False: a section of fields is expected \(in "):
            load(file=file, sets=sets)


def test_what_an_alias_brings_may_be_replaced(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("optim: &o {<<: {lr: 1.0, epochs: 9}, lr: 2.0}\n")
    assert (load(file=file).optim.lr, load(file=file).optim.epochs) == (2.0, 9)
    file.write_text("x: {y: &y {<<: {epochs: 9}, epochs: 8}}\noptim: {<<: *y, lr: 1.0}\n")
    assert read_yaml(file)["optim"] == {"epochs": 8, "lr": 1.0}


@pytest.mark.parametrize("preset", PRETRAIN_PRESETS)
def test_yaml_round_trip(tmp_path, preset):
    config = load(preset=preset, sets=["loss.image=0.3", "data.foregrounds=a b"])
    file = tmp_path / "c.yaml"
    file.write_text(dump_yaml(config))
    assert load(file=file) == config
    assert fingerprint(load(file=file)) == fingerprint(config)


def test_fingerprint_names_what_is_computed():
    base = load()
    assert fingerprint(base, "data") != fingerprint(base, "other data")
    assert fingerprint(base) != fingerprint(load(sets=["seed=1"]))
    assert fingerprint(base) == fingerprint(load(sets=["run.device=cpu", "run.workers=1", "data.foregrounds=x"]))
    assert fingerprint(base, "8 images") == fingerprint(load(sets=["data.limit=8"]), "8 images")
    assert fingerprint(base) != fingerprint(load(sets=["data.scaled_decode=false"]))


def test_differences_are_dotted():
    assert differences(load(), load(sets=["optim.lr=0.5", "seed=2"])) == {"seed": (0, 2), "optim.lr": (0.02, 0.5)}


def test_config_imports_no_torch():
    code = "import codo.config, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == 0


ROOT = Path(__file__).parents[2]

CHANGED = {
    "seed": 5,
    "background": False,
    "alignment": False,
    "hierarchy": False,
    "views": 2,
    "canvas": 96,
    "mosaic": 2,
    "data.limit": 8,
    "paste.source": "self",
    "paste.mix_probability": 0.0,
    "paste.crop_area": [0.9, 1.0],
    "paste.crop_aspect": [1.0, 1.1],
    "paste.patch_side": [40, 60],
    "paste.soft_edge": 0.3,
    "paste.p": 0.5,
    "paste.warmup_epochs": 1.0,
    "paste.background_crop": 0.3,
    "paste.backgrounds_per_epoch": 1,
    "paste.background_candidates": 3,
    "crop.area": [0.9, 1.0],
    "crop.aspect": [1.0, 1.1],
    "jitter.mode": "anchor",
    "jitter.ratio": 0.05,
    "jitter.p": 0.0,
    "jitter.min_iou": 0.95,
    "jitter.levels": [5],
    "colour.brightness": 0.0,
    "colour.contrast": 0.0,
    "colour.saturation": 0.0,
    "colour.hue": 0.0,
    "colour.p": 0.0,
    "colour.grey_p": 1.0,
    "colour.blur_p": 0.0,
    "colour.blur_sigma": [3.0, 4.0],
    "colour.flip_p": 0.0,
    "colour.exact": True,
    "model.backbone": "resnet14t",
    "model.fpn_channels": 24,
    "model.box_head_convs": 2,
    "model.box_head_channels": 24,
    "model.box_head_fc": 48,
    "model.projector_hidden": 48,
    "model.embedding": 24,
    "model.roi_sampling_ratio": 1,
    "model.roi_aligned": True,
    "model.roi_canonical_size": 10.0,
    "model.key_momentum": 0.5,
    "model.bn_groups": 1,
    "loss.image": 1.0,
    "loss.instance": 1.0,
    "loss.level": 0.5,
    "loss.levels": [3, 5],
    "loss.level_weights": [1.0, 2.0, 3.0, 4.0],
    "loss.temperature": 0.5,
    "loss.negatives": "queue",
    "loss.queue_size": 64,
    "loss.dense": 1.0,
    "loss.box": 1.0,
    "loss.stage": 1.0,
    "loss.cell": 1.0,
    "loss.stage_levels": [3, 5],
    "loss.form": "cosine",
    "loss.symmetric": True,
    "loss.predictor_hidden": 8,
    "model.projector_bn": True,
    "model.key_momentum_end": 1.0,
    "optim.name": "adamw",
    "optim.nesterov": False,
    "optim.schedule": "epoch",
    "optim.warmup_epochs": 1.0,
    "optim.clip_norm": 0.01,
    "optim.epochs": 3,
    "optim.batch_size": 6,
    "optim.lr": 0.9,
    "optim.momentum": 0.0,
    "optim.weight_decay": 0.5,
}
"""Field -> another value. Every field of the schema is here, or below with its own test."""

ELSEWHERE = {
    "data.foregrounds": "tests/jobs/pretrain/test_run.py",
    "data.backgrounds": "tests/jobs/pretrain/test_run.py",
    "data.scaled_decode": "tests/jobs/pretrain/test_options.py",
    "run.device": "tests/runs/test_hardware.py",
    "run.precision": "tests/runs/test_hardware.py",
    "run.workers": "tests/runs/test_hardware.py",
    "run.threads": "tests/runs/test_hardware.py",
    "run.cache": "tests/jobs/pretrain/test_run.py",
    "run.log_every": "tests/jobs/pretrain/test_run.py",
    "run.checkpoint_every": "tests/jobs/pretrain/test_run.py",
    "run.tensorboard": "tests/jobs/pretrain/test_run.py",
    "run.probe_every": "tests/jobs/probe/test_probe.py",
    "run.compile": "tests/jobs/pretrain/test_options.py",
    "optim.accumulate": "tests/jobs/pretrain/test_options.py",
    "augment": "tests/test_custom_parts.py",
    "jitter.custom": "tests/test_custom_parts.py",
    "loss.custom": "tests/test_custom_parts.py",
    "model.init": "tests/jobs/pretrain/test_init.py",
    "model.projector": "tests/test_custom_parts.py",
    "model.box_head": "tests/test_custom_parts.py",
}

WITH = {
    "mosaic": {"optim.batch_size": 8, "model.bn_groups": 1},
    "paste.mix_probability": {"paste.source": "mix"},
    "crop.area": {"background": False},
    "crop.aspect": {"background": False},
    "model.roi_canonical_size": {"hierarchy": False},
    "loss.levels": {"loss.level_weights": [1.0, 1.0]},
    "loss.stage_levels": {"loss.stage": 1.0},
    "optim.batch_size": {"model.bn_groups": 2},
    "loss.predictor_hidden": {"loss.form": "cosine"},
}
"""What a field needs beside it to matter; `loss.levels` is compared with two other levels."""


def test_every_field_is_listed_and_read_by_the_test_named():
    assert set(leaves(PretrainConfig)) == set(CHANGED) | set(ELSEWHERE)
    for field, file in ELSEWHERE.items():
        text = (ROOT / file).read_text(encoding="utf-8")
        assert field in text or field.rpartition(".")[2] in text, field


def test_every_field_says_where_its_default_comes_from():
    sources = default_sources()
    assert set(sources) == set(leaves(PretrainConfig))
    assert all(sources.values())


@pytest.mark.parametrize("name", PRETRAIN_PRESETS)
def test_a_preset_is_printed_as_a_config_that_gives_it_back(tmp_path, name):
    file = tmp_path / "printed.yaml"
    file.write_text(explain_preset(name))
    assert load(file=file) == load(preset=name)
    assert all(" # " in line or line.endswith(":") for line in file.read_text().splitlines()[2:])


def test_a_preset_names_the_source_of_what_it_changes():
    text = explain_preset("detco")
    assert "level_weights: [0.1, 0.4, 0.7, 1.0]  # DetCo, from memory of the paper *" in text
    assert "temperature: 0.2  # MoCo v2 / InsLoc\n" in text


def test_insloc_differs_from_codo_in_what_the_method_says(tmp_path):
    assert diff("insloc", "codo") == {
        "views": (1, 2),
        "paste.source": ("self", "downstream"),
        "jitter.mode": ("anchor", "ratio"),
        "jitter.levels": ([5], [2, 3, 4, 5]),
        "model.roi_sampling_ratio": (0, 2),
        "model.roi_aligned": (True, False),
    }
    (tmp_path / "config.yaml").write_text("preset: insloc\nseed: 3\n")
    assert diff(str(tmp_path), "insloc") == {"seed": (3, 0)}  # a run folder
    assert diff(str(tmp_path / "config.yaml"), "insloc") == {"seed": (3, 0)}
    with pytest.raises(CodoError, match="neither a preset"):
        diff("inslock", "codo")


def test_a_section_that_one_side_has_not_is_no_difference_by_itself():
    own = load(sets=["model.projector=my_parts:P"])
    assert differences(load(), own) == {"model.projector.path": (None, "my_parts:P")}


def test_transfers_are_compared_with_each_other_alone(tmp_path):
    run, file = tmp_path / "run", tmp_path / "mine.yaml"
    run.mkdir()
    (run / "config.yaml").write_text(dump_yaml(TransferConfig(freeze=("backbone",))))
    file.write_text("detector: retinanet\n")
    assert diff(str(run), str(file)) == {"freeze": (["backbone"], []), "detector": ("faster_rcnn", "retinanet")}
    for pair in ((str(run), "codo"), ("codo", str(run))):
        with pytest.raises(CodoError, match=r"run is of transfer and codo of pretraining: they share no settings"):
            diff(*pair)


@pytest.mark.parametrize("field", CHANGED)
def test_no_field_is_dead(tiny, field):
    def curve(**fields):
        run = run_of(tiny(**{"optim.lr": 0.3, **fields}))
        batches = run.batches(3)
        return [run.advance(next(batches)).loss for _ in range(3)]

    beside = WITH.get(field, {})
    base = beside if field != "loss.levels" else {"loss.levels": [2, 4], **beside}
    assert curve(**base) != curve(**{**beside, field: CHANGED[field]})


@pytest.mark.parametrize("field", ["data.foregrounds", "data.backgrounds"])
def test_an_empty_text_names_no_folder(field):
    with pytest.raises(CodoError, match=f"{field} = .*at least 1 character"):
        load(flags={field: ""})
