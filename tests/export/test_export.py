"""Files for other libraries: torchvision's and timm's loaded by them, the others against lists of their names."""

from __future__ import annotations

import json
import pickle
import pickletools
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import yaml
from torch import Tensor, nn
from torchvision.models.detection import fasterrcnn_resnet50_fpn_v2

from codo.backbones import Backbone
from codo.cli import main
from codo.cli.export import _FORMATS
from codo.config.sections import ArchitectureSection
from codo.config.transfer import DetectionSection, TransferConfig
from codo.errors import CodoError
from codo.export import FORMATS, export_run
from codo.export.contents import read_contents
from codo.export.torchvision import usage
from codo.heads import box_head
from codo.jobs.transfer.base import Detector
from codo.jobs.transfer.dataset import fit
from codo.jobs.transfer.detectors import build_detector
from codo.jobs.transfer.evaluate import to_input
from codo.jobs.transfer.proof import normalisation
from codo.jobs.transfer.run import fresh_detector
from codo.runs.weights_file import read_weights, save_weights
from codo.weights import read_pretrained
from codo.weights.coverage import load_pretrained
from tests.jobs.transfer.transfer_parts import encoder_state, metadata
from tests.parts import codo

RESNET50 = ArchitectureSection()
SMALL = ArchitectureSection(
    backbone="resnet18", fpn_channels=16, box_head_convs=2, box_head_channels=24, box_head_fc=32
)
DETECTION = DetectionSection(
    min_size=(48, 64),
    max_size=80,
    rpn_pre_nms_test=90,
    rpn_post_nms_test=70,
    score_threshold=0.01,
    detections_per_image=7,
)
ENDINGS = {"torchvision": ".pth", "timm": "", "detectron2": ".pkl", "mmdetection": ".pth"}
IMAGES = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))


def write_run(path: Path, model: ArchitectureSection = SMALL, aligned: bool = True, **changes: str) -> Path:
    """Write what a pretraining run leaves."""
    state = encoder_state(model)
    if not aligned:
        state = {name: value for name, value in state.items() if name.startswith("backbone.body.")}
    told = {"architecture": model.model_dump_json(), **changes}
    save_weights(path / "weights.safetensors", state, metadata(**told))
    (path / "config.yaml").write_text("{}")
    return path


def write_detector(path: Path, detector: str, architecture: ArchitectureSection = SMALL) -> tuple[Path, Detector]:
    """Write what a transfer run leaves, of three classes."""
    config = TransferConfig(architecture=architecture, detector=detector, weights="some", detection=DETECTION)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        made = build_detector(config, 3)
    with torch.no_grad():
        for value in made.state_dict().values():
            if value.is_floating_point():
                value.add_(0.01 * torch.rand(value.shape, generator=torch.Generator().manual_seed(1)))
    told = metadata(architecture=architecture.model_dump_json(), detector=detector)
    del told["roi"], told["alignment"]
    told["detection"] = DETECTION.model_dump_json()
    told["categories"] = json.dumps([[7, "cat"], [9, "dog"], [12, "cow"]])
    save_weights(path / "weights.safetensors", made.state_dict(), told)
    return path, made.eval()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "small")


@pytest.fixture(scope="module")
def full_scale(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "full", RESNET50)


def encoder(run: Path, architecture: ArchitectureSection) -> tuple[Backbone, nn.Module]:
    """Build backbone and box head from a run without any of the code that exports."""
    state = read_pretrained(str(run)).state
    backbone = Backbone(architecture.backbone, architecture.fpn_channels)
    a = architecture
    head = box_head(a.fpn_channels, a.box_head_fc, conv_channels=a.box_head_channels, convs=a.box_head_convs)
    for module, prefix in ((backbone, "backbone."), (head, "box_head.")):
        module.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
        module.eval()
    return backbone, head


