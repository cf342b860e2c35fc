import json
from pathlib import Path
from typing import Any

import pytest
import torch

from codo.cli.transfer import print_metrics
from codo.config.load import dump_yaml
from codo.config.transfer import TransferConfig
from codo.jobs.transfer.coco_metrics import METRIC_NAMES
from codo.jobs.transfer.run import TransferResult
from codo.runs.console import console
from tests.jobs.transfer.transfer_parts import ARCHITECTURE, encoder_state
from tests.parts import codo

TINY = [
    "--set", "detection={min_size: [64], max_size: 96, rpn_post_nms_train: 20, roi_batch_size: 8}",
    "--set", "run.workers=0", "--set", "run.threads=1", "--device", "cpu", "--precision", "fp32", "--batch-size", "3",
]  # fmt: skip


def test_a_run_is_printed(
    coco_root: Path, pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert codo("transfer", "--data", coco_root, "--weights", pretrained, "--epochs", "1", "--out", out, *TINY) == 0
    printed = capsys.readouterr().out
    assert "data: squares (simple layout), 6 training images (10 boxes, 1 images without)" in printed
    assert "box_head" in printed
    assert "largest relative difference" in printed
    assert "AP50" in printed
    assert "[light] square" in printed  # not taken for markup
    assert codo("transfer", "--resume", out) == 2
    assert "the run is complete" in capsys.readouterr().err
    assert codo("transfer", "--resume", out, "--epochs", "2") == 0
    assert "resumed after step 2" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("length", "flags", "message"),
    [
        ({"epochs": 2}, ["--schedule", "12k"], "the run's length is in epochs (2); use --epochs N"),
        ({"epochs": None, "iterations": 9}, ["--epochs", "3"], "the run's length is in steps (9); use --schedule NAME"),
    ],
)
def test_a_resumed_runs_length_stays_of_its_kind(
    length: dict[str, Any],
    flags: list[str],
    message: str,
    make_config: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "config.yaml").write_text(dump_yaml(make_config(optim=length)))
    assert codo("transfer", "--resume", tmp_path, *flags) == 2
    assert capsys.readouterr().err == f"Error: --resume {tmp_path}: {message}\n"


def test_the_table_of_seeds_takes_no_name_for_markup(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"mean": 1.0, "std": None, "n": 1}
    found = TransferResult(tmp_path, {"data": "[/red] [1]", "metrics": {"AP": row}, "curve_area": row})
    monkeypatch.setattr("codo.jobs.transfer.seeds.transfer_seeds", lambda *_: found)
    assert codo("transfer", "--seeds", "0", "--out", tmp_path) == 0
    assert "1 seeds on [/red] [1] val" in capsys.readouterr().out


