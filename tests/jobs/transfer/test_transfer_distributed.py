"""Transfer on several processes (torchrun, gloo)."""

from __future__ import annotations

import json

import pytest
import torch

from codo.config import dump_yaml
from codo.errors import CodoError
from codo.jobs.transfer import transfer
from codo.jobs.transfer.data import load_data
from codo.jobs.transfer.dataset import DetectionDataset, batches
from codo.jobs.transfer.evaluate import evaluate
from codo.jobs.transfer.loop import all_used
from codo.jobs.transfer.run import fresh_detector
from codo.runs.hardware import Hardware
from codo.runs.weights_file import read_weights
from codo.runs.world import World
from tests.parts import finish, launch


@pytest.mark.parametrize("norm", ["sync_bn", "bn"])
def test_two_processes_share_batches_and_evaluation(make_config, tmp_path, norm):
    config = make_config(norm=norm, optim={"epochs": 2, "batch_size": 4, "lr": 0.02, "warmup_iterations": 2})
    file, out = tmp_path / "config.yaml", tmp_path / "run"
    file.write_text(dump_yaml(config))
    said = finish(launch(2, "transfer", "--config", str(file), "--out", str(out)))
    assert said.count("COCO box metrics") == 1
    summary = json.loads((out / "summary.json").read_text())
    assert summary["steps"] == 4
    # The detector, evaluated by one process, finds what two found together.
    data = load_data(config)
    detector = fresh_detector(config, len(data.labels), [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    detector.load_state_dict(read_weights(out / "weights.safetensors")[0])
    sides = config.detection.sides
    val = DetectionDataset(data.val, data.labels, *sides, train=False)
    alone = evaluate(detector, val, list(data.labels), Hardware.resolve(config.run, heavy_loading=False))
    together = json.loads((out / "predictions.json").read_text())
    assert [r["image_id"] for r in together] == [r["image_id"] for r in alone.results]
    assert [r["score"] for r in together] == pytest.approx([r["score"] for r in alone.results], abs=1e-4)
    assert len(together) > 0
    if norm == "bn":  # each process's norms saw half a batch
        return
    # And it learnt what one process learns from the same batches, but for the boxes that it sampled.
    losses = [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines() if "loss" in line]
    single = transfer(config, tmp_path / "single").path
    expected = [json.loads(x)["loss"] for x in (single / "metrics.jsonl").read_text().splitlines() if "loss" in x]
    assert losses == pytest.approx(expected, rel=0.25)


def test_two_processes_probe_in_parts(make_config, pretrained, tmp_path):
    """A frozen trunk, and gradients added up over two parts before the processes share them."""
    optim = {"epochs": 1, "batch_size": 4, "lr": 0.02, "warmup_iterations": 2, "accumulate": 2}
    config = make_config(weights=str(pretrained), freeze=["backbone", "fpn", "box_head"], optim=optim, norm="sync_bn")
    file, out = tmp_path / "config.yaml", tmp_path / "run"
    file.write_text(dump_yaml(config))
    said = finish(launch(2, "transfer", "--config", str(file), "--out", str(out)))
    assert "not kept (several processes)" in said
    before, after = (read_weights(path / "weights.safetensors")[0] for path in (pretrained, out))
    assert all(torch.equal(after[f"backbone.{n}"], before[f"backbone.{n}"]) for n in ("body.bn1.running_mean",))
    losses = [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines() if "loss" in line]
    single = transfer(config.model_copy(update={"norm": "bn"}), tmp_path / "single").path
    expected = [json.loads(x)["loss"] for x in (single / "metrics.jsonl").read_text().splitlines() if "loss" in x]
    assert losses == pytest.approx(expected, rel=0.25)


OWN = """\
from torch import nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign


def make(backbone, classes, detection):
    anchors = AnchorGenerator(((16,), (32,), (64,), (128,), (256,)), ((0.5, 1.0, 2.0),) * 5)
    pool = MultiScaleRoIAlign(["0", "1", "2", "3"], 7, 2)
    sides = {"min_size": list(detection.min_size), "max_size": detection.max_size}
    detector = FasterRCNN(backbone, classes + 1, rpn_anchor_generator=anchors, box_roi_pool=pool, **sides)
    detector.auxiliary = nn.Linear(3, 3)  # no loss has it
    return detector
"""


def test_two_processes_train_a_detector_of_ones_own_of_which_a_part_has_no_gradient(make_config, tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    optim = {"epochs": None, "iterations": 2, "batch_size": 2, "lr": 0.001, "warmup_iterations": 2}
    config = make_config(detector=f"{tmp_path / 'own.py'}:make", optim=optim)
    file, out = tmp_path / "config.yaml", tmp_path / "run"
    file.write_text(dump_yaml(config))
    finish(launch(2, "transfer", "--config", str(file), "--out", str(out)))
    assert json.loads((out / "summary.json").read_text())["steps"] == 2


@pytest.mark.parametrize(
    ("detector", "backbone"),
    [
        ("faster_rcnn", "hrnet_w18_small"),
        ("retinanet", "resnet18"),
        ("retinanet", "hrnet_w18_small"),
        ("fcos", "hrnet_w18_small"),
    ],
)
def test_ddp_is_told_of_parameters_of_codos_detectors_that_take_no_part(make_config, detector, backbone):
    config = make_config(detector=detector, architecture={"backbone": backbone})
    model = fresh_detector(config, 2, [0.5] * 3, [0.2] * 3).train()
    target = {"boxes": torch.tensor([[8.0, 8.0, 40.0, 40.0]]), "labels": torch.tensor([1])}
    losses = model([torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))], [target])
    sum(losses.values()).backward()
    assert all_used(config) == all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_a_batch_that_does_not_spread_and_other_data_are_refused(make_config, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(World, "of_environment", staticmethod(lambda: World(0, 4, 0, 4)))
        with pytest.raises(CodoError, match=r"^optim.batch_size: 2 images do not spread evenly over 4 processes$"):
            transfer(make_config(), tmp_path / "run")
    monkeypatch.setattr(World, "collect", lambda world, value: [value, "other"])
    with pytest.raises(CodoError, match=r"^data: the images or annotations of process 1 are not those of process 0"):
        transfer(make_config(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_processes_parts_make_up_the_batches():
    whole = list(batches(7, 4, 0, 0, 4))
    parts = [list(batches(7, 4, 0, 0, 4, World(rank, 2, rank, 2))) for rank in (0, 1)]
    for step, batch in enumerate(whole):
        together = parts[0][step] + parts[1][step]
        assert len(parts[0][step]) == len(parts[1][step])
        assert together[: len(batch)] == batch
        assert set(together) == set(batch)  # an odd batch is filled up with its own images


def test_fp16_trains_a_detector_with_scaled_losses(make_config, tmp_path):
    precision = {"device": "cpu", "precision": "fp16", "workers": 0, "threads": 1, "log_every": 1}
    out = transfer(make_config(run=precision, optim={"epochs": 1}), tmp_path / "fp16").path
    scaler = torch.load(out / "checkpoint.pt", weights_only=True)["scaler"]
    assert scaler["scale"] > 1
    assert scaler["_growth_tracker"] > 0
