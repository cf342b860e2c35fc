"""`codo bench`: its parts on a tiny config, its words, and the command."""

from __future__ import annotations

import json
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torch import nn
from torch._dynamo.testing import CompileCounter

from codo.cli import main
from codo.cli.bench import bench_command, detector_config
from codo.config import load_pretrain_config
from codo.config.transfer import TransferConfig
from codo.data.coco import load_coco
from codo.data.masks import to_rle
from codo.errors import CodoError
from codo.jobs.bench.evaluation import time_evaluation
from codo.jobs.bench.machine import machine, peaks
from codo.jobs.bench.made_up import detections
from codo.jobs.bench.pretraining import compare, push, resident, time_loader, time_step, time_together
from codo.jobs.bench.run import bench
from codo.jobs.bench.timing import Times, in_turns, repeated
from codo.jobs.bench.verdict import costs, evaluation_remedy, sentence, step_remedy
from codo.jobs.transfer.coco_metrics import coco_metrics
from codo.jobs.transfer.data import load_data
from codo.losses import KeyQueue
from codo.runs.hardware import Hardware
from tests.conftest import picture
from tests.parts import TINY, run_of

PEAKS = {"fp32_gflops": 100.0, "bf16_gflops": 200.0, "copy_gb_s": 5.0}
ARCHITECTURE = {key.partition(".")[2]: TINY[key] for key in TINY if key.startswith(("model.b", "model.fpn"))}


@pytest.fixture
def run(tiny):
    return run_of(tiny())


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """A COCO-format set of four pictures with masks."""
    root = tmp_path_factory.mktemp("labelled")
    (root / "images").mkdir()
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        images, annotations = [], []
        for i in range(1, 5):
            name = f"{split}{i}.png"
            Image.fromarray(picture(rng, 96, 80)).save(root / "images" / name)
            images.append({"id": i, "file_name": name, "width": 96, "height": 80})
            for j in range(2):
                x, y, side = 5 + 40 * j, 10 + 5 * i, 30
                polygon = [x, y, x + side, y, x + side, y + side, x, y + side]
                annotations.append(
                    {"id": len(annotations) + 1, "image_id": i, "category_id": j + 1, "bbox": [x, y, side, side],
                     "area": side * side, "iscrowd": 0, "segmentation": [polygon]}
                )  # fmt: skip
        categories = [{"id": 1, "name": "left"}, {"id": 2, "name": "right"}]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (root / f"instances_{split}.json").write_text(json.dumps(content))
    return root


def detector(labelled, **fields) -> TransferConfig:
    return TransferConfig.model_validate(
        {
            "data": {"root": str(labelled)},
            "architecture": {name: value for name, value in ARCHITECTURE.items() if name != "bn_groups"},
            "detection": {"min_size": [64], "max_size": 96, "rpn_pre_nms_test": 50, "rpn_post_nms_test": 20},
            "optim": {"epochs": 3, "batch_size": 2, "eval_every": 2},
            "run": {"device": "cpu", "precision": "fp32", "workers": 0, "threads": 1},
            **fields,
        }
    )