def execute(code: str, capsys: pytest.CaptureFixture[str]) -> tuple[Any, str]:
    """Run the lines that export prints: the model, and what they print."""
    names: dict[str, Any] = {}
    capsys.readouterr()
    with torch.random.fork_rng():
        exec(code, names)
    return names["model"].eval(), capsys.readouterr().out


@torch.no_grad()
def assert_same(ours: Any, theirs: Any) -> None:
    torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-5)


# torchvision


@pytest.mark.parametrize("scale", ["full", "small"])
def test_torchvision_loads_it_and_computes_the_same(
    scale: str, run: Path, full_scale: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, architecture = (full_scale, RESNET50) if scale == "full" else (run, SMALL)
    done = export_run(source, "torchvision", tmp_path / "codo.pth")
    assert ("fasterrcnn_resnet50_fpn_v2" in done.usage) == (scale == "full")
    model, printed = execute(done.usage, capsys)
    missing, unexpected = re.fullmatch(
        r"_IncompatibleKeys\(missing_keys=(.*), unexpected_keys=(.*)\)\n", printed
    ).groups()  # type: ignore[union-attr]
    assert unexpected == "[]"
    fresh = re.findall(r"'(.*?)'", missing)
    assert fresh
    assert all(name.startswith(("rpn.", "roi_heads.box_predictor.")) for name in fresh)
    backbone, head = encoder(source, architecture)
    with torch.no_grad():
        levels, theirs = backbone(IMAGES), model.backbone(IMAGES)
        for name, level in levels.items():
            assert_same(level, theirs[name])
        boxes = torch.rand(2, architecture.fpn_channels, 7, 7, generator=torch.Generator().manual_seed(1))
        assert_same(head(boxes), model.roi_heads.box_head(boxes))


def test_torchvisions_migrations_have_nothing_to_do(full_scale: Path, tmp_path: Path) -> None:
    export_run(full_scale, "torchvision", tmp_path / "codo.pth")
    state = torch.load(tmp_path / "codo.pth", weights_only=True)
    with torch.device("meta"):
        reference = fasterrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None).state_dict()
    assert {k: v.shape for k, v in state.items()} == {
        k: v.shape for k, v in reference.items() if not k.startswith(("rpn.", "roi_heads.box_predictor."))
    }
    theirs = reference._metadata  # type: ignore[attr-defined]
    told = state._metadata
    assert told["backbone.fpn"] == {"version": 2}
    assert len(told) > 130
    assert all(theirs[module] == version for module, version in told.items())


@pytest.mark.parametrize("kind", ["faster_rcnn", "mask_rcnn"])
def test_a_trained_detector_is_torchvisions_as_a_whole(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, detector = write_detector(tmp_path / "run", kind)
    done = export_run(source, "torchvision", tmp_path / "codo.pt")
    assert done.left_out == []
    assert len(done.groups["detector"]) > 8
    model, printed = execute(done.usage, capsys)
    assert printed == "<All keys matched successfully>\n"
    with torch.no_grad():
        theirs, ours = model(list(IMAGES))[0], detector(list(IMAGES))[0]
    assert len(ours["boxes"]) == DETECTION.detections_per_image
    for kept in ("pre", "post"):
        assert getattr(model.rpn, f"{kept}_nms_top_n")() == getattr(detector.rpn, f"{kept}_nms_top_n")()
    for name in ours:  # RoIAlign's sums are taken in another order than in torchvision's kernel
        torch.testing.assert_close(theirs[name], ours[name], rtol=1e-5, atol=1e-4)


def test_a_larger_picture_is_shrunk_as_in_the_runs_evaluation(tmp_path: Path) -> None:
    source, detector = write_detector(tmp_path / "run", "faster_rcnn")
    done = export_run(source, "torchvision", tmp_path / "codo.pt")
    names: dict[str, Any] = {}
    with torch.random.fork_rng():
        exec(done.usage, names)
    model, drawn = names["model"].eval(), torch.Generator().manual_seed(0)
    for height, width in ((301, 200), (150, 420), (50, 60)):  # the last one is enlarged, by the model
        image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=drawn)
        pixels = fit(image.permute(1, 2, 0).numpy(), *DETECTION.sides)
        ours = torch.from_numpy(pixels.transpose(2, 0, 1).copy())
        assert torch.equal(names["shrink"](image), ours)
        with torch.no_grad():
            found, theirs = detector([to_input(ours, torch.device("cpu"))])[0], model([names["shrink"](image) / 255])[0]
        for name in found:
            torch.testing.assert_close(theirs[name], found[name], rtol=1e-5, atol=1e-4)  # boxes are in pixels


