"""Runs that begin with given weights: what is filled, what is recorded, and what is refused."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import timm
import torch

from codo.errors import CodoError
from codo.jobs.pretrain import dry_run, pretrain, resume
from codo.jobs.pretrain.init import read_init, told
from codo.jobs.pretrain.method import Method
from codo.runs.record import RunFolder
from codo.runs.weights_file import read_weights, save_weights
from tests.jobs.pretrain.test_run import curve, stopped_run
from tests.parts import codo, tiny_config

GROUPS = ("backbone.body.", "backbone.fpn.", "box_head.")


@pytest.fixture(scope="module")
def first(tmp_path_factory, images):
    """A finished run to begin with."""
    return pretrain(tiny_config(images, seed=7), tmp_path_factory.mktemp("init") / "first").path


def other_network(folder) -> Path:
    """Write the weights of a network with other shapes under the same names."""
    torch.save(timm.create_model("resnet50").state_dict(), folder / "other.pth")
    return folder / "other.pth"


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
    assert all(own == of > 0 == spare for own, of, spare in environment["init"]["tensors"].values())
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
    other = pretrain(tiny(seed=8), tmp_path / "other").path
    shutil.copy(other / "weights.safetensors", file)
    with pytest.raises(CodoError, match="is not the file that the run began with"):
        resume(out)
    moved = tmp_path / "moved.safetensors"
    moved.write_bytes(kept)
    finished = resume(out, {"model.init": str(moved)})
    assert finished.summary["steps"] == 6
    with pytest.raises(CodoError, match=r"a resumed run keeps its config .model.init"):
        resume(out, {"model.init": str(file), "optim.epochs": 3})
    longer = resume(out, {"optim.epochs": 3})
    environment = json.loads((out / "environment.json").read_text())
    assert environment["init"]["sha256"] == environment["earlier"][0]["init"]["sha256"]
    assert longer.summary["fingerprint"] not in (finished.summary["fingerprint"], dry_run(tiny())["fingerprint"])


def test_a_backbone_of_timm_fills_the_backbone_alone(tiny, tmp_path):
    network = timm.create_model("resnet10t")
    torch.save(network.state_dict(), tmp_path / "resnet10t.pth")
    method = begun(tiny(model__init=str(tmp_path / "resnet10t.pth")))
    tensors = method.begun_as["tensors"]
    assert tensors["backbone"][0] == tensors["backbone"][1] > 50
    assert tensors["fpn"][0] == tensors["box_head"][0] == 0
    state = method.query_encoder.state_dict()
    assert torch.equal(state["backbone.body.conv1.0.weight"], network.state_dict()["conv1.0.weight"])
    at_random = Method(tiny()).query_encoder.state_dict()
    assert torch.equal(state["backbone.fpn.inner_blocks.0.0.weight"], at_random["backbone.fpn.inner_blocks.0.0.weight"])


def test_without_alignment_the_backbone_alone_is_filled(tiny, first):
    method = begun(tiny(model__init=str(first), alignment=False, hierarchy=False, background=False))
    assert list(method.begun_as["tensors"]) == ["backbone"]
    own, of, _ = method.begun_as["tensors"]["backbone"]
    assert own == of


def test_a_deeper_network_of_the_family_is_refused_or_said(tiny, tmp_path):
    """resnet34 has all that resnet18 has, of the same shapes, and more."""
    deeper, file = (
        pretrain(tiny(model__backbone="resnet34", optim__epochs=1), tmp_path / "deep").path,
        tmp_path / "r.pth",
    )
    with pytest.raises(CodoError, match=r"model.init: deep is of resnet34, and model.backbone is resnet18"):
        read_init(tiny(model__init=str(deeper), model__backbone="resnet18"))
    torch.save(timm.create_model("resnet34").state_dict(), file)
    method = begun(tiny(model__init=str(file), model__backbone="resnet18"))
    assert "the file has 80 of the backbone that have no place here: is it the same network?" in told(method.begun_as)


def test_other_widths_are_said_with_what_would_fit(tiny, first):
    method = begun(tiny(model__init=str(first), model__fpn_channels=24))
    said = told(method.begun_as)
    assert "the others begin at random" in said
    assert "more would fit with --set model.fpn_channels=16" in said
    own, of, _ = method.begun_as["tensors"]["backbone"]
    assert own == of


def test_weights_learnt_with_group_norm_are_refused(tiny, first, tmp_path):
    state, metadata = read_weights(first / "weights.safetensors")
    save_weights(tmp_path / "gn.safetensors", state, metadata | {"norm": "gn"})
    with pytest.raises(CodoError, match=r"model.init: gn.safetensors was learnt with GroupNorm"):
        read_init(tiny(model__init=str(tmp_path / "gn.safetensors")))


def test_what_no_loss_trains_is_not_called_random_where_it_was_filled(tiny, first, tmp_path):
    for name, init, said in (("none", None, "as it begins, at random"), ("init", str(first), "as it begins")):
        run = pretrain(tiny(model__init=init, loss__levels=[5], optim__epochs=1), tmp_path / name)
        assert run.summary["warnings"]["untrained"].endswith(said)


def test_names_that_would_steer_a_terminal_are_refused(tiny, tmp_path):
    torch.save(
        {f"x\x1b[31m.{n}": t for n, t in timm.create_model("resnet10t").state_dict().items()}, tmp_path / "x.pth"
    )
    with pytest.raises(CodoError, match=r"model.init: .*a tensor whose name is no plain text") as raised:
        read_init(tiny(model__init=str(tmp_path / "x.pth")))
    assert str(raised.value).isprintable()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path, first: path / "absent", "model.init: there is nothing at .*; name a run folder, a weights file$"),
        (lambda path, first: path, "model.init: .* has no weights.safetensors in it; is it a run folder?"),
        (lambda path, first: path / "bad.safetensors", "model.init: .*bad.safetensors"),
        (lambda path, first: first, "model.init: first is of resnet10t, and model.backbone is resnet18; set that"),
        (lambda path, first: other_network(path), "model.init: other.pth .* matches .* is architecture.backbone"),
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