def test_sides_run_in_turns_after_a_warm_up():
    order = []
    times = in_turns({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=3, warm_up=2)
    assert "".join(order) == "ab" * 5
    assert {name: len(found) for name, found in times.seconds.items()} == {"a": 3, "b": 3}


def test_a_ratio_is_that_within_a_round():
    times = Times({"slow": [4.0, 100.0, 9.0], "fast": [2.0, 50.0, 3.0]})  # one noisy round, noisy for both
    assert times.ratio("slow", "fast") == 2.0
    assert times.spread("slow", "fast") == (2.0, 3.0)
    assert times.median("slow") == 9.0


def test_repeated_keeps_to_its_seconds_and_to_its_least():
    assert len(repeated(lambda: None, seconds=0, at_least=5)) == 5
    start = time.perf_counter()
    times = repeated(lambda: time.sleep(0.01), seconds=0.1, at_least=1)
    assert 0.1 <= time.perf_counter() - start < 5
    assert 2 <= len(times) <= 10
    assert min(times) >= 0.01


def test_the_peaks_are_those_of_a_machine(monkeypatch):
    monkeypatch.setattr("codo.jobs.bench.machine.SIDE", 256)
    monkeypatch.setattr("codo.jobs.bench.machine.COPIED", 2**20)
    found = peaks(rounds=2)
    assert found.keys() == PEAKS.keys()
    assert all(value > 0 for value in found.values())
    assert machine()["threads"] == torch.get_num_threads()


def test_the_loader_is_timed_with_the_configs_workers(run):
    found = time_loader(run, 0.1)
    assert found["views_per_s"] == pytest.approx(2 * found["images_per_s"])  # V + 1
    assert (found["workers"], found["cached"]) == (0, True)
    assert found["batches"] >= 1
    assert run.step == 0


def test_the_step_is_timed_with_its_arithmetic_and_its_parts(run):
    found = time_step(run, PEAKS, 0.5)
    assert found["images_per_s"] == pytest.approx(4 / found["seconds"])
    assert found["gflops"] == pytest.approx(found["gflop"] / found["seconds"])
    assert (found["peak"], found["peak_share"]) == ("fp32", pytest.approx(found["gflops"] / 100))
    assert all(0 < found[f"{name}_share"] < 1 for name in ("ema", "queue", "loss"))
    assert all(p.grad is None for p in run.method.parameters())


def test_the_arithmetic_of_a_step_grows_with_the_canvas(tiny):
    def gflop(canvas):
        config = tiny(canvas=canvas, background=False, alignment=False, hierarchy=False)
        return time_step(run_of(config), PEAKS, 0.1)["gflop"]

    assert gflop(128) / gflop(64) == pytest.approx(4, rel=0.02)


def test_compiling_is_no_part_of_a_step(tiny, monkeypatch):
    counting, compile_module, before = CompileCounter(), nn.Module.compile, []

    def timed(*arguments, **options):
        before.append(counting.frame_count)
        return in_turns(*arguments, **options)

    monkeypatch.setattr(nn.Module, "compile", lambda self: compile_module(self, backend=counting))
    monkeypatch.setattr("codo.jobs.bench.pretraining.in_turns", timed)
    time_step(run_of(tiny(run__compile=True)), PEAKS, 0.1)
    assert counting.frame_count == before[0] > 0


@pytest.mark.parametrize(
    "fields", [{"loss.image": 1.0, "loss.dense": 1.0}, {"loss.form": "cosine", "loss.symmetric": True}]
)
def test_losses_of_every_kind_are_timed(tiny, fields):
    config = tiny(**{key.replace(".", "__"): value for key, value in fields.items()}, loss__predictor_hidden=16)
    run = run_of(config)
    embedded = run.trainer.step(resident(run, next(run.batches(1))).views, 0, run.schedule).query
    queues = [module.keys for module in run.method.losses.modules() if isinstance(module, KeyQueue)]
    assert bool(queues) == (config.loss.form == "info_nce")
    before = [queue.clone() for queue in queues]
    compare(run, embedded)
    assert all(torch.equal(a, b) for a, b in zip(before, queues, strict=True))
    push(run, embedded)
    assert not any(torch.equal(a, b) for a, b in zip(before, queues, strict=True))


def test_waiting_for_data_is_a_share_of_the_time_together(run, monkeypatch):
    slow = run.dataset.sampler.view.__class__.__call__

    def sleep(*arguments):
        time.sleep(0.05)
        return slow(*arguments)

    monkeypatch.setattr(run.dataset.sampler.view.__class__, "__call__", sleep)
    found = time_together(run, 1.0)
    assert 0.3 < found["data_wait"] < 1  # 8 views a batch: .4 s
    assert 0 < found["images_per_s"] < 4 / 0.4


def test_made_up_detections_look_like_a_detectors(labelled):
    truth = load_coco(labelled / "instances_val.json", labelled / "images")
    found = detections(truth, 50, seed=1, masks=True)
    assert len(found) == 4 * 50
    assert found == detections(truth, 50, seed=1, masks=True)
    boxes = np.array([f["bbox"] for f in found])
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2:] > 0).all()
    assert ((boxes[:, :2] + boxes[:, 2:]) <= (96, 80)).all()
    assert {f["category_id"] for f in found} == {1, 2}
    assert 0 < coco_metrics(truth, found).values["AP"] < 100
    assert found[0]["segmentation"] in [
        {**(rle := to_rle(a["segmentation"], 96, 80)), "counts": rle["counts"].decode()}
        for a in truth.annotations[found[0]["image_id"]]
    ]
    bare = replace(truth, annotations={image.id: [] for image in truth.images})
    assert detections(bare, 50) == []