def test_labels_have_names_and_the_best_is_taken_where_there_is_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, detector = write_detector(tmp_path / "run", "faster_rcnn")
    (source / "config.yaml").write_text("{}")
    out, name = tmp_path / "codo.pt", "roi_heads.box_predictor.cls_score.bias"
    done = export_run(source, "torchvision", out, best=True)
    assert done.notes == ["the weights are those of weights.safetensors"]
    assert 'names = ["background", "cat", "dog", "cow"]' in done.usage
    state, told = read_weights(source / "weights.safetensors")
    save_weights(source / "best.safetensors", {**state, name: state[name] + 1}, told)
    for best in (False, True):
        assert codo("export", source, "--format", "torchvision", "-o", out, "--force", *(["--best"] * best)) == 0
        assert torch.equal(torch.load(out, weights_only=True)[name], detector.state_dict()[name] + best)
        printed = capsys.readouterr().out
        assert ("those of best.safetensors" in printed) == best
        assert done.usage in printed  # no line is broken


@pytest.mark.parametrize("kind", ["faster_rcnn", "mask_rcnn"])
def test_torchvisions_own_function_takes_the_runs_settings(kind: str, tmp_path: Path) -> None:
    told = metadata(detector=kind, architecture=SMALL.model_dump_json(), detection=DETECTION.model_dump_json())
    save_weights(tmp_path / "run" / "weights.safetensors", encoder_state(SMALL), {**told, "categories": '[[3, "a"]]'})
    contents = replace(read_contents(str(tmp_path / "run")), architecture=RESNET50)
    code, _, _ = usage(tmp_path / "codo.pth", contents).partition("\nstate =")
    names: dict[str, Any] = {}
    with torch.device("meta"):
        exec(code, names)
    model = names["model"].eval()
    assert (model.transform.min_size, model.transform.max_size) == ((48, 64), 80)
    assert (model.rpn.pre_nms_top_n(), model.rpn.post_nms_top_n()) == (90, 70)
    assert (model.roi_heads.score_thresh, model.roi_heads.detections_per_img) == (0.01, 7)
    assert model.roi_heads.box_predictor.cls_score.out_features == 2


def test_another_normalisation_is_said(tmp_path: Path) -> None:
    source = write_run(tmp_path / "run", mean="[0.5, 0.5, 0.5]", std="[0.25, 0.25, 0.25]")
    said = {format: export_run(source, format, tmp_path / f"{format}{ENDINGS[format]}").usage for format in FORMATS}
    assert "image_mean=[0.5, 0.5, 0.5]" in said["torchvision"]
    assert "PIXEL_MEAN: [127.500, 127.500, 127.500]" in said["detectron2"]
    assert "mean=[127.5, 127.5, 127.5], std=[63.75, 63.75, 63.75]" in said["mmdetection"]
    model = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True)
    assert list(model.pretrained_cfg["mean"]) == [0.5, 0.5, 0.5]


