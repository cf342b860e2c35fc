"""Several seeds of one transfer, and runs side by side."""

from __future__ import annotations

import io
import json
import shutil
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from scipy import stats
from test_transfer_run import stop_after

from codo.cli.compare import _seeds_table
from codo.config.load import dump_yaml, read_yaml
from codo.config.transfer import TransferConfig
from codo.errors import CodoError, Interrupted
from codo.jobs.transfer import transfer
from codo.jobs.transfer.compare import compare, over_seeds
from codo.jobs.transfer.seeds import summarise, transfer_seeds
from tests.parts import codo

Make = Callable[..., TransferConfig]
SHORT = {"epochs": None, "iterations": 2, "batch_size": 2, "lr": 0.02, "warmup_iterations": 2}


def test_seeds_go_on_where_they_were_stopped(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, out, said = make_config(optim=SHORT, data={"fraction": 0.67}), tmp_path / "out", list[str]()
    with monkeypatch.context() as patch:
        transfer(config.model_copy(update={"seed": 3}), out / "seed-3")
        stop_after(patch, 1)
        with pytest.raises(Interrupted):
            transfer_seeds(config, [3, 1], out)
    (out / "seed-8").mkdir()  # killed before its first checkpoint
    shutil.copy(out / "seed-3" / "coverage.json", out / "seed-8")
    finished = (out / "seed-3" / "summary.json").stat().st_mtime_ns
    found = transfer_seeds(config, [3, 1, 8], out, say=said.append).summary
    assert (out / "seed-3" / "summary.json").stat().st_mtime_ns == finished
    assert [text for text in said if "before" in text] == ["finished before, kept", "stopped before, goes on"]
    assert found == json.loads((out / "seeds.json").read_text())
    assert found["seeds"] == [3, 1, 8]
    runs = [json.loads((out / f"seed-{seed}" / "summary.json").read_text()) for seed in (3, 1, 8)]
    assert [run["seed"] for run in runs] == [3, 1, 8]
    for name, row in {**found["metrics"], "curve_area": found["curve_area"]}.items():
        values = [run["metrics"].get(name, run["curve_area"]) for run in runs]
        assert row["values"] == values
        if None not in values:
            assert row["mean"] == pytest.approx(sum(values) / 3)
            assert row["std"] == pytest.approx(statistics.stdev(values))
    assert {"curve.png", "curve.svg"} <= {path.name for path in out.iterdir()}
    # Each seed trained on its own share of one data set: they compare.
    together = compare([out])
    (area,) = together.as_dict()["over_seeds"]["curve_area"]
    assert (area["group"], area["n"]) == (str(out), 3)
    assert [area["mean"], area["std"]] == pytest.approx([found["curve_area"][key] for key in ("mean", "std")])
    assert {run["group"] for run in together.runs} == {str(out)}
    assert [run["seed"] for run in together.runs] == [1, 3, 8]
    assert len({run["data"]["fingerprint"] for run in runs}) > 1
    with pytest.raises(CodoError, match=r"seed-3 holds a run of another config \(optim\.lr 0\.02 -> 0\.5\)"):
        transfer_seeds(make_config(optim={**SHORT, "lr": 0.5}, data={"fraction": 0.67}), [3], out)
    with pytest.raises(CodoError, match="is a run"):
        transfer_seeds(config, [0], out / "seed-3")
    with pytest.raises(CodoError, match="each once"):
        transfer_seeds(config, [1, 1], out)
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR"):
        monkeypatch.setenv(name, "0")
    with pytest.raises(CodoError, match="one process at a time"):
        transfer_seeds(config, [1], out)


def test_a_stopped_seed_goes_on_as_the_call_says(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(optim=SHORT)
    with monkeypatch.context() as patch:
        stop_after(patch, 1)
        with pytest.raises(Interrupted):
            transfer_seeds(config, [0], tmp_path)
    anew = config.model_copy(update={"run": config.run.model_copy(update={"precision": "bf16"})})
    transfer_seeds(anew, [0, 1], tmp_path)
    for seed in (0, 1):
        assert read_yaml(tmp_path / f"seed-{seed}" / "config.yaml")["run"]["precision"] == "bf16"


@pytest.mark.parametrize("part", ["weights", "data"])
def test_seeds_of_other_weights_or_data_are_not_mixed(make_config: Make, tmp_path: Path, part: str) -> None:
    """The same paths, whose files were changed in between."""
    config = make_config(weights="runs/pretrained")
    for seed in (0, 4, 5):
        folder = tmp_path / f"seed-{seed}"
        folder.mkdir()
        (folder / "config.yaml").write_text(dump_yaml(config.model_copy(update={"seed": seed})))
        marks = {"weights": "a", "data": "b", **({part: "other"} if seed else {})}
        summary = {
            "seed": seed,
            "weights": {"source": "pretrained", "sha256": marks["weights"]},
            "data": {"name": "a", "fraction": 1.0, "fingerprint": str(seed), "whole_fingerprint": marks["data"]},
        }
        others = dict.fromkeys(("detector", "protocol", "steps", "metrics", "curve", "curve_area", "train_seconds"))
        (folder / "summary.json").write_text(json.dumps(summary | others))
    with pytest.raises(CodoError, match=rf"the {part} of seed 4 are not those of seed 0") as refused:
        transfer_seeds(config, [0, 4], tmp_path)
    assert "\n" not in str(refused.value)
    (folder / "summary.json").write_text("{}")
    with pytest.raises(CodoError, match=rf'^cannot read {folder / "summary.json"}: it lacks "seed"$'):
        transfer_seeds(config, [5], tmp_path)
    assert not (tmp_path / "seeds.json").exists()


def test_one_seed_has_no_deviation_and_none_is_not_counted() -> None:
    base = {
        "detector": "fcos", "protocol": "probe", "weights": {"source": "none"}, "steps": 4, "train_seconds": 1.0,
        "data": {"name": "a", "fraction": 1.0},
    }  # fmt: skip
    runs = [
        {**base, "seed": i, "metrics": {"AP": ap, "APs": None}, "curve_area": ap} for i, ap in enumerate((1.0, 3.0))
    ]
    assert summarise(runs[:1])["metrics"]["AP"] == {"mean": 1, "std": None, "n": 1, "values": [1.0]}
    both = summarise(runs)["metrics"]
    assert both["AP"] == {"mean": 2, "std": pytest.approx(2**0.5), "n": 2, "values": [1.0, 3.0]}
    assert both["APs"] == {"mean": None, "std": None, "n": 0, "values": [None, None]}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


def run_of(make_config: Make, made: Path, name: str, **fields: Any) -> Path:
    if not (made / name).exists():
        transfer(make_config(optim=SHORT, **fields), made / name)
    return made / name


def test_runs_of_one_protocol_stand_side_by_side(
    make_config: Make, pretrained: Path, made: Path, tmp_path: Path, coco_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    elsewhere = tmp_path / "squares"
    shutil.copytree(coco_root, elsewhere)
    none = run_of(make_config, made, "none")
    loaded = run_of(make_config, made, "loaded", weights=str(pretrained), seed=2, data={"root": str(elsewhere)})
    found = compare([none, loaded])
    assert (found.differing, found.over_seeds) == ({}, {})
    assert [row["load"] for row in found.runs] == [None, "backbone,fpn,box_head"]
    first, second = found.runs
    summary = json.loads((none / "summary.json").read_text())
    assert (first["weights"], first["fingerprint"], second["fingerprint"]) == ("none", None, "0123456789abcdef")
    assert (first["seed"], second["seed"], first["protocol"]) == (0, 2, "finetune")
    assert first["metrics"] == summary["metrics"]
    assert first["per_class"] == {entry["name"]: entry["AP"] for entry in summary["per_class"]}
    assert (first["errors"], first["steps_to_ap"]) == (summary["errors"], summary["steps_to_ap"])
    assert set(first["errors"]) >= {"classification", "localisation", "background", "missed"}
    assert codo("compare", none, loaded, "--json") == 0
    assert json.loads(capsys.readouterr().out) == found.as_dict()
    assert codo("compare", none, loaded) == 0
    printed = capsys.readouterr().out
    for text in (
        "AP75",
        "AP50 lost: missed",
        "AP of [light] square",
        "curve area",
        "0123456789abcdef",
        "training took",
        "backbone,fpn,box_head",
    ):
        assert text in printed


def test_errors_of_masks_and_steps_to_an_ap_are_compared(
    make_config: Make, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    none = run_of(make_config, made, "none")
    copies = []
    for name, changes in {
        "a": {"mask_errors": {"missed": 31.25}, "steps_to_ap": {"1": 40, "10": 8888}},
        "b": {"mask_errors": {"missed": 17.75}, "steps_to_ap": {"1": 20}},
    }.items():
        copies.append(shutil.copytree(none, tmp_path / name))
        summary = json.loads((none / "summary.json").read_text())
        (copies[-1] / "summary.json").write_text(json.dumps(summary | changes))
    rows = compare(copies).runs
    assert [row["mask_errors"]["missed"] for row in rows] == [31.25, 17.75]
    assert [row["steps_to_ap"] for row in rows] == [{"1": 40, "10": 8888}, {"1": 20}]
    assert codo("compare", *copies) == 0
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    for line in (
        ["mask AP50 lost: missed", "31.2", "17.8"],
        ["steps to AP 1", "40", "20"],
        ["steps to AP 10", "8888", "-"],
    ):
        assert line in lines


def test_other_protocols_are_refused_without_force(
    make_config: Make, made: Path, tmp_path: Path, coco_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    none = run_of(make_config, made, "none")
    other = run_of(make_config, made, "other", norm="gn", data={"fraction": 0.5}, detection={"min_size": [48]})
    with pytest.raises(CodoError) as refused:
        compare([none, other])
    told = str(refused.value)
    for text in ("norm: bn, gn", "data.fraction: 1.0, 0.5", "detection.min_size: [64], [48]", "--force"):
        assert text in told
    assert "\n" not in told
    assert set(compare([none, other], force=True).differing) == {"norm", "data.fraction", "detection.min_size"}
    assert codo("compare", none, other) == 2
    assert codo("compare", none, other, "--force") == 0
    assert "differs: norm" in capsys.readouterr().out
    spoilt = tmp_path / "squares"
    shutil.copytree(coco_root, spoilt)
    content = json.loads((spoilt / "instances_val.json").read_text())
    content["annotations"].pop()
    (spoilt / "instances_val.json").write_text(json.dumps(content))
    changed = run_of(make_config, made, "changed", data={"root": str(spoilt)})
    with pytest.raises(CodoError, match=r"different protocols \(data: "):
        compare([none, changed])


def test_folders_of_seeds_are_compared_seed_by_seed() -> None:
    values = {"none": {0: 1.0, 1: 4.0, 2: 2.0, 5: 9.0}, "codo": {2: 4.0, 1: 5.0, 0: 4.0}, "one": {0: 3.0}}
    runs = [
        {"group": group, "seed": seed, "metrics": {"AP": ap, "APs": None}, "curve_area": ap / 2}
        for group, by_seed in values.items()
        for seed, ap in by_seed.items()
    ]
    printed = Console(width=200, record=True, file=io.StringIO())
    found = over_seeds(runs)
    printed.print(_seeds_table(found))
    text = printed.export_text()
    assert "4.0 ± 3.6 (4)" in text
    assert "4.3 ± 0.6 (3)" in text
    test = stats.ttest_rel([4.0, 5.0, 4.0], [1.0, 4.0, 2.0])  # the seeds that both have
    low, high = test.confidence_interval(0.95)
    assert f"+2.0 [{low:+.1f}, {high:+.1f}], p {test.pvalue:.2g}" in text
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if "│" in line]
    assert ["APs", "-", "-", "-"] in lines
    assert next(line for line in lines if line[0] == "AP")[3] == "3.0"  # of one seed neither deviation nor test
    assert found["AP"][1]["p"] == pytest.approx(test.pvalue)
    assert found["AP"][2]["p"] is None
    assert [entry.get("pairs") for entry in found["AP"]] == [None, 3, 1]
    assert "pairs" not in text
    runs = [run for run in runs if (run["group"], run["seed"]) != ("none", 0)]
    printed.print(_seeds_table(over_seeds(runs)))
    assert "(2 pairs)" in printed.export_text()


def test_what_cannot_be_compared_is_said(make_config: Make, made: Path, tmp_path: Path) -> None:
    none = run_of(make_config, made, "none")
    for paths, said in (([none], "two or more"), ([none, tmp_path / "absent"], "not a run folder")):
        with pytest.raises(CodoError, match=said):
            compare(paths)
    shutil.copytree(none, tmp_path / "wider")
    config = tmp_path / "wider" / "config.yaml"
    config.write_text(config.read_text().replace("fpn_channels: 16", "fpn_channels: 32"))
    like = r"architecture\.fpn_channels: 16, 32\); codo transfer --weights none --like RUN builds"
    with pytest.raises(CodoError, match=like):
        compare([none, tmp_path / "wider"])
    shutil.copytree(none, tmp_path / "copy")
    (tmp_path / "copy" / "summary.json").write_text('{"kind": "pretrain"}')
    with pytest.raises(CodoError, match="no transfer run"):
        compare([none, tmp_path / "copy"])
    (tmp_path / "copy" / "summary.json").unlink()
    with pytest.raises(CodoError, match="not finished"):
        compare([none, tmp_path / "copy"])
    for name, content, said in (
        ("summary.json", "[]", "it is no JSON object"),
        ("summary.json", "{}", 'it lacks "kind"'),
        ("summary.json", '{"kind": "transfer"}', 'it lacks "data.name"'),
        ("environment.json", '{"fingerprint": "a"}', 'it lacks "hardware"'),
    ):
        shutil.copy(none / "summary.json", tmp_path / "copy")
        (tmp_path / "copy" / name).write_text(content)
        with pytest.raises(CodoError, match=rf"^cannot read {tmp_path / 'copy' / name}: {said}$"):
            compare([none, tmp_path / "copy"])


def test_seeds_protocol_and_freezing_on_the_command_line(
    make_config: Make, pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = tmp_path / "config.yaml", tmp_path / "out"
    file.write_text(dump_yaml(make_config(optim=SHORT, weights=str(pretrained))))
    command = ["transfer", "--config", file, "--protocol", "probe", "--seeds", "0,1", "--out", out]
    assert codo(*command) == 0
    printed = capsys.readouterr().out
    for text in (
        "protocol: probe; norm bn; frozen: backbone, fpn, box_head, norms there on their population statistics",
        "features: of the frozen trunk, computed once and kept",
        "schedule: 2 steps of 2 images (0.6667 epochs); lr 0.0025 (0.02 at batch 16) after 2 steps of warm-up, "
        "a tenth after 1, 2",
        "box_head 0.00 of 0.03 M",
        "2 seeds on squares val",
        "curve area",
    ):
        assert text in printed, text
    assert codo(*command) == 0
    assert capsys.readouterr().out.count("finished before, kept") == 2
    assert codo("transfer", "--config", file, "--freeze", "fpn,backbone", "--frozen-norm", "batch", "--dry-run") == 0
    assert "finetune, backbone + fpn frozen, batch statistics" in capsys.readouterr().out
    for flags, said in (
        (["--protocol", "probe", "--freeze", "fpn"], "both say what is frozen"),
        (["--seeds", "0,1"], "goes with --out"),
        (["--seeds", "0,x", "--out", "somewhere"], "numbers with commas"),
        (["--freeze", "neck"], "freeze"),
    ):
        assert codo("transfer", "--config", file, *flags) == 2
        assert said in capsys.readouterr().err
