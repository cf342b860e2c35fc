"""The probe: what is frozen stays as it is, and features that were kept are the ones that would be computed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_transfer_run import metrics, stop_after, weights

from codo.config.transfer import GROUPS, TransferConfig
from codo.errors import CodoError, Interrupted
from codo.jobs.transfer import caching, resume, transfer
from codo.jobs.transfer.data import load_data
from codo.jobs.transfer.features import Features
from codo.jobs.transfer.run import load_detector
from codo.runs.weights_file import read_weights

Make = Callable[..., TransferConfig]
UNCACHED = {"device": "cpu", "precision": "fp32", "workers": 0, "threads": 1, "log_every": 1, "feature_cache": 0}


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in metrics(run) if "loss" in line]


@pytest.mark.parametrize("detector", ["faster_rcnn", "mask_rcnn", "retinanet", "fcos"])
def test_kept_features_give_the_losses_and_the_ap_of_computed_ones(
    detector: str, make_config: Make, pretrained: Path, coco_root: Path, tmp_path: Path
) -> None:
    """Images of two shapes in a batch, mirrored ones, an evaluation in between; and what is frozen does not move."""
    root = tmp_path / "data"
    if detector == "mask_rcnn":
        shutil.copytree(coco_root, root)
        for file in root.glob("*.json"):
            content = json.loads(file.read_text())
            for a in content["annotations"]:
                x, y, w, h = a["bbox"]
                a["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
            file.write_text(json.dumps(content))
    data = {"root": str(root)} if root.exists() else {}
    probe: dict[str, Any] = {"detector": detector, "weights": str(pretrained), "freeze": GROUPS, "data": data}
    kept = transfer(make_config(**probe), tmp_path / "kept")
    computed = transfer(make_config(**probe, run=UNCACHED), tmp_path / "computed")
    assert kept.summary["features"]["cached"]
    assert kept.summary["features"]["gib"] > 0
    assert computed.summary["features"] | {"seconds": 0} == {
        "cached": False, "reason": "run.feature_cache is 0", "gib": 0.0, "seconds": 0
    }  # fmt: skip
    assert losses(kept.path) == pytest.approx(losses(computed.path), rel=1e-5)
    for mine, other in zip(kept.summary["curve"], computed.summary["curve"], strict=True):
        assert mine["AP"] == pytest.approx(other["AP"], abs=0.01)
    assert kept.summary["fingerprint"] == computed.summary["fingerprint"]
    assert kept.summary["protocol"] == "probe"
    began, ended = read_weights(pretrained / "weights.safetensors")[0], weights(kept.path)
    moved = {
        name: not torch.equal(tensor, began[name.removeprefix("roi_heads.")])
        for name, tensor in ended.items()
        if name.removeprefix("roi_heads.") in began
    }
    assert len(moved) > 50
    assert not any(moved.values())  # weights, scale and shift, statistics
    trained = [name for name in ended if name.endswith(("cls_logits.weight", "p6.weight"))]
    start = load_detector(make_config(**probe), load_data(make_config(**probe)))[0].state_dict()
    assert trained
    assert all(not torch.equal(ended[name], start[name]) for name in trained)


def test_a_batch_of_one_shape_is_what_torchvision_computes(make_config: Make, pretrained: Path, tmp_path: Path) -> None:
    """The frozen trunk sees images one by one; without padding between them that changes nothing."""
    sizes = {"min_size": [96], "max_size": 96}
    probe = {"weights": str(pretrained), "freeze": GROUPS, "detection": sizes, "optim": {"epochs": 1, "batch_size": 1}}
    ours = transfer(make_config(**probe, run=UNCACHED), tmp_path / "ours")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(caching, "is_frozen_trunk", lambda *_: False)
        plain = transfer(make_config(**probe), tmp_path / "plain")
    assert plain.summary["features"] is None
    assert losses(ours.path) == pytest.approx(losses(plain.path), rel=1e-5)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"detection": {"min_size": [48, 64]}}, "several short sides"),
        ({"run": {**UNCACHED, "feature_cache": 1e-5}}, r"run.feature_cache allows 1e-05"),
    ],
)
def test_what_is_not_kept_is_said_beforehand(
    fields: dict[str, Any], said: str, make_config: Make, pretrained: Path, tmp_path: Path
) -> None:
    told: list[str | None] = []
    config = make_config(weights=str(pretrained), freeze=GROUPS, optim={"epochs": 1}, **fields)
    result = transfer(config, tmp_path / "run", lambda start: told.append(start.features))
    assert said in str(told[0])
    assert "not kept" in str(told[0])
    assert said in result.summary["features"]["reason"]


def test_the_size_is_foretold(make_config: Make, pretrained: Path, tmp_path: Path) -> None:
    told: list[str | None] = []
    config = make_config(weights=str(pretrained), freeze=GROUPS, optim={"epochs": 1})
    result = transfer(config, tmp_path / "run", lambda start: told.append(start.features))
    assert f"kept, {result.summary['features']['gib']:.2f} GiB" in str(told[0])


def test_the_disk_bounds_what_is_kept(
    make_config: Make, pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caching, "_free", lambda: 1000)
    config = make_config(weights=str(pretrained), freeze=GROUPS, optim={"epochs": 1})
    assert "are free in" in transfer(config, tmp_path / "run").summary["features"]["reason"]


def test_a_stopped_probe_ends_as_if_it_had_not_been(
    make_config: Make, pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(weights=str(pretrained), freeze=GROUPS)
    whole = transfer(config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(Interrupted):
            transfer(config, tmp_path / "stopped")
    result = resume(tmp_path / "stopped")
    for name, tensor in weights(whole.path).items():
        assert torch.equal(weights(result.path)[name], tensor), name
    assert metrics(result.path) == metrics(whole.path)


def test_broken_images_are_replaced_and_left_out_as_without_a_cache(
    make_config: Make, pretrained: Path, coco_root: Path, tmp_path: Path
) -> None:
    shutil.copytree(coco_root, tmp_path / "squares")
    for name in ("train_1.png", "val_2.png"):
        (tmp_path / "squares" / "images" / name).write_bytes(b"no picture")
    probe = {"weights": str(pretrained), "freeze": GROUPS, "data": {"root": str(tmp_path / "squares")}}
    kept, computed = (
        transfer(make_config(**probe, **more), tmp_path / name)
        for name, more in (("kept", {}), ("computed", {"run": UNCACHED}))
    )
    assert kept.summary["unreadable_images"] == computed.summary["unreadable_images"] == {
        "train": 1, "val": ["val_2.png"]
    }  # fmt: skip
    assert losses(kept.path) == pytest.approx(losses(computed.path), rel=1e-5)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_features_are_kept_in_the_precision_they_are_computed_in(
    precision: str, make_config: Make, pretrained: Path, tmp_path: Path
) -> None:
    run = {**UNCACHED, "precision": precision}
    probe = {"weights": str(pretrained), "freeze": GROUPS, "optim": {"epochs": 1}}
    kept = transfer(make_config(**probe, run={**run, "feature_cache": 8}), tmp_path / "kept")
    computed = transfer(make_config(**probe, run=run), tmp_path / "computed")
    assert kept.summary["features"]["cached"]
    assert losses(kept.path) == pytest.approx(losses(computed.path), rel=1e-5)


def test_features_come_back_bit_for_bit(tmp_path: Path) -> None:
    features = Features(tmp_path)
    levels = [torch.randn(1, 3, 5, 7), torch.randn(1, 2, 1, 3).bfloat16()]
    features.add((4, True), levels)
    features.add((0, False), [levels[1].half()])
    features.close()
    for level, back in zip(levels, features[4, True], strict=True):
        assert torch.equal(level, back)
        assert back.dtype == level.dtype
        assert back.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(features[0, False][0], levels[1].half())
    assert (len(features), list(tmp_path.iterdir())) == (2, [])  # nameless: gone with the process
    (tmp_path / "file").write_text("")
    with pytest.raises(CodoError, match="cannot keep features"):
        Features(tmp_path / "file")


def test_batch_statistics_move_and_population_ones_do_not(make_config: Make, pretrained: Path, tmp_path: Path) -> None:
    mean, scale = (f"backbone.body.layer1.0.bn1.{name}" for name in ("running_mean", "weight"))
    before = read_weights(pretrained / "weights.safetensors")[0]
    found = {}
    for mode in ("population", "batch"):
        config = make_config(weights=str(pretrained), freeze=["backbone"], frozen_norm=mode, optim={"epochs": 1})
        run = transfer(config, tmp_path / mode)
        found[mode] = (losses(run.path), torch.equal(weights(run.path)[mean], before[mean]))
        assert torch.equal(weights(run.path)[scale], before[scale])
    assert found["population"][1]
    assert not found["batch"][1]
    assert found["population"][0] != found["batch"][0]