# timm


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "mobilenetv3_small_050"])
def test_timm_loads_it_and_computes_the_same(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    architecture = SMALL.model_copy(update={"backbone": name})
    source = write_run(tmp_path / "run", architecture)
    done = export_run(source, "timm", tmp_path / "hub")
    assert {file.name for file in (tmp_path / "hub").iterdir()} == {"model.safetensors", "config.json"}
    assert done.groups["backbone"]
    assert not done.groups["fpn"]
    assert {name.split(".")[1] for name in done.left_out if name.startswith("backbone.")} == {"fpn"}
    assert bool(done.fresh) == (name != "resnet18")
    backbone, _ = encoder(source, architecture)
    stages = [stage.detach() for stage in backbone.stages(IMAGES)]
    folder = f"local-dir:{tmp_path / 'hub'}"
    checkpoint = timm.create_model(name, num_classes=0, checkpoint_path=str(tmp_path / "hub" / "model.safetensors"))
    local, _ = execute(done.usage, capsys)
    for model in (checkpoint.eval(), local, timm.create_model(folder, pretrained=True, num_classes=5).eval()):
        with torch.no_grad():
            assert_same(stages[-1], model.forward_intermediates(IMAGES, intermediates_only=True)[-1])
    features = timm.create_model(folder, pretrained=True, features_only=True).eval()
    with torch.no_grad():
        found = {tuple(level.shape): level for level in features(IMAGES)}
    for stage in stages:
        assert_same(stage, found[tuple(stage.shape)])


# detectron2 and mmdetection: the lists are written from their documentation, not made by codo's key maps


BLOCKS = {2: 3, 3: 4, 4: 6, 5: 3}
NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def with_norm(conv: str, norm: str) -> list[str]:
    return [f"{conv}.weight", *(f"{norm}.{leaf}" for leaf in NORM)]


def detectron2_names() -> list[str]:
    body = "backbone.bottom_up."
    found = with_norm(f"{body}stem.conv1", f"{body}stem.conv1.norm")
    for stage, blocks in BLOCKS.items():
        for block in range(blocks):
            for conv in ("conv1", "conv2", "conv3", *(["shortcut"] if block == 0 else [])):
                name = f"{body}res{stage}.{block}.{conv}"
                found += with_norm(name, f"{name}.norm")
        for part in ("lateral", "output"):
            found += with_norm(f"backbone.fpn_{part}{stage}", f"backbone.fpn_{part}{stage}.norm")
    for conv in (1, 2, 3, 4):
        found += with_norm(f"roi_heads.box_head.conv{conv}", f"roi_heads.box_head.conv{conv}.norm")
    return [*found, "roi_heads.box_head.fc1.weight", "roi_heads.box_head.fc1.bias"]


def mmdetection_names() -> list[str]:
    found = with_norm("backbone.conv1", "backbone.bn1")
    for layer, blocks in zip((1, 2, 3, 4), BLOCKS.values(), strict=True):
        for block in range(blocks):
            name = f"backbone.layer{layer}.{block}."
            for i in (1, 2, 3):
                found += with_norm(f"{name}conv{i}", f"{name}bn{i}")
            if block == 0:
                found += with_norm(f"{name}downsample.0", f"{name}downsample.1")
    for i in range(4):
        for name in (f"neck.lateral_convs.{i}", f"neck.fpn_convs.{i}", f"roi_head.bbox_head.shared_convs.{i}"):
            found += with_norm(f"{name}.conv", f"{name}.bn")
    return [*found, "roi_head.bbox_head.shared_fcs.0.weight", "roi_head.bbox_head.shared_fcs.0.bias"]


def test_detectron2s_file(full_scale: Path, tmp_path: Path) -> None:
    done = export_run(full_scale, "detectron2", tmp_path / "codo.pkl")
    content = pickle.loads((tmp_path / "codo.pkl").read_bytes(), encoding="latin1")
    assert content.keys() == {"model", "__author__", "matching_heuristics"}
    assert content["__author__"].startswith("codo")
    assert content["matching_heuristics"] is True
    model = content["model"]
    assert sorted(model) == sorted(detectron2_names())
    assert all(type(value) is np.ndarray for value in model.values())
    state = read_pretrained(str(full_scale)).state
    for theirs, ours in {
        "backbone.bottom_up.stem.conv1.norm.running_var": "backbone.body.bn1.running_var",
        "backbone.bottom_up.res3.2.conv3.norm.bias": "backbone.body.layer2.2.bn3.bias",
        "backbone.bottom_up.res4.0.shortcut.weight": "backbone.body.layer3.0.downsample.0.weight",
        "backbone.bottom_up.res4.0.shortcut.norm.weight": "backbone.body.layer3.0.downsample.1.weight",
        "backbone.fpn_lateral2.weight": "backbone.fpn.inner_blocks.0.0.weight",
        "backbone.fpn_output5.norm.running_mean": "backbone.fpn.layer_blocks.3.1.running_mean",
        "roi_heads.box_head.conv4.norm.weight": "box_head.3.1.weight",
        "roi_heads.box_head.fc1.weight": "box_head.5.weight",
    }.items():
        assert np.array_equal(model[theirs], state[ours]), theirs
    config = yaml.safe_load(done.usage)
    assert config["MODEL"]["WEIGHTS"] == str(tmp_path / "codo.pkl")
    assert config["MODEL"]["RESNETS"] == {
        "DEPTH": 50, "NORM": "SyncBN", "STRIDE_IN_1X1": False, "OUT_FEATURES": ["res2", "res3", "res4", "res5"],
    }  # fmt: skip
    assert config["MODEL"]["PIXEL_MEAN"] == [123.675, 116.28, 103.53]
    assert config["MODEL"]["PIXEL_STD"] == [58.395, 57.12, 57.375]
    head = config["MODEL"]["ROI_BOX_HEAD"]
    assert (head["NUM_CONV"], head["NUM_FC"], head["NORM"], head["POOLER_TYPE"]) == (4, 1, "SyncBN", "ROIAlign")
    assert config["INPUT"]["FORMAT"] == "RGB"


def test_numpy_1_can_read_detectron2s_file(run: Path, tmp_path: Path) -> None:
    export_run(run, "detectron2", tmp_path / "codo.pkl")
    said = {str(value) for _, value, _ in pickletools.genops((tmp_path / "codo.pkl").read_bytes()) if value}
    assert "numpy.core.multiarray _reconstruct" in said
    assert not any("_core" in text for text in said)


def test_mmdetections_file(full_scale: Path, tmp_path: Path) -> None:
    done = export_run(full_scale, "mmdetection", tmp_path / "codo.pth")
    content = torch.load(tmp_path / "codo.pth", weights_only=True)
    assert content.keys() == {"state_dict", "meta"}
    tensors = content["state_dict"]
    assert sorted(tensors) == sorted(mmdetection_names())
    state = read_pretrained(str(full_scale)).state
    for theirs, ours in {
        "backbone.layer3.0.downsample.1.weight": "backbone.body.layer3.0.downsample.1.weight",
        "neck.lateral_convs.0.conv.weight": "backbone.fpn.inner_blocks.0.0.weight",
        "neck.fpn_convs.3.bn.running_mean": "backbone.fpn.layer_blocks.3.1.running_mean",
        "roi_head.bbox_head.shared_convs.3.bn.weight": "box_head.3.1.weight",
        "roi_head.bbox_head.shared_fcs.0.bias": "box_head.5.bias",
    }.items():
        assert torch.equal(tensors[theirs], state[ours]), theirs
    config: dict[str, Any] = {}
    exec(done.usage, config)
    assert config["_base_"] == "mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py"
    assert config["load_from"] == str(tmp_path / "codo.pth")
    assert config["model"]["data_preprocessor"] == {
        "mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375], "bgr_to_rgb": True,
    }  # fmt: skip
    assert config["model"]["roi_head"]["bbox_head"]["type"] == "Shared4Conv1FCBBoxHead"
    assert config["model"]["neck"]["in_channels"] == [256, 512, 1024, 2048]


# All formats


def initial_detector(weights: Path, load: tuple[str, ...]) -> dict[str, Tensor]:
    config = TransferConfig.model_validate({"architecture": SMALL, "weights": str(weights), "load": load})
    source = read_pretrained(config.weights, config.architecture.backbone)
    detector = fresh_detector(config, 3, *normalisation(source))
    coverage = load_pretrained(detector, source, config.load)
    assert all(coverage.groups[group].complete and not coverage.groups[group].unexpected for group in load)
    return detector.state_dict()


@pytest.mark.parametrize("kind", ["pretraining", "faster_rcnn"])
@pytest.mark.parametrize("format", FORMATS)
def test_a_transfer_from_the_file_begins_as_one_from_the_run(format: str, kind: str, run: Path, tmp_path: Path) -> None:
    source = run if kind == "pretraining" else write_detector(tmp_path / "run", kind)[0]
    file = tmp_path / f"codo{ENDINGS[format]}"
    export_run(source, format, file)
    load = ("backbone",) if format == "timm" else ("backbone", "fpn", "box_head")
    theirs, ours = initial_detector(file, load), initial_detector(source, load)
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[name], ours[name]) for name in ours)