@pytest.mark.parametrize("name", ["faster_rcnn", "mask_rcnn"])
def test_an_evaluation_is_timed(labelled, name):
    config = detector(labelled, detector=name)
    found = time_evaluation(config, load_data(config), 0.2)
    assert (found["images"], found["evaluations"]) == (4, 2)  # after epoch 2 and at the end
    assert found["seconds"] == pytest.approx(4 / found["images_per_s"] + found["metrics_s"])
    assert found["sides"] == [64, 96]


def test_what_limits_is_what_takes_longest():
    config = load_pretrain_config(flags={"optim.epochs": 10})
    found = costs(config, 70, {"images_per_s": 64.0}, {"images_per_s": 6.4}, {"evaluations": 4, "seconds": 30.0})
    assert found == {"loader": 10.0, "step": 100.0, "evaluation": 120.0}  # 640 samples: of 70 images 64 fill batches
    assert sentence(config, found, 4, "do this") == (
        "The evaluation limits you: of 10 epochs of pretraining, the detector's 4 evaluations 2 min 00 s "
        "(the loader alone takes 10 s, the steps alone take 1 min 40 s); do this."
    )
    without = costs(config, 70, {"images_per_s": 64.0}, {"images_per_s": 6.4}, None)
    assert sentence(config, without, 0, "do that").startswith("The step limits you: of 10 epochs")


def test_remedies_fit_the_cause(monkeypatch, labelled):
    config = load_pretrain_config()
    monkeypatch.setattr("codo.jobs.bench.verdict.has_bf16", lambda device: True)

    def hardware(device="cpu", precision="bf16"):
        return Hardware(torch.device(device), precision, 0, 1)

    assert "--precision bf16" in step_remedy(config, hardware(precision="fp32"), {"peak_share": 0.5})
    assert "a GPU" in step_remedy(config, hardware(), {"peak_share": 0.1})
    assert "larger batch (now 32)" in step_remedy(config, hardware(device="cuda"), {"peak_share": 0.1})
    assert "torchrun" in step_remedy(config, hardware(device="cuda"), {"peak_share": 0.4})
    slow = {"metrics_s": 1.0, "seconds": 10.0, "hardware": "cpu, fp32"}
    assert "eval_every=8, now 2), or on a GPU" in evaluation_remedy(detector(labelled), slow)
    assert "are the metrics" in evaluation_remedy(detector(labelled), {**slow, "metrics_s": 9.0})


def test_bench_refuses_several_processes(tiny, monkeypatch):
    for name, value in {"RANK": 0, "WORLD_SIZE": 2, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 2, "MASTER_ADDR": "x"}.items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(CodoError, match="without torchrun"):
        bench(tiny())


