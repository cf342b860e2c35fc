"""Runs that begin with given weights: what is filled, what is recorded, and what is refused."""

from __future__ import annotations

import json
import re
import shutil

import pytest
import timm
import torch

from codo.errors import CodoError
from codo.jobs.pretrain import dry_run, pretrain, resume
from codo.jobs.pretrain.init import read_init
from codo.jobs.pretrain.method import Method
from codo.runs.record import RunFolder
from codo.runs.weights_file import read_weights
from tests.jobs.pretrain.test_run import curve, stopped_run
from tests.parts import codo, tiny_config

GROUPS = ("backbone.body.", "backbone.fpn.", "box_head.")


@pytest.fixture(scope="module")
def first(tmp_path_factory, images):
    """A finished run to begin with."""
    return pretrain(tiny_config(images, seed=7), tmp_path_factory.mktemp("init") / "first").path


def begun(config) -> Method:
    return Method(config, init=read_init(config))


def test_both_encoders_begin_as_the_run_and_the_projector_at_random(tiny, first):
    config = tiny(model__init=str(first))
    file, _ = read_weights(first / "weights.safetensors")
    with_init, at_random = begun(config), Method(tiny())
    for encoder in (with_init.query_encoder, with_init.key_encoder.encoder):
        state = encoder.state_dict()
        filled = [name for name in file if name.startswith(GROUPS) and not name.endswith("num_batches_tracked")]
        assert len(filled) > 60
        assert all(torch.equal(state[name], file[name]) for name in filled)
    projector = with_init.query_encoder.projector.state_dict()
    for name, weight in at_random.query_encoder.projector.state_dict().items():
        assert torch.equal(projector[name], weight)
        assert not torch.equal(projector[name], file[f"projector.{name}"]) or not weight.any()


def test_a_run_is_named_by_what_its_weights_are_and_not_by_where_they_lie(tiny, first, tmp_path, capsys):
    moved = shutil.copytree(first, tmp_path / "moved")
    here, there, none = (dry_run(tiny(model__init=place and str(place))) for place in (first, moved, None))
    assert here["fingerprint"] == there["fingerprint"] != none["fingerprint"]
    said = " ".join(capsys.readouterr().err.split())
    assert "model.init: first (codo" in said
    assert "the others begin at random" not in said
    assert said.count("model.init") == 2


def test_a_resumed_run_equals_one_that_was_never_stopped_without_the_file(tiny, first, tmp_path, monkeypatch):
    file = shutil.copy(first / "weights.safetensors", tmp_path / "start.safetensors")
    config = tiny(model__init=str(file))
    whole, out = pretrain(config, tmp_path / "whole"), tmp_path / "stopped"
    environment = json.loads((whole.path / "environment.json").read_text())
    assert environment["init"]["source"] == "start.safetensors"
    assert environment["init"]["run_fingerprint"] == RunFolder(first).environment()["fingerprint"]
    assert all(own == of > 0 for own, of in environment["init"]["tensors"].values())
    stopped_run(config, out, 3, monkeypatch)
    (tmp_path / "start.safetensors").unlink()
    resumed = resume(out)
    assert curve(out) == curve(whole.path)
    ours, theirs = (read_weights(path / "weights.safetensors")[0] for path in (out, whole.path))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert resumed.summary["fingerprint"] == whole.summary["fingerprint"]
    assert json.loads((out / "environment.json").read_text())["init"] == environment["init"]


def test_a_run_that_begins_again_wants_the_file_that_it_began_with(tiny, first, tmp_path, monkeypatch):
    file, out = tmp_path / "start.safetensors", tmp_path / "stopped"
    shutil.copy(first / "weights.safetensors", file)
    stopped_run(tiny(model__init=str(file)), out, 1, monkeypatch)
    (out / "checkpoint.pt").unlink()
    kept = file.read_bytes()
    torch.save(timm.create_model("resnet10t").state_dict(), file.with_suffix(".pth"))
    shutil.move(file.with_suffix(".pth"), file)
    with pytest.raises(CodoError):
        resume(out)
    other = pretrain(tiny(seed=8), tmp_path / "other").path
    shutil.copy(other / "weights.safetensors", file)
    with pytest.raises(CodoError, match="is not the file that the run began with"):
        resume(out)
    file.write_bytes(kept)
    assert resume(out).summary["steps"] == 6


def test_a_backbone_of_timm_fills_the_backbone_alone(tiny, tmp_path):
    network = timm.create_model("resnet10t")
    torch.save(network.state_dict(), tmp_path / "resnet10t.pth")
    method = begun(tiny(model__init=str(tmp_path / "resnet10t.pth")))
    own, of = method.coverage.shares()["backbone"]
    assert own == of > 50
    assert method.coverage.shares()["fpn"][0] == method.coverage.shares()["box_head"][0] == 0
    state = method.query_encoder.state_dict()
    assert torch.equal(state["backbone.body.conv1.0.weight"], network.state_dict()["conv1.0.weight"])
    at_random = Method(tiny()).query_encoder.state_dict()
    assert torch.equal(state["backbone.fpn.inner_blocks.0.0.weight"], at_random["backbone.fpn.inner_blocks.0.0.weight"])


def test_without_alignment_the_backbone_alone_is_filled(tiny, first):
    method = begun(tiny(model__init=str(first), alignment=False, hierarchy=False, background=False))
    assert list(method.coverage.shares()) == ["backbone"]
    own, of = method.coverage.shares()["backbone"]
    assert own == of


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path, first: path / "absent", "model.init: there is nothing at .*; name a run folder, a weights file"),
        (lambda path, first: path, "model.init: .* has no weights.safetensors in it; is it a run folder?"),
        (lambda path, first: path / "bad.safetensors", "model.init: .*bad.safetensors"),
        (lambda path, first: first, "model.init: first .* matches .* of the backbone's .*is it the same backbone"),
    ],
)
def test_weights_that_do_not_fit_are_refused_in_one_line(images, first, tmp_path, capsys, make, said):
    (tmp_path / "bad.safetensors").write_bytes(b"no weights")
    out = tmp_path / "out"
    folders = [f"--{name}={images / name}" for name in ("foregrounds", "backgrounds")]
    flags = ["--init", make(tmp_path, first), "--backbone", "resnet18", "--batch-size", "4", "--out", out]
    assert codo("pretrain", *folders, "--preset", "codo-small", *flags) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "model.init" in line]
    assert len(lines) == 1
    assert re.search(said, lines[0])
    assert not out.exists()