@pytest.mark.parametrize("format", FORMATS)
def test_without_alignment_the_backbone_is_all_there_is(format: str, tmp_path: Path) -> None:
    source = write_run(tmp_path / "run", aligned=False, alignment="false")
    done = export_run(source, format, tmp_path / f"codo{ENDINGS[format]}")
    assert {group: len(names) for group, names in done.groups.items()} == {
        "backbone": 120, "fpn": 0, "box_head": 0, "detector": 0,
    }  # fmt: skip
    assert "it has no FPN and no box head" in done.notes[0]
    assert coverage_of(done.path).matched


def coverage_of(file: Path) -> Any:
    detector = build_detector(TransferConfig(architecture=SMALL, weights="some"), 3)
    return load_pretrained(detector, read_pretrained(str(file), "resnet18")).groups["backbone"]


def test_a_one_stage_detector_gives_p3_to_p5(tmp_path: Path) -> None:
    source, _ = write_detector(tmp_path / "run", "retinanet")
    done = export_run(source, "detectron2", tmp_path / "codo.pkl")
    assert {name.split(".")[1] for name in done.groups["fpn"].values()} == {
        f"fpn_{part}{level}" for part in ("lateral", "output") for level in (3, 4, 5)
    }
    assert any("no P2" in note for note in done.notes)
    assert any(name.startswith("head.") for name in done.left_out)
    assert any(".extra_blocks." in name for name in done.left_out)


