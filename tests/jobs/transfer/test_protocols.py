"""What trains and what does not, schedules and parts of a batch, and what the summary says of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_transfer_run import metrics, weights
from torch import nn
from transfer_parts import ARCHITECTURE, detector_config, encoder_state, metadata

from codo.config.transfer import GROUPS, DetectionSection, TransferConfig
from codo.errors import CodoError
from codo.jobs.transfer import load_transfer_config, resume, transfer
from codo.jobs.transfer.data import load_data
from codo.jobs.transfer.detectors import build_detector
from codo.jobs.transfer.evaluate import Evaluation
from codo.jobs.transfer.norms import batch_norms, norm_groups, parameter_counts, stage_modules
from codo.jobs.transfer.run import fresh_detector, load_detector
from codo.jobs.transfer.schedule import count_evaluations, describe_training, evaluation_interval
from codo.runs.weights_file import read_metadata, read_weights, save_weights

Make = Callable[..., TransferConfig]
SIZES = DetectionSection(min_size=(64,), max_size=96, roi_batch_size=8)
TARGETS = [{"boxes": torch.tensor([[8.0, 8, 40, 40]]), "labels": torch.tensor([2])}]


def build(**fields: Any) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build_detector(detector_config(ARCHITECTURE, SIZES, **fields), 2)


def trained(detector: nn.Module) -> set[str]:
    return {name for name, parameter in detector.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("freeze", [["backbone"], ["box_head", "fpn"], list(GROUPS)])
@pytest.mark.parametrize("detector", ["faster_rcnn", "retinanet"])
def test_a_frozen_group_takes_no_gradient_and_the_others_do(freeze: list[str], detector: str) -> None:
    prefixes = {
        "backbone": ("backbone.body.",),
        "fpn": ("backbone.fpn.inner", "backbone.fpn.layer"),  # not P6 and P7, which are fresh
        "box_head": ("roi_heads.box_head.",),
    }
    made = build(freeze=freeze, detector=detector)
    frozen = {n for n, _ in made.named_parameters() if any(n.startswith(prefixes[group]) for group in freeze)}
    assert trained(made) == {n for n, _ in made.named_parameters()} - frozen
    assert frozen
    counts = parameter_counts(made)
    assert all(not counts[group]["trained"] for group in freeze)
    assert counts["rest"]["frozen"] == 0
    assert sum(c["frozen"] for c in counts.values()) == sum(made.get_parameter(n).numel() for n in frozen)


def test_the_order_of_freeze_does_not_matter() -> None:
    a, b = (detector_config(freeze=groups) for groups in (["box_head", "backbone"], ["backbone", "box_head"]))
    assert a == b
    assert (a.protocol, detector_config(freeze=GROUPS).protocol) == ("finetune, backbone + box_head frozen", "probe")


def test_frozen_parts_that_nothing_filled_are_named(make_config: Make, pretrained: Path, tmp_path: Path) -> None:
    trunk = {name: tensor for name, tensor in encoder_state().items() if name.startswith("backbone.")}
    save_weights(tmp_path / "trunk.safetensors", trunk, metadata())
    data = load_data(make_config())

    def fresh(weights: Any = pretrained, **fields: Any) -> list[str]:
        return load_detector(make_config(weights=str(weights), **fields), data)[1]["frozen_but_fresh"]

    assert fresh(freeze=GROUPS) == fresh("none") == fresh(load=["fpn"]) == []
    assert fresh("none", freeze=GROUPS) == list(GROUPS)
    assert fresh("none", freeze_stages=1) == ["backbone"]
    assert fresh(tmp_path / "trunk.safetensors", freeze=GROUPS) == ["box_head"]
    assert fresh(tmp_path / "trunk.safetensors", freeze=["backbone", "fpn"]) == []
    assert fresh(load=["backbone"], freeze=GROUPS) == ["fpn", "box_head"]
    assert fresh("none", freeze=GROUPS, detector="retinanet") == ["backbone", "fpn"]  # it has no box head
    assert fresh(freeze=GROUPS, detector="retinanet") == []  # P6 and P7 are fresh, and train


def test_stages_are_frozen_from_below() -> None:
    names = [name for name, _ in build().backbone.body.named_parameters()]
    stages = {0: (), 1: ("conv1.", "bn1."), 3: ("conv1.", "bn1.", "layer1.", "layer2.")}
    for count, prefixes in stages.items():
        made = build(freeze_stages=count)
        left = trained(made.backbone.body)
        assert left == {name for name in names if not name.startswith(prefixes)}
        made.train()(images(), TARGETS)
        for name, norm in batch_norms(made.backbone.body).items():
            assert norm.training != f"{name}.".startswith(prefixes), name
    assert not trained(build(freeze_stages=5).backbone.body)


@pytest.mark.parametrize("name", ["convnext_atto", "efficientnet_b0", "regnety_002"])
def test_the_stages_of_other_backbones_are_found(name: str) -> None:
    from codo.backbones import Backbone

    body = Backbone(name, None).body
    stages = stage_modules(body, name)
    assert len(stages) == 5
    parameters = [p for stage in stages for module in stage for p in body.get_submodule(module).parameters()]
    used = {id(p) for p in parameters}
    assert len(used) == len(parameters) > 0
    assert all(stages)


def test_a_backbone_without_known_stages_is_refused() -> None:
    with pytest.raises(CodoError, match=r"freeze_stages: mine does not name its stages; .*--freeze backbone"):
        stage_modules(nn.Sequential(nn.Conv2d(3, 3, 1)), "mine")


def images() -> list[torch.Tensor]:
    return [torch.rand(3, 64, 80, generator=torch.Generator().manual_seed(1))]


@pytest.mark.parametrize(("mode", "moves"), [("population", False), ("batch", True)])
def test_frozen_norms_use_the_statistics_that_are_said(mode: str, moves: bool) -> None:
    made = build(freeze=GROUPS, frozen_norm=mode).train()
    norms = {n: m for n, m in batch_norms(made).items() if not n.startswith("rpn")}
    before = {name: norm.running_mean.clone() for name, norm in norms.items()}
    made(images(), TARGETS)
    assert len(norms) > 10
    assert all(torch.equal(norm.running_mean, before[name]) != moves for name, norm in norms.items())


def test_group_norm_takes_the_place_of_every_batch_norm() -> None:
    made = build(norm="gn")
    assert not batch_norms(made)
    assert {name.removesuffix(".running_mean") for name in build().state_dict() if name.endswith("running_mean")} <= {
        name for name, module in made.named_modules() if isinstance(module, nn.GroupNorm)
    }
    body = made.backbone.body
    assert isinstance(body.get_submodule("layer1.0.bn1"), nn.GroupNorm)
    alone, x = made.eval().backbone(torch.cat(images())[None]), torch.cat([images()[0][None], torch.rand(1, 3, 64, 80)])
    for name, level in made.train().backbone(x).items():  # no image sees another one
        torch.testing.assert_close(level[:1], alone[name])
    assert [norm_groups(c) for c in (256, 64, 32, 24, 3)] == [32, 32, 16, 8, 1]


def test_group_norm_goes_with_weights_of_its_own(make_config: Make, pretrained: Path, tmp_path: Path) -> None:
    with pytest.raises(CodoError, match="norm: gn, but the weights were learnt with bn"):
        transfer(make_config(norm="gn", weights=str(pretrained)), tmp_path / "run")
    first = transfer(make_config(norm="gn", optim={"epochs": 1}), tmp_path / "gn").path
    data = load_data(make_config())
    detector, loaded = load_detector(make_config(norm="gn", weights=str(first)), data)
    assert loaded["groups"]["backbone"]["counts"]["missing"] == 0
    assert loaded["proof"]["difference"] < 1e-4
    assert torch.equal(
        detector.state_dict()["backbone.body.conv1.0.weight"], weights(first)["backbone.body.conv1.0.weight"]
    )
    with pytest.raises(CodoError, match="norm: bn, but the weights were learnt with gn"):
        load_detector(make_config(weights=str(first)), data)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"freeze": ["neck"]}, "freeze"),
        ({"freeze": ["backbone"], "freeze_stages": 2}, "frozen as a whole"),
        ({"frozen_norm": "batch"}, "nothing is frozen"),
        ({"frozen_norm": "batch", "freeze": ["fpn"], "norm": "gn"}, "contradict norm=gn"),
        ({"freeze_stages": 6}, "freeze_stages"),
        ({"optim.accumulate": 5}, "5 parts of a batch of 4"),
        ({"optim.eval_every": 0}, "eval_every"),
    ],
)
def test_contradictions_are_refused_in_one_line(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(CodoError, match=said) as raised:
        load_transfer_config(flags={"weights": "none", **fields})
    assert "\n" not in str(raised.value)


def test_schedules_scale_linearly(tmp_path: Path) -> None:
    plans = {}
    for name, size in (("1x", 16), ("1x", 4), ("12k", 8)):
        config = load_transfer_config(schedule=name, flags={"optim.batch_size": size})  # of the preset `small`
        plan = describe_training(config, nn.Linear(1, 1), 1000)
        plans[name, size] = [plan[key] for key in ("steps", "milestones", "warmup_steps", "peak_lr")]
    assert plans == {
        ("1x", 16): [90_000, [60_000, 80_000], 1000, 0.02],
        ("1x", 4): [360_000, [240_000, 320_000], 4000, 0.005],
        ("12k", 8): [24_000, [18_000, 22_000], 2000, 0.01],
    }
    file = tmp_path / "config.yaml"
    file.write_text("optim: {lr: 0.5, epochs: 3}\n")
    assert load_transfer_config(schedule="1x", file=file).optim.lr == 0.02
    assert load_transfer_config(schedule="1x", flags={"optim.lr": 0.3}).optim.lr == 0.3
    assert load_transfer_config(schedule="1x", sets=["optim.lr=0.3"]).optim.lr == 0.3
    assert load_transfer_config(preset="1x", flags={"optim.batch_size": 4}, sets=["optim.lr=0.3"]).optim.lr == 0.3
    assert load_transfer_config(preset="12k").optim.milestones == (0.75, 11 / 12)
    assert load_transfer_config(schedule="2x", sets=["optim.milestones=[0.5]"]).optim.milestones == (0.5,)
    with pytest.raises(CodoError, match="there are 1x, 2x, 12k"):
        load_transfer_config(schedule="3x")


def test_a_preset_scales_wherever_it_is_named(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("preset: 1x\noptim: {batch_size: 4}\n")
    named = load_transfer_config(file=file)
    assert named == load_transfer_config(preset="1x", flags={"optim.batch_size": 4})
    assert (named.optim.iterations, named.optim.warmup_iterations) == (360_000, 4000)
    file.write_text("preset: 1x\n")
    assert load_transfer_config(file=file, flags={"optim.batch_size": 4}) == named
    file.write_text("preset: 1x\noptim: {batch_size: 4, iterations: 90000}\n")  # written out, so meant
    optim = load_transfer_config(file=file).optim
    assert (optim.iterations, optim.warmup_iterations) == (90_000, 4000)


def test_evaluation_may_come_within_an_epoch(make_config: Make, tmp_path: Path) -> None:
    """And an interrupted evaluation plan is the same: it counts steps."""
    result = transfer(make_config(optim={"eval_every": 0.34}), tmp_path / "run")
    assert [point["step"] for point in result.summary["curve"]] == [1, 2, 3, 4, 5, 6]
    assert [evaluation_interval(make_config(optim={"eval_every": e}).optim, 10) for e in (0.01, 0.25, 3)] == [1, 2, 30]
    optims = [make_config(optim={"epochs": n, "eval_every": e}).optim for n, e in ((5, 2), (2, 0.1), (4, 2))]
    assert [count_evaluations(optim, 3) for optim in optims] == [3, 6, 2]


def test_parts_of_a_batch_add_up_to_it(make_config: Make, coco_root: Path, tmp_path: Path) -> None:
    """Frozen norms, images of one shape, all proposals and anchors used: then parts are exact."""
    save_weights(tmp_path / "encoder.safetensors", encoder_state(), metadata())
    detection = {"min_size": [96], "max_size": 96, "roi_batch_size": 4096, "rpn_post_nms_train": 30}
    optim = {"epochs": 2, "batch_size": 4, "warmup_iterations": 0, "lr": 0.2}
    # RetinaNet samples nothing; its losses are means over images.
    fields: dict[str, Any] = {
        "detector": "retinanet",
        "norm": "bn",
        "weights": str(tmp_path / "encoder.safetensors"),
        "freeze": ["backbone", "fpn"],
        "detection": detection,
    }
    whole, parts = (
        transfer(make_config(**fields, optim={**optim, "accumulate": count}), tmp_path / str(count)) for count in (1, 3)
    )
    losses = [[line["loss"] for line in metrics(run.path) if "loss" in line] for run in (whole, parts)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert losses[0][0] != pytest.approx(losses[0][-1], rel=1e-3)
    assert parts.summary["training"]["accumulate"] == 3


def test_short_sides_are_drawn_per_image_by_seed_and_step(make_config: Make, tmp_path: Path) -> None:
    def sides(seed: int, name: str) -> list[list[tuple[int, int]]]:
        seen: list[list[tuple[int, int]]] = []
        config = make_config(
            seed=seed,
            detection={"min_size": [48, 56, 64, 72, 80], "max_size": 200},
            optim={"epochs": 2, "batch_size": 6},
        )

        def watch(module: nn.Module, given: Any, result: Any) -> None:
            if module.training:
                seen.append([tuple(size) for size in result[0].image_sizes])

        from codo.jobs.transfer import run as job

        made = job.build_detector

        def watched(*arguments: Any) -> Any:
            detector = made(*arguments)
            detector.transform.register_forward_hook(watch)
            return detector

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(job, "build_detector", watched)
            transfer(config, tmp_path / name)
        return seen

    first = sides(0, "a")
    assert len(first) == 2
    assert all(len({min(size) for size in step}) > 1 for step in first)  # within a batch
    assert first[0] != first[1]
    assert first == sides(0, "b")
    assert first != sides(1, "c")


def test_the_best_detector_is_kept_if_it_is_not_the_last(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """AP is made up: 1, 5, 5, 2 at the steps 1-4; a resumed run keeps the best of before."""
    course = {1: 1.0, 2: 5.0, 3: 5.0, 4: 2.0, 5: 9.0}
    steps: list[int] = []

    def made_up(self: Evaluation) -> dict[str, float | None]:
        steps.append(len(steps) + 1)
        return {**values(self), "AP": course[steps[-1]]}

    values = Evaluation.values.fget  # type: ignore[attr-defined]
    monkeypatch.setattr(Evaluation, "values", property(made_up))
    optim = {"epochs": None, "iterations": 4, "eval_every": 0.34}
    run = transfer(make_config(optim=optim), tmp_path / "run")
    assert run.summary["best"] == {"step": 3, "epoch": 1.0, "AP": 5.0}
    assert run.summary["curve_area"] == pytest.approx((0.5 + 3 + 5 + 3.5) / 4)
    assert run.summary["steps_to_ap"] == {"1": 1, "2": 2, "5": 2}
    best = run.path / "best.safetensors"
    assert (read_metadata(best)["step"], read_metadata(best)["AP"]) == ("3", "5.0000")
    kept = read_weights(best)[0]
    assert any(not torch.equal(kept[name], tensor) for name, tensor in weights(run.path).items())
    longer = resume(run.path, {"optim.iterations": 5})  # its end is the best
    assert longer.summary["best"]["step"] == 5
    assert not best.exists()


def test_the_best_of_before_survives_a_resume(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    course = iter([5.0, 1.0, 1.0, 1.0])
    values = Evaluation.values.fget  # type: ignore[attr-defined]
    monkeypatch.setattr(Evaluation, "values", property(lambda self: {**values(self), "AP": next(course)}))
    run = transfer(make_config(optim={"milestones": []}), tmp_path / "run")
    kept = read_weights(run.path / "best.safetensors")[0]
    longer = resume(run.path, {"optim.epochs": 4})
    assert longer.summary["best"] == {"step": 3, "epoch": 1.0, "AP": 5.0}
    again = read_weights(run.path / "best.safetensors")[0]
    assert all(torch.equal(kept[name], tensor) for name, tensor in again.items())


def test_the_summary_names_what_it_is_of(make_config: Make, pretrained: Path, tmp_path: Path) -> None:
    config = make_config(weights=str(pretrained), data={"fraction": 0.67}, freeze=["backbone"], seed=4)
    summary = json.loads((transfer(config, tmp_path / "run").path / "summary.json").read_text())
    assert summary["data"]["name"] == "squares"
    assert (summary["trained_on"], summary["evaluated_on"]) == ("train", "val")
    assert (summary["data"]["fraction"], summary["seed"]) == (0.67, 4)
    assert summary["weights"]["run_fingerprint"] == "0123456789abcdef"
    assert summary["protocol"] == "finetune, backbone frozen"
    training = summary["training"]
    detector = fresh_detector(config, 2, [0.5] * 3, [0.5] * 3)
    assert training["trained_parameters"] == sum(p.numel() for p in detector.parameters() if p.requires_grad)
    assert (training["steps"], training["milestones"]) == (4, [3, 4])
    assert training["peak_lr"] == pytest.approx(0.02 * 2 / 16)
    assert len(summary["metrics"]) == 12
    assert summary["train_seconds"] > 0
