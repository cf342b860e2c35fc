import json
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transfer_parts import ARCHITECTURE

from codo.config.load import dump_yaml
from codo.config.transfer import TransferConfig, TransferOptimSection
from codo.errors import CodoError, Interrupted
from codo.jobs.transfer import load_transfer_config, resume, transfer
from codo.jobs.transfer.compare import compare
from codo.jobs.transfer.data import load_data
from codo.jobs.transfer.dataset import DetectionDataset
from codo.jobs.transfer.evaluate_run import evaluate_run
from codo.jobs.transfer.loop import Training
from codo.jobs.transfer.run import Start, load_detector
from codo.jobs.transfer.schedule import learning_rate
from codo.jobs.transfer.seeds import transfer_seeds
from codo.runs import data_wait
from codo.runs.lock import Held
from codo.runs.record import RunFolder
from codo.runs.weights_file import read_weights, save_weights

Make = Callable[..., TransferConfig]


def stop_after(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Press Ctrl-C while step `step` is computed."""
    train_step = Training._train_step

    def pressed(self: Training, *arguments: Any) -> None:
        if self.step + 1 == step:
            signal.raise_signal(signal.SIGINT)
        train_step(self, *arguments)

    monkeypatch.setattr(Training, "_train_step", pressed)


def weights(run: Path) -> dict[str, torch.Tensor]:
    return read_weights(run / "weights.safetensors")[0]


def metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, without what depends on the clock."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("images_per_s", "data_wait")} for line in lines]


def test_waiting_for_data_is_said(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def read_slowly(self: DetectionDataset, key: tuple[int, int]) -> Any:
        time.sleep(0.3)
        return read(self, key)

    read = DetectionDataset.__getitem__
    monkeypatch.setattr(DetectionDataset, "__getitem__", read_slowly)
    monkeypatch.setattr(data_wait, "WARM_UP", 1)
    monkeypatch.setattr(data_wait, "READING", 1)
    transfer(make_config(optim={"epochs": 1}), tmp_path / "run")
    assert capsys.readouterr().err.count("% of the time is spent waiting for data.") == 2


def test_a_run_writes_all_that_it_says(make_config: Make, pretrained: Path, tmp_path: Path) -> None:
    started: list[Start] = []
    config = make_config(weights=str(pretrained))
    result = transfer(config, tmp_path / "run", started.append)
    run = result.path
    assert {path.name for path in run.iterdir()} == {
        "config.yaml",
        "environment.json",
        "coverage.json",
        "metrics.jsonl",
        "checkpoint.pt",
        "weights.safetensors",
        "predictions.json",
        "curve.png",
        "curve.svg",
        "summary.json",
    }
    assert (run / "config.yaml").read_text() == dump_yaml(config)
    coverage = json.loads((run / "coverage.json").read_text())
    assert coverage == started[0].loaded
    assert coverage["groups"]["fpn"]["counts"]["missing"] == 0
    assert coverage["proof"]["difference"] < 1e-4
    summary = json.loads((run / "summary.json").read_text())
    assert summary == result.summary
    assert summary["weights"]["run_fingerprint"] == "0123456789abcdef"
    assert [entry["epoch"] for entry in summary["curve"]] == [1, 2]
    assert summary["steps"] == 6
    assert [(c["category_id"], c["name"]) for c in summary["per_class"]] == [(7, "[light] square"), (90, "dark square")]
    predictions = json.loads((run / "predictions.json").read_text())
    assert {p["category_id"] for p in predictions} <= {7, 90}
    assert {p["image_id"] for p in predictions} == {500, 510, 520}
    for p in predictions:
        x, y, w, h = p["bbox"]
        assert x >= 0
        assert y >= 0
        assert w > 0
        assert h > 0
        assert x + w <= (96 if p["image_id"] == 510 else 80) + 0.02
    lines = metrics(run)
    terms = {"loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg"}
    assert [line["step"] for line in lines if terms <= line.keys()] == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in lines if "AP" in line] == [3, 6]
    assert lines[0]["loss"] == pytest.approx(sum(lines[0][term] for term in terms))


def test_a_picture_that_cannot_be_drawn_costs_no_summary(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise OSError("no picture")

    monkeypatch.setattr("codo.jobs.transfer.finish.plot_curves", fail)
    with pytest.raises(OSError, match="no picture"):
        transfer(make_config(optim={"epochs": 1}), tmp_path / "run")
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["steps"] == 3


def test_the_detector_file_starts_another_run(make_config: Make, tmp_path: Path) -> None:
    first = transfer(make_config(optim={"epochs": 1}), tmp_path / "first").path
    detector, loaded = load_detector(make_config(weights=str(first)), load_data(make_config()))
    assert loaded["weights"]["kind"] == "codo detector"
    name = "backbone.fpn.inner_blocks.0.0.weight"
    assert torch.equal(detector.state_dict()[name], weights(first)[name])


def test_detection_learns(make_config: Make, coco_root: Path, tmp_path: Path) -> None:
    """Overfits the squares: boxes, labels, ids and the way back to the original image must all be right for that."""
    own = {"val_json": str(coco_root / "instances_train.json")}
    optim = {"epochs": 40, "batch_size": 6, "lr": 0.1, "warmup_iterations": 5, "eval_every": 40, "flip_p": 0.0}
    result = transfer(make_config(data=own, optim=optim), tmp_path / "run")
    assert result.summary["metrics"]["AP50"] > 70


@pytest.mark.parametrize("step", [2, 3])
def test_a_stopped_run_ends_as_if_it_had_not_been(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """Within an epoch, and at its end, before the evaluation that is due there."""
    whole = transfer(make_config(), tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_after(patch, step)
        with pytest.raises(
            Interrupted, match=rf"after step {step} of 6; go on with: codo transfer --resume"
        ) as stopped:
            transfer(make_config(), tmp_path / "stopped")
    assert stopped.value.exit_code == 130
    assert not (tmp_path / "stopped" / "summary.json").exists()
    torch.manual_seed(99)  # another process has another global state
    result = resume(tmp_path / "stopped")
    for name, tensor in weights(whole.path).items():
        assert torch.equal(weights(result.path)[name], tensor), name
    assert result.summary["curve"] == whole.summary["curve"]
    assert metrics(result.path) == metrics(whole.path)
    assert result.summary["fingerprint"] == whole.summary["fingerprint"]


def test_an_evaluation_that_fails_loses_no_step(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = transfer(make_config(), tmp_path / "whole").path
    with monkeypatch.context() as patch:
        patch.setattr("codo.jobs.transfer.run.evaluate", lambda *given: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            transfer(make_config(), tmp_path / "run")
    assert torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["step"] == 3
    resume(tmp_path / "run")
    assert metrics(tmp_path / "run") == metrics(whole)
    after, expected = weights(tmp_path / "run"), weights(whole)
    assert all(torch.equal(after[name], tensor) for name, tensor in expected.items())


def test_a_run_stopped_before_its_last_evaluation_keeps_it_when_made_longer(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(optim={"epochs": None, "iterations": 4, "milestones": []})
    with monkeypatch.context() as patch:
        stop_after(patch, 4)
        with pytest.raises(Interrupted):
            transfer(config, tmp_path / "run")
    resume(tmp_path / "run")
    longer = resume(tmp_path / "run", {"optim.iterations": 6})
    assert [point["step"] for point in longer.summary["curve"]] == [3, 4, 6]


def test_a_run_that_is_at_work_is_refused_to_others(make_config: Make, tmp_path: Path) -> None:
    config, out, refused = make_config(optim={"epochs": 1}), tmp_path / "out", list[str]()

    def others(start: Start) -> None:
        """Before the first checkpoint, and, resumed, after one."""
        for other in (lambda: transfer_seeds(config, [3], out), lambda: resume(start.path, {"optim.epochs": 2})):
            with pytest.raises(Held, match=r"seed-3 is in use \(host .*, process \d+, since .*\); wait") as error:
                other()
            refused.append(str(error.value))

    transfer_seeds(config, [3], out, others)
    assert len(metrics(out / "seed-3")) == 4  # three steps, and their AP
    (out / "seed-3" / "summary.json").unlink()
    transfer_seeds(config, [3], out, others)
    assert len(refused) == 4
    assert len(metrics(out / "seed-3")) == 4
    assert not (out / "seed-3" / "lock").exists()


def kill_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Lose power while step `step` is computed: nothing is saved."""
    train_step = Training._train_step

    def lost(self: Training, *arguments: Any) -> None:
        if self.step + 1 == step:
            raise KeyboardInterrupt
        train_step(self, *arguments)

    monkeypatch.setattr(Training, "_train_step", lost)


def test_a_run_without_a_checkpoint_begins_again(
    make_config: Make, pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    config, run = make_config(weights=str(pretrained), optim={"epochs": 1}), tmp_path / "killed"
    whole = transfer(config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        kill_at(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            transfer(config, run)
    assert {file.name for file in run.iterdir()} == {
        "config.yaml",
        "environment.json",
        "coverage.json",
        "metrics.jsonl",
    }
    (run / ".checkpoint.pt.k1.tmp").write_bytes(b"half")
    file = pretrained / "weights.safetensors"
    kept = file.read_bytes()
    state, told = read_weights(file)
    save_weights(file, state, {**told, "fingerprint": "fedcba9876543210"})
    with pytest.raises(CodoError, match=r"the weights .*pretrained have changed since"):
        resume(run)
    file.write_bytes(kept)
    capsys.readouterr()
    moved = {"weights": str(pretrained.rename(tmp_path / "moved"))}
    with pytest.raises(CodoError, match=r"there is nothing at .*pretrained"):
        resume(run)
    result = resume(run, moved)
    assert "was stopped before its first checkpoint; it begins again" in capsys.readouterr().err
    for name, tensor in weights(whole.path).items():
        assert torch.equal(weights(run)[name], tensor), name
    assert metrics(run) == metrics(whole.path)
    assert result.summary["weights"] == whole.summary["weights"]
    assert not list(run.glob(".*.tmp"))
    (run / "checkpoint.pt").unlink()  # a finished run is not lost
    with pytest.raises(CodoError, match="no checkpoint at"):
        resume(run, {"optim.epochs": 2, **moved})
    assert (run / "summary.json").exists()
    assert (run / "weights.safetensors").exists()


def test_a_damaged_run_is_not_resumed_and_keeps_what_it_has(make_config: Make, tmp_path: Path) -> None:
    run = transfer(make_config(optim={"epochs": 1}), tmp_path / "run").path
    coverage = json.loads((run / "coverage.json").read_text())
    for name, content, said in (
        ("environment.json", '{"fingerprint": "a", "data": {}}', 'it lacks "data.fingerprint"'),
        ("coverage.json", '{"weights": {"source": "none"}}', 'it lacks "groups"'),
        ("environment.json", '{"fingerprint": "a", "data": {"fingerprint": "b"}}', 'it lacks "processes"'),
        ("coverage.json", json.dumps({**coverage, "groups": {}}), 'it lacks "groups.backbone.counts.matched"'),
        ("coverage.json", "[]", "it is no JSON object"),
        ("checkpoint.pt", "PK", "it is cut off or not a checkpoint"),
        ("metrics.jsonl", '{"step": 1}\n{"st\n{"step": 3}\n', "line 2 is damaged"),
    ):
        whole = (run / name).read_bytes()
        (run / name).write_text(content)
        with pytest.raises(CodoError, match=rf"{name}.*{said}") as raised:
            resume(run, {"optim.epochs": 2})
        assert "\n" not in str(raised.value)
        assert (run / "summary.json").exists()
        assert (run / "weights.safetensors").exists()
        (run / name).write_bytes(whole)
    assert resume(run, {"optim.epochs": 2}).summary["steps"] == 6


def test_the_number_of_workers_changes_nothing(make_config: Make, tmp_path: Path) -> None:
    """And the seed does."""
    runs = [
        transfer(make_config(optim={"epochs": 1}, run={"workers": workers, "threads": 1}, seed=seed), tmp_path / name)
        for name, workers, seed in (("a", 0, 0), ("b", 1, 0), ("c", 0, 1))
    ]
    a, b, c = (metrics(run.path) for run in runs)
    assert a == b
    assert a[0]["loss"] != c[0]["loss"]


def test_the_global_generator_is_left_alone(make_config: Make, tmp_path: Path) -> None:
    torch.manual_seed(11)
    before = torch.random.get_rng_state()
    transfer(make_config(optim={"epochs": 1}), tmp_path / "run")
    assert torch.equal(torch.random.get_rng_state(), before)


def test_fresh_parts_do_not_depend_on_the_weights(make_config: Make, pretrained: Path) -> None:
    data = load_data(make_config())
    scratch, _ = load_detector(make_config(), data)
    loaded, _ = load_detector(make_config(weights=str(pretrained)), data)
    for part in ("rpn", "roi_heads.box_predictor"):
        left, right = scratch.get_submodule(part), loaded.get_submodule(part)
        assert all(torch.equal(a, b) for a, b in zip(left.parameters(), right.parameters(), strict=True))


def test_what_a_resumed_run_may_change(
    make_config: Make, coco_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(coco_root, tmp_path / "squares")
    run = transfer(make_config(data={"root": str(tmp_path / "squares")}, optim={"epochs": 1}), tmp_path / "run").path
    for changes, message in (
        ({}, "is complete"),
        ({"optim.lr": 0.5}, r"optim\.lr 0\.02 -> 0\.5"),
        ({"seed": 3, "norm": "bn"}, "seed 0 -> 3"),
    ):
        with pytest.raises(CodoError, match=message):
            resume(run, changes)
    assert (run / "summary.json").exists()
    capsys.readouterr()
    longer = resume(run, {"optim.epochs": 2, "run.log_every": 2})
    assert [entry["epoch"] for entry in longer.summary["curve"]] == [1, 2]
    done = longer.summary["steps"] // 2
    assert f"its {done} steps went by a schedule of {done} steps" in " ".join(capsys.readouterr().err.split())
    environment = RunFolder(run).environment()
    assert environment["extended"] == [[done, done]]
    straight = transfer(make_config(data={"root": str(tmp_path / "squares")}, optim={"epochs": 2}), tmp_path / "other")
    assert environment["fingerprint"] != RunFolder(straight.path).environment()["fingerprint"]
    with pytest.raises(CodoError, match="extended"):
        compare([run, straight.path])
    with pytest.raises(CodoError, match=r"optim\.epochs 2 -> 1"):
        resume(run, {"optim.epochs": 1})
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}.items():
            patch.setenv(name, value)
        patch.setenv("MASTER_ADDR", "localhost")
        with pytest.raises(CodoError, match="the run began on 1 process, this is 2 processes; ") as refused:
            resume(run, {"optim.epochs": 3})
        assert "\n" not in str(refused.value)
    moved = (tmp_path / "squares").rename(tmp_path / "moved")
    for refused in (lambda: resume(run, {"optim.epochs": 3}), lambda: evaluate_run(run)):
        with pytest.raises(CodoError, match=r"squares.*: say where they are now with --data DIR"):
            refused()
    assert evaluate_run(run, data=str(moved))["metrics"] == longer.summary["metrics"]
    again = resume(run, {"optim.epochs": 3, "data.root": str(moved)})
    assert [entry["epoch"] for entry in again.summary["curve"]] == [1, 2, 3]
    assert RunFolder(run).environment()["data"]["fingerprint"] == environment["data"]["fingerprint"]
    (moved / "images" / "train_0.png").write_bytes(b"other")
    with pytest.raises(CodoError, match="moved have changed since"):
        resume(run, {"optim.epochs": 4})
    with pytest.raises(CodoError, match="not a run folder"):
        resume(moved)


def test_a_diverging_run_says_where(make_config: Make, tmp_path: Path) -> None:
    config = make_config(optim={"lr": 1e30, "warmup_iterations": 0, "epochs": 4})
    with pytest.raises(CodoError, match=r"step \d+: a loss is not finite \(.*loss_classifier .*lower optim\.lr"):
        transfer(config, tmp_path / "run")


def test_broken_images_are_counted_and_left_out(
    make_config: Make, coco_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(coco_root, tmp_path / "squares")
    for name in ("train_1.png", "val_2.png"):
        path = tmp_path / "squares" / "images" / name
        path.write_bytes(path.read_bytes()[:200])
    config = make_config(data={"root": str(tmp_path / "squares")}, optim={"epochs": 1})
    result = transfer(config, tmp_path / "run")
    assert result.summary["unreadable_images"] == {"train": 1, "val": ["val_2.png"]}
    said = " ".join(capsys.readouterr().err.split())
    assert "not evaluated on:" in said
    assert "val_2.png" in said
    # Resumed after its last step, which reads nothing, it still knows.
    (result.path / "summary.json").unlink()
    assert resume(result.path).summary["unreadable_images"] == result.summary["unreadable_images"]
    checkpoint = result.path / "checkpoint.pt"
    cut = torch.load(checkpoint, weights_only=True)
    del cut["unreadable"]
    torch.save(cut, checkpoint)
    with pytest.raises(CodoError, match=r'cannot go on from .*checkpoint\.pt: it lacks "unreadable"$'):
        resume(result.path, {"optim.epochs": 2})
    assert {p["image_id"] for p in json.loads((result.path / "predictions.json").read_text())} == {500, 510}
    for path in (tmp_path / "squares" / "images").iterdir():
        path.write_bytes(b"")
    with pytest.raises(CodoError, match="training images in a row cannot be read"):
        transfer(config, tmp_path / "none")


def test_an_existing_folder_is_refused_before_anything_is_written(make_config: Make, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("x")
    with pytest.raises(CodoError, match="exists already"):
        transfer(make_config(), tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["mine.txt"]


def test_weights_of_another_architecture_are_refused(make_config: Make, pretrained: Path, tmp_path: Path) -> None:
    other = ARCHITECTURE.model_copy(update={"fpn_channels": 32})
    with pytest.raises(CodoError, match=r"fpn_channels 32 \(the weights: 16\)"):
        transfer(make_config(weights=str(pretrained), architecture=other.model_dump()), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_learning_rate_of_1x() -> None:
    optim = TransferOptimSection(iterations=90_000)
    steps = {0: 2e-5, 500: 0.02 * 0.5005, 1000: 0.02, 59_999: 0.02, 60_000: 0.002, 79_999: 0.002, 80_000: 0.0002}
    assert {step: learning_rate(optim, step, 90_000) for step in steps} == pytest.approx(steps)
    assert learning_rate(optim.model_copy(update={"batch_size": 4}), 5000, 90_000) == pytest.approx(0.005)


def test_iterations_need_not_be_whole_epochs(make_config: Make, tmp_path: Path) -> None:
    result = transfer(make_config(optim={"epochs": None, "iterations": 4}), tmp_path / "run")
    assert result.summary["steps"] == 4
    assert [entry["step"] for entry in result.summary["curve"]] == [3, 4]


def test_lengths_are_exclusive_and_default_to_1x() -> None:
    assert TransferConfig().optim.iterations == 90_000
    assert TransferConfig.model_validate({"optim": {"lr": 0.1}}).optim.iterations == 90_000
    assert TransferConfig.model_validate({"optim": {"epochs": 3}}).optim.iterations is None
    with pytest.raises(CodoError, match="both are set"):
        load_transfer_config(preset="small", sets=["optim.iterations=5"])
    with pytest.raises(CodoError, match="weights=none use bn"):
        load_transfer_config(preset="small", flags={"norm": "frozen_bn"})
    with pytest.raises(CodoError, match=r"data\.val_json: needed"):
        load_transfer_config(preset="small", flags={"data.train_json": "a.json", "data.images": "images"})
    assert load_transfer_config(preset="2x").optim.iterations == 180_000
    for given in ({"preset": "1x"}, {"preset": "2x", "schedule": "1x"}, {"preset": "small", "schedule": "1x"}):
        optim = load_transfer_config(flags={"optim.epochs": 3}, **given).optim  # in place of the steps
        assert (optim.epochs, optim.iterations) == (3, None)
    optim = load_transfer_config(preset="small", flags={"optim.iterations": 5}).optim
    assert (optim.epochs, optim.iterations) == (None, 5)