def test_a_box_head_of_ones_own_is_left_out(tmp_path: Path) -> None:
    source = write_run(tmp_path / "run", custom='{"box_head": "mine:Head"}')
    done = export_run(source, "torchvision", tmp_path / "codo.pth")
    assert not done.groups["box_head"]
    assert any("mine:Head" in note for note in done.notes)
    assert done.usage.endswith("# missing, so fresh: box head, RPN and predictors")


def test_a_detector_of_ones_own_without_a_box_head_is_said_to_have_none(tmp_path: Path) -> None:
    state = {name: value for name, value in encoder_state(SMALL).items() if not name.startswith("box_head.")}
    told = metadata(architecture=SMALL.model_dump_json(), detector="mine.py:Thing")
    save_weights(tmp_path / "run" / "weights.safetensors", state, told)
    done = export_run(tmp_path / "run", "torchvision", tmp_path / "codo.pth")
    assert done.notes == ["the run has no box head as pretraining has it"]
    assert done.usage.endswith("# missing, so fresh: box head, RPN and predictors")


@pytest.mark.parametrize(("ratio", "aligned"), [(2, False), (0, False), (2, True)])
def test_pooling_other_than_torchvisions_is_said(ratio: int, aligned: bool, tmp_path: Path) -> None:
    source = write_run(tmp_path / "run", roi=json.dumps({"sampling_ratio": ratio, "aligned": aligned}))
    done = export_run(source, "torchvision", tmp_path / "codo.pth")
    assert done.usage.endswith("# missing, so fresh: RPN and predictors")
    said = [f"sampling_ratio {ratio} and aligned {aligned}" in note for note in done.notes]
    assert said == ([] if (ratio, aligned) == (2, False) else [True])
    assert export_run(source, "detectron2", tmp_path / "codo.pkl").notes == []  # its config has them