def test_waiting_is_said_with_the_remedy_though_the_step_limits(tiny, monkeypatch):
    monkeypatch.setattr("codo.jobs.bench.run.peaks", lambda device: PEAKS)
    monkeypatch.setattr("codo.jobs.bench.run.time_loader", lambda run, s: {"images_per_s": 20.0, "cached": False})
    step = {"images_per_s": 10.0, "peak_share": 0.5}
    monkeypatch.setattr("codo.jobs.bench.run.time_step", lambda run, peaks, s: step)
    monkeypatch.setattr("codo.jobs.bench.run.time_together", lambda run, s: {"data_wait": 0.31})
    found = bench(tiny())
    assert (found["limits"], found["evaluation"]) == ("step", None)
    assert "31% of the time is spent waiting for data. Decode the images once" in found["data_wait"]
    monkeypatch.setattr("codo.jobs.bench.run.time_together", lambda run, s: {"data_wait": 0.09})
    assert bench(tiny())["data_wait"] is None


def test_the_command_says_what_limits_and_writes_all_figures(images, labelled, tmp_path, monkeypatch):
    monkeypatch.setattr("codo.jobs.bench.run.SECONDS", 0.3)
    monkeypatch.setattr("codo.jobs.bench.machine.SIDE", 256)
    monkeypatch.setattr("codo.jobs.bench.machine.COPIED", 2**20)
    sets = [word for key, value in TINY.items() for word in ("--set", f"{key}={value}")]
    small = ["--transfer-set", "detection.min_size=[64]", "--transfer-set", "detection.max_size=96"]
    sources = ["--foregrounds", str(images / "foregrounds"), "--backgrounds", str(labelled)]
    file = tmp_path / "new" / "bench.json"
    done = CliRunner().invoke(bench_command, [*sources, *sets, *small, "--json", str(file)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    for name in ("machine", "peaks", "loader", "step", "together", "evaluation"):
        assert f"\n{name} " in "\n" + done.stdout
    assert "limits you" in done.stdout
    assert "\x1b" not in done.stdout
    assert "measuring the step" in done.stderr
    written = json.loads(file.read_text())
    assert written["sentence"] in done.stdout
    assert written["limits"] == max(written["seconds"], key=written["seconds"].get)
    assert written["evaluation"]["data"] == labelled.name
    assert written["config"]["model"]["backbone"] == "resnet10t"


@pytest.mark.parametrize(("canvas", "short_side"), [(96, 240), (256, 800)])
def test_the_detector_is_of_the_pretrainings_scale(labelled, canvas, short_side):
    config = load_pretrain_config(flags={"canvas": canvas, "data.backgrounds": str(labelled), "run.precision": "fp32"})
    found = detector_config(config, None, None, None, ("detection.max_size=2000",))
    assert (found.detection.min_size[-1], found.detection.max_size) == (short_side, 2000)
    assert found.architecture.backbone == "resnet18"
    assert (found.data.root, found.run.precision) == (str(labelled), "fp32")
    assert detector_config(config, "other", "2x", None, ()).data.root == "other"
    bare = config.model_copy(update={"data": config.data.model_copy(update={"backgrounds": str(labelled / "images")})})
    assert detector_config(bare, None, None, None, ()).data.root is None  # no labels: the sample data


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--set", "optim.epoch=3"], "did you mean optim.epochs"),
        (["--foregrounds", "absent", "--no-background", "--no-evaluation"], "absent"),
        (["--data", "absent"], "absent"),
        (["--transfer-preset", "large"], "no preset 'large'"),
        (["--transfer-set", "optim.epoch=3"], "did you mean optim.epochs"),
        (["--no-evaluation", "--data", "x"], "do not go with it"),
        (["--json", "."], "name a file"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(tmp_path, monkeypatch, capsys, arguments, said):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        main(["bench", *arguments])
    told = capsys.readouterr()
    assert (end.value.code, told.out) == (2, "")
    assert said in told.err
    assert "Traceback" not in told.err
    assert list(tmp_path.iterdir()) == []