def test_a_dry_run_trains_and_writes_nothing(
    coco_root: Path, pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert codo("transfer", "--data", coco_root, "--weights", pretrained, "--out", out, "--dry-run", *TINY) == 0
    printed = capsys.readouterr().out
    assert "backbone: resnet10t" in printed
    assert "largest relative difference" in printed
    assert not out.exists()
    part = ["--weights", pretrained, "--load", "backbone, fpn"]
    assert codo("transfer", "--data", coco_root, *part, "--dry-run", *TINY) == 0
    printed = capsys.readouterr().out
    assert "left out" in printed
    assert [
        word for word in next(line for line in printed.splitlines() if "box_head " in line).split() if word.isdigit()
    ] == ["0", "0", "0", "0", "7"]
    assert "encoder's pyramid levels P2-P5" in printed


def test_a_run_of_the_wrong_kind_is_named_so(
    tiny: Any, make_config: Any, coco_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    configs = {"first": tiny(), "second": make_config()}
    for name, config in configs.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(dump_yaml(config))
    told = {
        "first": "is a pretraining run, and a transfer run is needed here; that one goes on with: codo pretrain",
        "second": "is a transfer run, and a pretraining run is needed here; that one goes on with: codo transfer",
    }
    for command in (["transfer", "--resume", "first"], ["pretrain", "--resume", "second"], ["probe", "second"]):
        run = command.pop()
        assert codo(*command, tmp_path / run) == 2
        assert f"{told[run]} --resume {tmp_path / run}\n" in capsys.readouterr().err
    picture = next(coco_root.rglob("*.png"))
    assert codo("predict", tmp_path / "first", picture) == 2
    assert f"{told['first']} --resume {tmp_path / 'first'}\n" in capsys.readouterr().err
    (tmp_path / "second" / "summary.json").write_text("{}")
    assert codo("probe", tmp_path / "second") == 2
    assert "is a transfer run, and a pretraining run is needed here\n" in capsys.readouterr().err


def test_images_to_evaluate_on_without_boxes_are_warned_of(
    coco_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = json.loads((coco_root / "instances_val.json").read_text())
    (tmp_path / "val.json").write_text(json.dumps({**content, "annotations": []}))
    for val, warned in ((tmp_path / "val.json", True), (coco_root / "instances_val.json", False)):
        assert codo("transfer", "--data", coco_root, "--val-json", val, "--dry-run", *TINY) == 0
        assert ("to evaluate on have no boxes" in capsys.readouterr().err) is warned


def test_parts_that_do_not_fit_are_warned_of_with_what_would(
    coco_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file that says nothing of its architecture, as what `codo export` writes."""
    torch.save(encoder_state(), tmp_path / "w.pth")
    command = ["transfer", "--data", coco_root, "--weights", tmp_path / "w.pth", "--dry-run", *TINY]
    backbone = ["--set", f"architecture.backbone={ARCHITECTURE.backbone}"]
    assert codo(*command, *backbone) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "in the file, but fresh, as it does not fit: fpn (" in said
    given = said.partition("it would with ")[2].split()[:8]
    assert given == [
        word
        for name in ("fpn_channels", "box_head_convs", "box_head_channels", "box_head_fc")
        for word in ("--set", f"architecture.{name}={getattr(ARCHITECTURE, name)}")
    ]
    assert codo(*command, *backbone, *given) == 0
    assert "does not fit" not in capsys.readouterr().err


def test_a_schedule_that_is_mostly_warm_up_is_warned_of(coco_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for warmup, warned in ((4, True), (3, False)):
        steps = ["--epochs", "3", "--set", f"optim.warmup_iterations={warmup}"]  # 6 steps
        assert codo("transfer", "--data", coco_root, "--weights", "none", "--dry-run", *steps, *TINY) == 0
        out, err = capsys.readouterr()
        assert (f"{warmup} of 6 steps are warm-up" in " ".join((out + err).split())) is warned


def test_a_probe_of_random_parts_is_warned_of_and_recorded(
    coco_root: Path, pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    probe = ["transfer", "--data", coco_root, "--protocol", "probe", *TINY]
    out, statistics = tmp_path / "run", "statistics that it has on the training images"
    assert codo(*probe, "--weights", pretrained, "--load", "backbone", "--out", out, "--epochs", "1") == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "frozen but not pretrained: fpn, box_head; what of them was not loaded is random and stays so" in said
    assert statistics in said
    for name in ("coverage.json", "summary.json"):
        assert json.loads((out / name).read_text())["frozen_but_fresh"] == ["fpn", "box_head"]
    assert codo(*probe, "--weights", pretrained, "--dry-run") == 0
    assert "frozen but not pretrained" not in capsys.readouterr().err
    batch = ["--frozen-norm", "batch", "--set", "architecture.backbone=resnet10t"]
    assert codo(*probe, "--weights", "none", *batch, "--dry-run") == 0
    said = capsys.readouterr().err
    assert "frozen but not pretrained: backbone, fpn, box_head" in said
    assert statistics not in said


@pytest.mark.parametrize(
    ("flags", "epochs", "iterations"),
    [
        (["--epochs", "3"], 3, None),
        (["--preset", "1x", "--epochs", "3"], 3, None),
        (["--schedule", "2x"], None, 720_000),  # at the preset's batch of 4
        (["--schedule", "2x", "--batch-size", "16"], None, 180_000),
        (["--schedule", "12k", "--batch-size", "8"], None, 24_000),
        (["--preset", "1x", "--batch-size", "8"], None, 180_000),
        (["--preset", "1x", "--batch-size", "8", "--set", "optim.iterations=7"], None, 7),
        (["--preset", "1x"], None, 90_000),
        ([], 12, None),
    ],
)
def test_the_length_of_the_schedule(
    monkeypatch: pytest.MonkeyPatch, flags: list[str], epochs: int | None, iterations: int | None
) -> None:
    seen: list[TransferConfig] = []

    def stand_in(config: TransferConfig, *_: object) -> TransferResult:
        seen.append(config)
        raise SystemExit(0)

    monkeypatch.setattr("codo.jobs.transfer.transfer", stand_in)
    assert codo("transfer", *flags) == 0
    assert (seen[0].optim.epochs, seen[0].optim.iterations) == (epochs, iterations)


def test_the_twelve_metrics_fit_80_columns(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "_width", 80)
    print_metrics({"metrics": dict.fromkeys(METRIC_NAMES, 100.0), "per_class": []}, "squares val")
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line) <= 80 for line in lines)
    header, values = lines[2], lines[4]
    assert header.replace("┃", " ").split() == list(METRIC_NAMES)
    assert values.replace("│", " ").split() == ["100.0"] * 12


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--data", "absent"], "absent"),
        (["--weights", "absent"], "there is nothing at absent"),
        (["--epochs", "1", "--schedule", "1x"], "both set the length"),
        (["--resume", "x", "--preset", "1x"], "own config"),
        (["--resume", "absent"], "not a run folder"),
        (["--load", "backbone"], "weights=none there are none"),
        (["--fraction", "2"], "data.fraction = 2"),
        (["--set", "optim.learning_rate=1"], "no field 'optim.learning_rate'"),
        (["--norm", "frozen_bn"], "weights=none use bn"),
        (["--dry-run", "--set", "run.device=xpu"], "run.device: xpu"),
        (["--dry-run", "--device", "cpu", "--set", "run.threads=999"], "exceed the"),
        (["--dry-run", "--out", "x", "--seeds", "1,1"], "--seeds 1,1"),
    ],
)
def test_mistakes_end_in_one_line_and_exit_code_2(
    flags: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert codo("transfer", *flags) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert list(tmp_path.iterdir()) == []