@pytest.mark.parametrize("format", ["torchvision", "detectron2", "mmdetection"])
def test_other_backbones_have_no_names_there(format: str, tmp_path: Path) -> None:
    for name in ("convnext_atto", "resnet10t"):  # a ResNet too, with another stem
        source = write_run(tmp_path / name, SMALL.model_copy(update={"backbone": name}))
        with pytest.raises(CodoError, match=f"{format} has no names for the backbone {name}.*--format timm") as caught:
            export_run(source, format, tmp_path / f"codo{ENDINGS[format]}")
        assert "\n" not in str(caught.value)
    assert not (tmp_path / f"codo{ENDINGS[format]}").exists()


@pytest.mark.parametrize("format", FORMATS)
def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(
    format: str, run: Path, tmp_path: Path, full_disk: Any
) -> None:
    out = tmp_path / f"out{ENDINGS[format]}"
    message = rf"^cannot write {out}.*; free some space or choose another folder$"
    with full_disk(100_000), pytest.raises(CodoError, match=message):
        export_run(run, format, out)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_what_cannot_be_exported(run: Path, tmp_path: Path) -> None:
    torch.save({}, tmp_path / "other.pth")
    body = SMALL.model_copy(update={"backbone": "mine:Body"}).model_dump_json()
    own = write_run(tmp_path / "own", architecture=body, custom='{"backbone": "mine:Body"}')
    broken = write_run(tmp_path / "broken", mean="grey")
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished" / "config.yaml").write_text("{}")
    for source, format, file, message in (
        (run, "onnx", "a.onnx", "no format 'onnx'"),
        (run, "detectron2", "a.pth", r"should end in \.pkl"),
        (run, "torchvision", "a.safetensors", r"should end in \.pth or \.pt"),
        (tmp_path / "absent", "timm", "a", "there is nothing at"),
        (tmp_path / "unfinished", "timm", "a", "did the run finish"),
        (tmp_path / "other.pth", "timm", "a", "not written by codo"),
        (broken, "timm", "a", "metadata of .* is not what codo writes"),
        (own, "torchvision", "a.pth", "no names for the backbone mine:Body"),
        (own, "timm", "a", "the backbone mine:Body is your own"),
    ):
        with pytest.raises(CodoError, match=message) as caught:
            export_run(source, format, tmp_path / file)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / file).exists()


@pytest.mark.parametrize("format", FORMATS)
def test_what_is_there_is_overwritten_by_force_alone(format: str, run: Path, tmp_path: Path) -> None:
    file = tmp_path / f"codo{ENDINGS[format]}"
    kept = file / "config.json" if format == "timm" else file
    kept.parent.mkdir(exist_ok=True)
    kept.write_text("mine")
    with pytest.raises(CodoError, match="exists already; name another, or overwrite it with --force"):
        export_run(run, format, file)
    assert kept.read_text() == "mine"
    export_run(run, format, file, force=True)
    assert read_pretrained(str(file), "resnet18").state
    assert not list(tmp_path.rglob("*.tmp"))


def test_the_command_says_what_it_wrote_and_how_it_is_loaded(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _FORMATS == FORMATS
    arguments = ["export", str(run), "--format", "detectron2", "-o", str(tmp_path / "codo.pkl")]
    for expected in (0, 2):  # and again: it exists
        with pytest.raises(SystemExit) as left:
            main(arguments)
        assert left.value.code == expected
    captured = capsys.readouterr()
    assert re.search(r"box_head .* 14 .* roi_heads\.box_head", captured.out)
    assert "left out, as detectron2 has no place for them: 1 tensors of projectors.0" in captured.out
    assert f'WEIGHTS: "{tmp_path / "codo.pkl"}"' in captured.out
    assert "exists already" in captured.err
