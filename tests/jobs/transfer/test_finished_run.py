"""`codo evaluate` and `codo predict`, on a run of seconds."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from pycocotools import mask as coco_mask
from rich.console import Console
from transfer_parts import encoder_state, metadata

from codo.config.transfer import TransferConfig
from codo.data.coco import CocoDataset, load_coco
from codo.errors import CodoError
from codo.jobs.transfer import transfer
from codo.jobs.transfer.data import val_paths
from codo.jobs.transfer.draw import colour, draw_detections
from codo.jobs.transfer.evaluate import detect
from codo.jobs.transfer.evaluate_run import evaluate_run, match_categories
from codo.jobs.transfer.finished import open_run
from codo.jobs.transfer.predict import predict
from codo.runs.hardware import available_cores
from codo.runs.weights_file import read_weights, save_weights
from tests.parts import codo


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {}


@pytest.fixture
def run(
    runs: dict[str, Path],
    make_config: Callable[..., TransferConfig],
    masked_root: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A Mask R-CNN that has learnt a little; made once."""
    if "mask_rcnn" not in runs:
        root = tmp_path_factory.mktemp("own") / "squares"
        shutil.copytree(masked_root, root)
        optim = {"epochs": 14, "batch_size": 6, "lr": 0.1, "warmup_iterations": 5, "eval_every": 14}
        detection = {"score_threshold": 0.05, "detections_per_image": 20}
        config = make_config(detector="mask_rcnn", data={"root": str(root)}, optim=optim, detection=detection)
        runs["mask_rcnn"] = transfer(config, tmp_path_factory.mktemp("runs") / "run").path
    return runs["mask_rcnn"]


def change_json(file: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def test_the_runs_own_data_give_the_runs_own_metrics(run: Path, tmp_path: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    found = evaluate_run(run, out=tmp_path / "out")
    for key in ("metrics", "mask_metrics", "errors", "mask_errors", "per_class"):
        assert found[key] == summary[key]
    assert found["run_fingerprint"] == summary["fingerprint"]
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text()) == json.loads(json.dumps(found))
    ours, theirs = (json.loads((f / "predictions.json").read_text()) for f in (tmp_path / "out", run))
    assert ours == theirs
    assert len(ours) > 0
    assert found["metrics"]["AP50"] > 0


def test_the_place_is_looked_at_before_the_work(
    run: Path, masked_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any) -> None:
        pytest.fail("the work was begun")

    def refuse(**_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("codo.jobs.transfer.evaluate_run.evaluate", fail)
    (tmp_path / "file").touch()
    for command in (["evaluate", run], ["predict", run, masked_root / "images"]):
        assert codo(*command, "--out", run) == 2
        assert capsys.readouterr().err == f"Error: --out {run} exists already; name another folder\n"
        assert codo(*command, "--out", tmp_path / "file" / "out") == 2
        assert f"{tmp_path / 'file'} is a file" in capsys.readouterr().err
    monkeypatch.setattr("tempfile.NamedTemporaryFile", refuse)
    assert codo("evaluate", run, "--out", tmp_path / "out") == 2
    assert f"--out {tmp_path / 'out'}: cannot write" in capsys.readouterr().err


def test_a_disk_that_fills_up_leaves_the_metrics_on_the_screen(
    run: Path, tmp_path: Path, full_disk: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    with full_disk(100):
        assert codo("evaluate", run, "--out", tmp_path / "out") == 2
    captured = capsys.readouterr()
    assert "COCO box metrics" in captured.out
    assert "predictions.json: File too large" in captured.err
    assert list((tmp_path / "out").iterdir()) == []


def test_pictures_whose_names_are_no_utf8(run: Path, masked_root: Path, tmp_path: Path) -> None:
    """One that can be read and one that cannot."""
    names = [b"caf\xe9.png".decode("utf-8", "surrogateescape"), b"\xff.png".decode("utf-8", "surrogateescape")]
    content = json.loads((masked_root / "instances_val.json").read_text())
    for entry, name in zip(content["images"], names, strict=False):
        (masked_root / "images" / entry["file_name"]).rename(masked_root / "images" / name)
        entry["file_name"] = name
    (masked_root / "instances_val.json").write_text(json.dumps(content))
    (masked_root / "images" / names[1]).write_bytes(b"no picture")
    evaluate_run(run, data=str(masked_root), out=tmp_path / "out")
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text())["unreadable_images"] == [names[1]]
    found = predict(run, [masked_root / "images" / name for name in names], out=tmp_path / "found")
    assert [i["file_name"] for i in json.loads((found.path / "images.json").read_text())["images"]] == names[:1]
    assert len(found.unreadable) == 1


def test_only_the_validation_split_is_asked_for(
    coco_root: Path, tmp_path: Path, make_config: Callable[..., TransferConfig]
) -> None:
    simple, official = tmp_path / "simple", tmp_path / "official"
    shutil.copytree(coco_root, simple)
    config = make_config(data={"root": str(simple)})
    with_both = val_paths(config)
    (simple / "instances_train.json").unlink()
    assert val_paths(config) == with_both == ("simple", simple / "instances_val.json", simple / "images")
    for year in ("2014", "2017"):
        shutil.copytree(coco_root / "images", official / f"val{year}")
        (official / "annotations").mkdir(exist_ok=True)
        shutil.copy(coco_root / "instances_val.json", official / "annotations" / f"instances_val{year}.json")
    newest = official / "annotations" / "instances_val2017.json"
    assert val_paths(make_config(data={"root": str(official)})) == ("official", newest, official / "val2017")
    shutil.copy(coco_root / "instances_train.json", official / "annotations" / "instances_train2014.json")
    assert val_paths(make_config(data={"root": str(official)}))[2] == official / "val2014"  # as training takes it
    (simple / "instances_val.json").unlink()
    with pytest.raises(CodoError, match="no validation annotations"):
        val_paths(config)


def test_other_ids_of_the_same_names_are_matched(run: Path, masked_root: Path, tmp_path: Path) -> None:
    def renumber(content: dict[str, Any]) -> None:
        numbers = {90: 1, 7: 2}
        for entry in content["categories"]:
            entry["id"] = numbers[entry["id"]]
        for a in content["annotations"]:
            a["category_id"] = numbers[a["category_id"]]

    same = evaluate_run(run, data=str(masked_root))
    change_json(masked_root / "instances_val.json", renumber)
    other = evaluate_run(run, data=str(masked_root), out=tmp_path / "out")
    assert other["metrics"] == same["metrics"]
    assert [c["category_id"] for c in other["per_class"]] == [1, 2]
    assert {r["category_id"] for r in json.loads((tmp_path / "out" / "predictions.json").read_text())} <= {1, 2}


def test_a_run_of_a_larger_machine_is_used_and_one_of_other_weights_is_refused(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    text = (copy / "config.yaml").read_text()
    config = yaml.safe_load(text)
    config["run"] |= {"workers": 64, "threads": 64}
    (copy / "config.yaml").write_text(yaml.safe_dump(config))
    assert open_run(copy).hardware.threads <= available_cores()
    with pytest.raises(CodoError, match="exceed"):
        open_run(copy, {"run.threads": 64})
    state, told = read_weights(copy / "weights.safetensors")
    architecture = json.loads(told["architecture"]) | {"backbone": f"{tmp_path}/evil.py:Body"}
    (tmp_path / "evil.py").write_text("raise SystemExit('run')")
    save_weights(copy / "weights.safetensors", state, told | {"architecture": json.dumps(architecture)})
    with pytest.raises(CodoError, match=r"is not the detector that config\.yaml describes: it has another arch"):
        open_run(copy)


def test_a_closed_pipe_does_not_lose_an_evaluation(run: Path, masked_root: Path, tmp_path: Path) -> None:
    def closed(_: object) -> None:
        raise SystemExit(141)

    with pytest.raises(SystemExit):
        evaluate_run(run, data=str(masked_root), out=tmp_path / "out", on_found=closed)
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text())["metrics"]["AP"] is not None


def test_a_class_that_the_data_lack_does_not_count(run: Path, masked_root: Path) -> None:
    def only_dark(content: dict[str, Any]) -> None:
        content["categories"] = [c for c in content["categories"] if c["id"] == 90]
        content["annotations"] = [a for a in content["annotations"] if a["category_id"] == 90]

    per_class = {c["category_id"]: c["AP"] for c in evaluate_run(run, data=str(masked_root))["per_class"]}
    change_json(masked_root / "instances_val.json", only_dark)
    found = evaluate_run(run, data=str(masked_root))
    assert found["metrics"]["AP"] == per_class[90]
    assert found["data"]["classes_absent"] == ["[light] square"]


def test_any_json_and_folder_can_be_named(run: Path, masked_root: Path, coco_root: Path) -> None:
    json_path, images = masked_root / "instances_train.json", masked_root / "images"
    found = evaluate_run(run, annotations=str(json_path), images=str(images))
    assert (found["data"]["images"], found["data"]["annotations"]) == (6, "instances_train.json")
    assert evaluate_run(run, data=str(masked_root), annotations=str(json_path))["metrics"] == found["metrics"]
    boxes_alone = evaluate_run(run, data=str(coco_root))
    assert boxes_alone["masks"] == "the data set has none"
    assert "mask_metrics" not in boxes_alone


def test_unknown_categories_are_named() -> None:
    run = {7: "cat", 90: "dog"}

    def match(categories: dict[int, str], run: dict[int, str] = run) -> dict[int, int]:
        return match_categories(run, CocoDataset([], {}, categories, {}), Path("a.json"))

    assert match({90: "dog"}) == {90: 90}
    assert match({1: "dog", 7: "cat"}) == {1: 90, 7: 7}
    assert match({7: "dog", 90: "cat"}) == {7: 90, 90: 7}
    with pytest.raises(CodoError, match=r"a\.json: the run knows no category 8 'bird'; it was trained on 'cat', 'dog'"):
        match({7: "cat", 8: "bird"})
    with pytest.raises(CodoError, match="lists no categories"):
        match({})
    with pytest.raises(CodoError, match="names that occur twice"):
        match({1: "cat", 2: "cat"})
    assert match({1: "cat", 2: "cat"}, {1: "cat", 2: "cat"}) == {1: 1, 2: 2}


def test_predictions_are_drawn_and_are_coco_results(run: Path, masked_root: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    (photos / "deep").mkdir(parents=True)
    names = ["val_0.png", "val_1.png"]
    for name in names:
        shutil.copy(masked_root / "images" / name, photos / "deep" / name)
    (photos / "broken.jpg").write_bytes(b"no picture")
    single = masked_root / "images" / "val_0.png"
    made = predict(run, [photos, single, single], out=tmp_path / "out", score_threshold=0.2)
    assert (made.images, len(made.unreadable)) == (3, 1)
    listed = json.loads((tmp_path / "out" / "images.json").read_text())
    assert [i["file_name"] for i in listed["images"]] == ["deep/val_0.png", "deep/val_1.png", "val_0.png"]
    assert listed["categories"] == [{"id": 7, "name": "[light] square"}, {"id": 90, "name": "dark square"}]
    results = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert results == made.results
    assert len(results) > 0
    sizes = {i["id"]: (i["width"], i["height"]) for i in listed["images"]}
    for r in results:
        assert r["score"] >= 0.2
        assert r["category_id"] in (7, 90)
        assert r["segmentation"]["size"] == [*reversed(sizes[r["image_id"]])]
    for image in listed["images"]:
        before = np.asarray(Image.open((photos if "/" in image["file_name"] else single.parent) / image["file_name"]))
        drawn = np.asarray(Image.open(tmp_path / "out" / "pictures" / f"{image['file_name']}.jpg"))
        assert drawn.shape == before.shape
        changed = np.abs(drawn.astype(int) - before.astype(int)).mean()
        assert (changed > 4) == any(r["image_id"] == image["id"] for r in results)
    # The same detections that the evaluation writes, but for those below the threshold.
    own = [r for r in json.loads((run / "predictions.json").read_text()) if r["image_id"] == 500 and r["score"] >= 0.2]
    mine = [r for r in results if r["image_id"] == listed["images"][-1]["id"]]
    assert [(r["bbox"], r["score"]) for r in mine] == [(r["bbox"], r["score"]) for r in own]


@pytest.mark.parametrize("chosen", [True, False])
def test_what_is_stopped_leaves_no_folder_and_can_be_asked_for_again(
    chosen: bool, run: Path, masked_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    out, pictures = tmp_path / "out", [masked_root / "images" / f"val_{i}.png" for i in range(2)]
    place = out if chosen else Path("runs") / "predict-1"

    def stopped(*arguments: Any) -> Any:
        if arguments[2].id == 2:
            raise KeyboardInterrupt
        return detect(*arguments)

    for module in ("predict.detect", "evaluate.detect"):
        monkeypatch.setattr(f"codo.jobs.transfer.{module}", stopped)
    with pytest.raises(KeyboardInterrupt):
        predict(run, pictures, out=out if chosen else None)
    monkeypatch.setattr("codo.jobs.transfer.predict.detect", detect)
    pictures[1].write_bytes(b"no picture")
    with pytest.raises(CodoError, match="not one of 1 images"):
        predict(run, pictures[1:], out=out if chosen else None)
    assert not list(place.parent.glob("*out*")) + list(place.parent.glob("*predict*"))
    assert predict(run, pictures, out=out if chosen else None).path == place
    assert (place / "pictures" / "val_0.png.jpg").is_file()
    assert (place / "predictions.json").is_file()


def test_an_evaluation_that_is_stopped_leaves_no_folder(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("codo.jobs.transfer.evaluate_run.evaluate", stopped)
    with pytest.raises(KeyboardInterrupt):
        evaluate_run(run, out=tmp_path / "new" / "out")
    assert not (tmp_path / "new").exists()


def test_a_last_picture_that_is_broken_leaves_the_terminal_its_cursor(
    run: Path, masked_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = io.StringIO()
    terminal = Console(file=file, force_terminal=True, _environ={"TERM": "xterm"})
    monkeypatch.setattr("codo.runs.console.stderr", terminal)
    (tmp_path / "z.png").write_bytes(b"no picture")
    predict(run, [masked_root / "images" / "val_0.png", tmp_path / "z.png"], out=tmp_path / "out")
    hide, show = "\x1b[?25l", "\x1b[?25h"
    assert file.getvalue().count(hide) == file.getvalue().count(show) == 1
    assert "2/2" in file.getvalue()


def test_what_is_drawn_is_where_it_was_found() -> None:
    image = np.full((100, 120, 3), 128, np.uint8)
    mask = np.zeros((100, 120), np.uint8)
    mask[60:80, 40:80] = 1
    rle = coco_mask.encode(np.asfortranarray(mask))
    result = {"category_id": 5, "bbox": [30.0, 50.0, 60.0, 40.0], "score": 0.5, "segmentation": rle}
    drawn = np.asarray(draw_detections(image, [result], {3: "a", 5: "b"})).astype(int)
    ink = np.array(colour(1))
    np.testing.assert_array_equal(drawn[90, 35:85], np.broadcast_to(ink, (50, 3)))  # the box's lower edge
    np.testing.assert_allclose(drawn[70, 60], 0.55 * 128 + 0.45 * ink, atol=1)
    np.testing.assert_array_equal(drawn[84, 60], [128, 128, 128])  # in the box, beside the mask
    np.testing.assert_array_equal(drawn[95, 100], [128, 128, 128])
    assert colour(0) != colour(1)
    # At an edge the label stays in the picture, and nothing found leaves it alone.
    corner = {"category_id": 3, "bbox": [0.0, 0.0, 5.0, 5.0], "score": 1.0}
    assert draw_detections(image, [corner], {3: "a name longer than the picture is wide, by far"}).size == (120, 100)
    np.testing.assert_array_equal(np.asarray(draw_detections(image, [], {})), image)


def test_both_commands_print_and_write(
    run: Path, masked_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert codo("evaluate", run, "--data", masked_root, "--device", "cpu", "--out", tmp_path / "e") == 0
    printed = capsys.readouterr().out
    assert "instances_val.json: 3 images, 6 boxes, 2 classes; masks: evaluated" in printed
    assert "COCO mask metrics" in printed
    assert "[light] square" in printed
    assert {f.name for f in (tmp_path / "e").iterdir()} == {"evaluation.json", "predictions.json"}
    picture = masked_root / "images" / "val_0.png"
    assert codo("predict", run, picture, "--out", tmp_path / "p", "--score-threshold", "0.3") == 0
    assert "1 images" in capsys.readouterr().out
    assert (tmp_path / "p" / "pictures" / "val_0.png.jpg").is_file()


def test_the_best_is_taken_where_there_is_one(
    run: Path, masked_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "run"
    shutil.copytree(run, other)
    (other / "best.safetensors").unlink(missing_ok=True)
    end, told = read_weights(other / "weights.safetensors")
    assert codo("evaluate", other, "--best", "--data", masked_root) == 0
    assert "weights.safetensors, the end of training; there is no best.safetensors" in capsys.readouterr().out
    best = {name: value + 1 if name.endswith("cls_score.bias") else value for name, value in end.items()}
    save_weights(other / "best.safetensors", best, {**told, "step": "7", "AP": "12.3456"})
    name = "roi_heads.box_predictor.cls_score.bias"
    assert torch.equal(open_run(other).detector.state_dict()[name], end[name])
    assert torch.equal(open_run(other, best=True).detector.state_dict()[name], best[name])
    assert "the end" in evaluate_run(other)["weights"]
    assert codo("evaluate", other, "--best", "--data", masked_root) == 0
    said = "weights: best.safetensors, of step 7, AP 12.3456 on the run's own data"
    assert said in " ".join(capsys.readouterr().out.split())
    picture = masked_root / "images" / "val_0.png"
    assert codo("predict", other, picture, "--best", "--out", tmp_path / "p") == 0
    assert said in " ".join(capsys.readouterr().out.split())


def test_mistakes_end_in_one_line(
    run: Path, masked_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    unfinished, pretraining, mixed = tmp_path / "unfinished", tmp_path / "pretraining", tmp_path / "mixed"
    for folder in (unfinished, pretraining, mixed):
        shutil.copytree(run, folder)
    (unfinished / "weights.safetensors").unlink()
    save_weights(pretraining / "weights.safetensors", encoder_state(), metadata())
    text = (mixed / "config.yaml").read_text()
    (mixed / "config.yaml").write_text(text.replace("detector: mask_rcnn", "detector: fcos"))
    change_json(masked_root / "instances_val.json", lambda c: c["categories"].append({"id": 4, "name": "cat"}))
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "a.jpg").write_bytes(b"no")
    monkeypatch.chdir(tmp_path)
    for arguments, message in (
        (["evaluate", "absent"], "absent is not a run folder"),
        (["evaluate", unfinished], "not finished; go on with: codo transfer --resume"),
        (["predict", pretraining, "x.jpg"], "no image or folder at x.jpg"),
        (["predict", pretraining, empty], "is a pretraining run, without a detector"),
        (["evaluate", mixed], "not the detector that config.yaml describes"),
        (["evaluate", run, "--data", masked_root], "knows no category 4 'cat'"),
        (["evaluate", run, "--data", "absent"], "absent"),
        (["evaluate", run, "--json", "a.json"], "--json and --images go together"),
        (["evaluate", run, "--out", empty], "exists already"),
        (["predict", run, empty, "--out", "p"], "not one of 1 images can be read"),
        (["predict", run, masked_root / "images", "--out", empty], "exists already"),
        (["evaluate", run, "--device", "gpu7"], "device"),
    ):
        assert codo(*arguments) == 2, arguments  # type: ignore[arg-type]
        error = capsys.readouterr().err
        assert message in " ".join(error.split()), (arguments, error)
        assert "Traceback" not in error


def test_an_opened_run_is_the_trained_detector(run: Path, masked_root: Path) -> None:
    opened = open_run(run)
    assert opened.masks
    assert opened.categories == {7: "[light] square", 90: "dark square"}
    assert not opened.detector.training
    assert load_coco(masked_root / "instances_val.json", masked_root / "images").categories == opened.categories
