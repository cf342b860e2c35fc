"""Whole pretraining runs: the run folder, exact resume, interruption, and bad input."""

from __future__ import annotations

import json
import shutil
import signal
import sys
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from webdataset import ShardWriter

from codo.config.load import dump_yaml, fingerprint
from codo.errors import CodoError, Interrupted
from codo.jobs.pretrain import dry_run, pretrain, resume
from codo.jobs.pretrain.build import build_dataset, find_sources
from codo.jobs.pretrain.loop import Trainer
from codo.jobs.pretrain.method import Method
from codo.jobs.pretrain.preview import preview
from codo.jobs.pretrain.training import Run
from codo.jobs.pretrain.watch import Collapse
from codo.parts import Parts
from codo.runs.interrupt import StopRequest
from codo.runs.lock import Held, held
from codo.runs.record import RunFolder
from codo.runs.repeat import bring_to_end
from codo.runs.seed import generator
from codo.runs.weights_file import read_weights
from tests.parts import run_of, tiny_config

TIMES = {"images_per_s", "data_wait"}


def curve(folder: Path) -> list[dict[str, float]]:
    return [{k: v for k, v in r.items() if k not in TIMES} for r in RunFolder(folder).metrics()]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, images):
    out = tmp_path_factory.mktemp("runs") / "whole"
    return pretrain(tiny_config(images), out)


def test_the_run_folder_holds_what_a_reader_needs(finished):
    names = {p.name for p in finished.path.iterdir()}
    expected = {"config.yaml", "environment.json", "metrics.jsonl", "checkpoint.pt", "weights.safetensors"}
    assert names == expected | {"summary.json"}
    environment = json.loads((finished.path / "environment.json").read_text())
    assert torch.__version__.startswith(environment["packages"]["torch"])
    assert environment["data"]["foreground_images"] == 12
    assert environment["data"]["background_images"] == 5
    summary = json.loads((finished.path / "summary.json").read_text())
    assert summary["steps"] == 6
    assert summary["samples"] == 24
    assert summary["fingerprint"] == environment["fingerprint"]
    metrics = curve(finished.path)
    assert [m["step"] for m in metrics] == [1, 2, 3, 4, 5, 6]
    assert {"loss", "loss_level", "queue_accuracy", "batch_accuracy", "lr", "epoch"} <= set(metrics[0])
    assert metrics[0]["lr"] > metrics[-1]["lr"] > 0


def test_the_weights_say_what_they_are(finished):
    state, metadata = read_weights(finished.path / "weights.safetensors")
    groups = {key.split(".")[0] for key in state}
    assert groups == {"backbone", "box_head", "projector"}
    assert json.loads(metadata["architecture"])["backbone"] == "resnet10t"
    assert set(metadata) >= {"codo_version", "fingerprint", "backbone", "norm", "mean", "std"}
    assert state["backbone.body.conv1.0.weight"].is_contiguous()


def test_a_second_run_into_the_same_folder_is_refused(finished, tiny):
    before = (finished.path / "summary.json").read_bytes()
    with pytest.raises(CodoError, match=r"exists already.*--resume"):
        pretrain(tiny(), finished.path)
    assert (finished.path / "summary.json").read_bytes() == before


def stopped_run(config, out: Path, at: int, monkeypatch, steps: int = 6) -> None:
    """Run until step `at` of `steps`, then ask it to stop as Ctrl-C does."""
    advance = Run.advance

    def stopping(self, batch):
        result = advance(self, batch)
        if self.step == at:
            signal.raise_signal(signal.SIGINT)
        return result

    with monkeypatch.context() as patch:
        patch.setattr(Run, "advance", stopping)
        with pytest.raises(Interrupted, match=f"after step {at} of {steps}.*codo pretrain --resume") as raised:
            pretrain(config, out)
    assert raised.value.exit_code == 130


@pytest.mark.parametrize("at", [2, 3, 5])
def test_a_resumed_run_equals_one_that_was_never_stopped(finished, tiny, tmp_path, monkeypatch, at):
    out = tmp_path / "stopped"
    stopped_run(tiny(), out, at, monkeypatch)
    assert not (out / "summary.json").exists()
    result = resume(out)
    assert result.summary["resumed_at_step"] == at
    assert curve(out) == curve(finished.path)
    ours, theirs = (read_weights(p / "weights.safetensors")[0] for p in (out, finished.path))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_a_mosaic_with_other_losses_resumes_exactly_too(tiny, tmp_path, monkeypatch):
    """Places on the canvas are drawn anew each step, and losses beside the paper's have weights of their own."""
    losses = {f"loss.{name}": 1 for name in ("instance", "stage", "box", "cell")}
    config = tiny(**{"mosaic": 2, "optim.batch_size": 8, "model.bn_groups": 1, "optim.epochs": 3, **losses})
    whole, out = pretrain(config, tmp_path / "whole"), tmp_path / "stopped"
    stopped_run(config, out, 1, monkeypatch, steps=3)
    resume(out)
    assert curve(out) == curve(whole.path)
    ours, theirs = (read_weights(p / "weights.safetensors")[0] for p in (out, whole.path))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_metrics_after_the_checkpoint_are_computed_again_and_not_doubled(finished, tiny, tmp_path, monkeypatch):
    out = tmp_path / "killed"
    stopped_run(tiny(), out, 3, monkeypatch)
    with open(out / "metrics.jsonl", "a") as file:  # what a kill in the middle of step 5 leaves
        file.write('{"step": 4, "loss": 1.0}\n{"step": 5, "lo')
    resume(out)
    assert curve(out) == curve(finished.path)


def test_resume_refuses_what_would_not_be_the_same_run(finished, tiny, tmp_path, monkeypatch):
    other = {"optim.batch_size": 6, "optim.epochs": 1, "seed": 1, "data.limit": 8, "data.scaled_decode": False}
    for changes in ({field: value} for field, value in other.items()):
        with pytest.raises(CodoError, match=rf"{next(iter(changes))} \w+ -> \w+"):
            resume(finished.path, changes)
    with pytest.raises(CodoError, match=r"is complete; ask for more epochs"):
        resume(finished.path)
    with pytest.raises(CodoError, match="not a run folder"):
        resume(tmp_path)
    out = tmp_path / "early"
    RunFolder.create(out, "pretrain")
    (out / "config.yaml").write_text(dump_yaml(tiny()))
    shutil.copy(finished.path / "environment.json", out)
    (out / "checkpoint.pt").write_bytes((finished.path / "checkpoint.pt").read_bytes()[:1000])
    with pytest.raises(CodoError, match="cannot read the checkpoint"):
        resume(out)
    state = torch.load(finished.path / "checkpoint.pt", weights_only=True)
    name = next(iter(state["method"]))
    rest = {key: value for key, value in state["method"].items() if key != name}
    for damaged, said in (({"model": {}}, 'it lacks "step"'), (state | {"method": rest}, f"none of this run.*{name}")):
        torch.save(damaged, out / "checkpoint.pt")
        with pytest.raises(CodoError, match=said) as raised:
            resume(out)
        assert "\n" not in str(raised.value)
    then = json.loads((out / "environment.json").read_text())
    for key in ("parts", "processes", "extended"):
        (out / "environment.json").write_text(json.dumps({name: then[name] for name in then if name != key}))
        with pytest.raises(CodoError, match=rf'environment\.json: it lacks "{key}"$'):
            resume(out)


def test_a_finished_run_goes_on_with_more_epochs_and_says_that_it_is_another(finished, tiny, tmp_path, capsys):
    out = tmp_path / "longer"
    shutil.copytree(finished.path, out)
    result = resume(out, {"optim.epochs": 3})
    assert result.summary["steps"] == 9
    assert [m["step"] for m in curve(out)] == list(range(1, 10))
    said = " ".join(capsys.readouterr().err.split())
    assert "its 6 steps went by a schedule of 2 epochs, the next go by one of 3" in said
    whole = fingerprint(tiny(optim__epochs=3), find_sources(tiny()).fingerprint)
    assert result.summary["fingerprint"] != whole
    (out / "checkpoint.pt").unlink()  # it begins again, and then is the run of that length
    (out / "summary.json").unlink()
    assert resume(out).summary["fingerprint"] == whole


def test_a_run_that_is_at_work_is_neither_resumed_nor_begun_by_another(tiny, tmp_path, monkeypatch):
    out, execute, refused = tmp_path / "run", Run.execute, []

    def executed(self, folder):
        for other in (lambda: resume(out, {"optim.epochs": 3}), lambda: bring_to_end(out, list, list, print)):
            with pytest.raises(Held, match=r"run is in use \(host .*, process \d+, since .*\); wait for it") as error:
                other()
            refused.append(error)
        return execute(self, folder)

    monkeypatch.setattr(Run, "execute", executed)
    pretrain(tiny(), out)
    resume(out, {"optim.epochs": 3})
    assert len(refused) == 4
    assert [m["step"] for m in curve(out)] == list(range(1, 10))
    assert not (out / "lock").exists()


def test_of_two_that_begin_in_one_folder_the_second_is_refused(tiny, tmp_path, monkeypatch):
    create = RunFolder.create

    def first(out, kind):
        folder = create(out, kind)
        monkeypatch.setattr(RunFolder, "create", create)
        other.enter_context(held(out))  # it found the folder empty, too
        return folder

    monkeypatch.setattr(RunFolder, "create", first)
    with ExitStack() as other, pytest.raises(Held):
        pretrain(tiny(), tmp_path / "run")
    assert list((tmp_path / "run").iterdir()) == []


def test_resuming_with_other_images_is_refused(tiny, images, tmp_path, monkeypatch):
    copy = tmp_path / "foregrounds"
    shutil.copytree(images / "foregrounds", copy)
    out = tmp_path / "run"
    stopped_run(tiny(data__foregrounds=str(copy)), out, 2, monkeypatch)
    (copy / "00.png").unlink()
    with pytest.raises(CodoError, match="not those that the run began with"):
        resume(out)


def test_broken_foregrounds_are_left_out_and_counted(tiny, images, tmp_path):
    copy = tmp_path / "foregrounds"
    shutil.copytree(images / "foregrounds", copy)
    (copy / "05.png").write_bytes((copy / "05.png").read_bytes()[:200])
    (copy / "99.jpg").write_text("not an image")
    result = pretrain(tiny(data__foregrounds=str(copy), optim__epochs=1), tmp_path / "cached")
    both = ["foregrounds: 05.png", "foregrounds: 99.jpg"]
    assert result.summary["unreadable_images"] == both
    config = tiny(data__foregrounds=str(copy), optim__epochs=6, run__cache="off")
    uncached = pretrain(config, tmp_path / "uncached")
    assert uncached.summary["unreadable_images"] == both  # each once, however often it was met
    with pytest.raises(CodoError, match=r"began with 13 usable foregrounds, now there are 11"):
        resume(tmp_path / "uncached", {"optim.epochs": 7, "run.cache": "disk"})


@pytest.mark.parametrize("cache", ["ram", "off"])
def test_where_images_are_kept_decides_nothing(finished, tiny, tmp_path, capsys, cache):
    result = pretrain(tiny(run__cache=cache), tmp_path / "run")
    assert curve(result.path) == curve(finished.path)
    assert ("cache of the foregrounds: 12 images, about" in capsys.readouterr().err) == (cache == "ram")


def test_shards_give_what_their_files_give(finished, tiny, images, tmp_path, monkeypatch):
    monkeypatch.setenv("CODO_CACHE", str(tmp_path / "cache"))
    places = {}
    for name in ("foregrounds", "backgrounds"):
        with ShardWriter(str(tmp_path / f"{name}-%02d.tar"), maxcount=5, verbose=0) as writer:
            for file in sorted((images / name).iterdir()):
                writer.write({"__key__": file.stem, "png": file.read_bytes()})
        places[f"data__{name}"] = str(tmp_path / f"{name}-{{00..{(writer.total - 1) // 5:02d}}}.tar")
    result = pretrain(tiny(**places), tmp_path / "run")
    assert curve(result.path) == curve(finished.path)
    environment = json.loads((result.path / "environment.json").read_text())
    assert environment["data"]["foregrounds"] == "foregrounds-{00..02}.tar"
    assert environment["data"]["foreground_images"] == 12
    for shards in (places, {"data__backgrounds": places["data__backgrounds"]}):
        with pytest.raises(CodoError, match="probes look at folders"):
            pretrain(tiny(run__probe_every=1, **shards))
    few = find_sources(tiny(data__limit=4, **places)).foregrounds
    assert [m.name for m in few] == [p.name for p in find_sources(tiny(data__limit=4)).foregrounds]


def test_of_many_broken_images_the_first_are_named_and_the_rest_counted(tiny, images, tmp_path, capsys):
    copy = tmp_path / "foregrounds"
    shutil.copytree(images / "foregrounds", copy)
    for i in range(7):
        (copy / f"broken-{i}.png").write_bytes(b"broken")
    config = tiny(data={"foregrounds": str(copy), "backgrounds": str(images / "backgrounds")}, run={"cache": "disk"})
    build_dataset(config, find_sources(config), Parts())
    told = " ".join(capsys.readouterr().err.split())
    assert told.count("foregrounds: left out broken-") == 5
    assert "foregrounds: left out 2 more that cannot be read" in told


@pytest.mark.parametrize("cache", ["disk", "off"])
def test_broken_images_of_one_name_in_two_folders_are_two(tiny, images, tmp_path, cache):
    for folder in ("a", "b"):
        shutil.copytree(images / "foregrounds", tmp_path / "photos" / folder)
        (tmp_path / "photos" / folder / "03.png").write_bytes(b"broken")
    config = tiny(data__foregrounds=str(tmp_path / "photos"), run__cache=cache)
    dataset = build_dataset(config, find_sources(config))
    skipped = [name for index in range(len(dataset)) for name in dataset[(0, index)].skipped]
    assert {*dataset.unreadable, *skipped} >= {"foregrounds: a/03.png", "foregrounds: b/03.png"}


def test_broken_backgrounds_are_reported_too(tiny, images, tmp_path):
    copy = tmp_path / "backgrounds"
    shutil.copytree(images / "backgrounds", copy)
    (copy / "02.png").write_bytes(b"broken")
    for cache in ("disk", "off"):
        config = tiny(data__backgrounds=str(copy), optim__epochs=2, run__cache=cache)
        assert pretrain(config, tmp_path / cache).summary["unreadable_images"] == ["backgrounds: 02.png"]
    for own, then, other in (("disk", 4, "off"), ("off", 5, "ram")):
        now = 9 - then
        with pytest.raises(CodoError, match=f"began with {then} usable backgrounds, now there are {now}"):
            resume(tmp_path / own, {"optim.epochs": 3, "run.cache": other})


def test_a_broken_image_that_an_augmenter_reads_is_the_one_reported(tiny, images, tmp_path):
    copy = tmp_path / "foregrounds"
    shutil.copytree(images / "foregrounds", copy)
    (copy / "05.png").write_bytes(b"broken")

    def reads_the_broken_one(rng, image, box, foregrounds):
        assert np.array_equal(foregrounds[5], foregrounds[6])
        return image, box

    config = tiny(data__foregrounds=str(copy), run__cache="off")
    sample = build_dataset(config, find_sources(config), Parts(augmenters=[reads_the_broken_one]))[(0, 2)]
    assert int(sample.foreground) == 2
    assert set(sample.skipped) == {"foregrounds: 05.png"}


def test_the_data_fingerprint_tells_roles_apart_and_survives_a_copy(tiny, images, tmp_path):
    shutil.copytree(images, tmp_path / "elsewhere")
    foregrounds, backgrounds = str(images / "foregrounds"), str(tmp_path / "elsewhere" / "backgrounds")
    base = find_sources(tiny()).fingerprint
    assert find_sources(tiny(data__backgrounds=backgrounds)).fingerprint == base
    swapped = tiny(data__foregrounds=str(images / "backgrounds"), data__backgrounds=foregrounds)
    assert find_sources(swapped).fingerprint != base


def test_resume_finds_images_that_moved_if_they_are_the_same(finished, images, tmp_path):
    shutil.copytree(images, tmp_path / "moved")
    shutil.copytree(finished.path, tmp_path / "run")
    changes = {
        "optim.epochs": 3,
        "data.foregrounds": str(tmp_path / "moved" / "foregrounds"),
        "data.backgrounds": str(tmp_path / "moved" / "backgrounds"),
    }
    assert resume(tmp_path / "run", changes).summary["steps"] == 9
    environment = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert len(environment["earlier"]) == 1


def test_preview_takes_fewer_images_than_a_batch(tiny, tmp_path):
    assert preview(tiny(data__limit=3), 8, tmp_path / "sheet.png") == 3


def test_the_cache_changes_no_pixel(tiny):
    samples = []
    for cache in ("disk", "off"):
        config = tiny(run__cache=cache)
        samples.append(build_dataset(config, find_sources(config))[(0, 3)].views)
    assert torch.equal(samples[0].images, samples[1].images)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"data.foregrounds": "nowhere"}, "nowhere"),
        ({"data.backgrounds": "nowhere"}, "nowhere"),
        ({"data.backgrounds": None}, "data.backgrounds: .*--no-background"),
        ({"data.foregrounds": None}, "data.foregrounds: name a folder"),
        ({"optim.batch_size": 16}, "12 images do not fill one batch of 16"),
        ({"model.backbone": "resnet5O"}, "did you mean"),
        ({"run.device": "cuda:9"}, r"run.device: cuda:9|no device"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing_behind(tiny, tmp_path, fields, said):
    out = tmp_path / "run"
    with pytest.raises(CodoError, match=said) as raised:
        pretrain(tiny(**fields), out)
    assert "\n" not in str(raised.value)
    assert not out.exists()


def test_backgrounds_are_not_asked_for_where_they_are_not_used(tiny, tmp_path):
    config = tiny(data__backgrounds=None, paste__source="self", optim__epochs=1)
    assert pretrain(config, tmp_path / "insloc").summary["steps"] == 3


def test_a_loss_that_is_not_finite_ends_the_run_with_its_step(tiny, tmp_path):
    run = run_of(tiny())
    with torch.no_grad():
        next(run.method.query_encoder.parameters()).fill_(float("nan"))
    folder = RunFolder.create(tmp_path / "nan", "pretrain")
    with pytest.raises(CodoError, match=r"step 1: the loss is not finite: level .*no checkpoint yet"):
        run.execute(folder)


def test_a_step_that_is_not_finite_leaves_the_last_checkpoint_and_what_replays_it(tiny, tmp_path, monkeypatch):
    config, out = tiny(run__checkpoint_every=2), tmp_path / "nan"
    step = Trainer.step

    def poisoned(self, views, number, schedule):
        if number == 4:
            with torch.no_grad():
                next(self.method.query_encoder.parameters()).fill_(float("inf"))
        return step(self, views, number, schedule)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", poisoned)
        with pytest.raises(CodoError, match=r"step 5: the loss is not finite: level.*checkpoint of step 4") as raised:
            pretrain(config, out)
    assert "\n" not in str(raised.value)
    facts = json.loads((out / "not_finite.json").read_text())
    assert (facts["step"], facts["epoch"], facts["checkpoint_step"]) == (5, 1, 4)
    order = generator("order", config.seed, 1).permutation(12)[4:8]
    assert [Path(file).name for file in facts["files"]] == [f"{i:02d}.png" for i in order]
    state = torch.load(out / "checkpoint.pt", weights_only=True)["method"]
    assert all(torch.isfinite(tensor.float()).all() for tensor in state.values())
    assert resume(out).summary["steps"] == 6


def test_a_gradient_that_is_not_finite_ends_the_run_before_the_weights_are_touched(tiny, tmp_path):
    run = run_of(tiny())
    next(run.method.query_encoder.parameters()).register_hook(lambda g: g * float("inf"))
    before = [p.clone() for p in run.method.query_encoder.parameters()]
    with pytest.raises(CodoError, match=r"step 1: the gradient is not finite, though the loss is"):
        run.execute(RunFolder.create(tmp_path / "inf", "pretrain"))
    assert all(torch.equal(p, b) for p, b in zip(run.method.query_encoder.parameters(), before, strict=True))


def test_checkpoints_come_as_often_as_asked(tiny, tmp_path, monkeypatch):
    steps = []
    monkeypatch.setattr(Run, "save", lambda self, folder: steps.append(self.step))
    pretrain(tiny(run__checkpoint_every=2), tmp_path / "often")
    assert steps == [2, 3, 4, 6]  # and at the end of each epoch


def test_a_run_killed_before_its_first_checkpoint_begins_again(finished, tiny, tmp_path, capsys):
    out = tmp_path / "early"
    shutil.copytree(finished.path, out)
    for name in ("checkpoint.pt", "summary.json", "weights.safetensors"):
        (out / name).unlink()
    resume(out)
    assert "stopped before its first checkpoint; it begins again" in " ".join(capsys.readouterr().err.split())
    assert curve(out) == curve(finished.path)


def test_tensorboard_gets_the_figures_of_the_json_lines(tiny, tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out = pretrain(tiny(run__tensorboard=True, optim__epochs=1), tmp_path / "run").path
    events = EventAccumulator(str(out / "tensorboard"))
    events.Reload()
    logged = [(e.step, e.value) for e in events.Scalars("loss_level")]
    assert logged == [(m["step"], pytest.approx(m["loss_level"])) for m in curve(out)]
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(CodoError, match=r"pip install 'codo\[tensorboard\]'"):
        pretrain(tiny(run__tensorboard=True), tmp_path / "refused")
    assert not (tmp_path / "refused").exists()


def test_collapse_is_measured_logged_and_said_once(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Collapse, "STEPS", 2)
    constant = type(
        "Constant", (torch.nn.Module,), {"forward": lambda self, x: x.new_ones(len(x), 16) + 1e-3 * x[:, :16]}
    )
    out = pretrain(tiny(), tmp_path / "run", projector=lambda *widths: constant())
    assert [m["embedding_std"] < 0.1 for m in curve(out.path)] == [True] * 6
    said = " ".join(capsys.readouterr().err.split())
    assert said.count("warning: collapse: the embeddings of all images are nearly the same") == 1
    assert set(out.summary["warnings"]) == {"collapse"}


def test_a_run_with_the_box_loss_alone_is_logged(tiny, tmp_path):
    fields = {"hierarchy": False, "loss.instance": 0, "loss.box": 1, "optim.epochs": 1}
    assert "loss_box" in curve(pretrain(tiny(**fields), tmp_path / "run").path)[0]


@pytest.mark.parametrize(
    ("fields", "untrained"),
    [
        ({}, []),
        ({"hierarchy": False}, []),
        ({"alignment": False, "hierarchy": False}, []),
        ({"hierarchy": False, "loss.instance": 0, "loss.box": 1}, []),
        ({"hierarchy": False, "loss.instance": 0, "loss.image": 1}, ["the FPN", "the box head"]),
        ({"loss.levels": [5]}, ["the FPN's convolutions of P2, P3, P4"]),
        ({"loss.level_weights": [1, 0, 1, 1]}, []),  # it moves the BN of the box head, and so the other levels
        ({"loss.level_weights": [1, 0, 1, 1], "loss.cell": 1}, []),
        ({"loss.levels": [5], "loss.instance": 1}, []),
        ({"hierarchy": False, "loss.instance": 0, "loss.cell": 1}, ["the box head's fc layer"]),
        ({"alignment": False, "loss.level_weights": [1, 1, 0, 0]}, ["the backbone beyond C3"]),
        ({"alignment": False, "hierarchy": False, "loss.image": 0, "loss.stage": 1}, []),
        (
            {"hierarchy": False, "loss.instance": 0, "loss.stage": 1, "loss.stage_levels": [3, 4]},
            ["the backbone beyond C4", "the FPN", "the box head"],
        ),
    ],
)
def test_what_no_loss_trains_is_named(tiny, fields, untrained):
    assert Method(tiny(**fields)).untrained == untrained


@pytest.mark.parametrize("fields", [{}, {"loss.levels": [5]}, {"loss.level_weights": [1, 0, 1, 1]}])
def test_what_is_named_is_what_has_no_gradient(tiny, fields):
    run = run_of(tiny(**fields))
    run.trainer._finish = lambda result: None  # which would drop the gradients
    run.advance(next(run.batches(1)))
    blocks = run.method.query_encoder.backbone.fpn.layer_blocks
    idle = [f"P{k}" for k, block in enumerate(blocks, 2) if block[0].weight.grad is None]
    assert run.method.untrained == ([f"the FPN's convolutions of {', '.join(idle)}"] if idle else [])


@pytest.mark.parametrize(
    ("fields", "part", "prefix"),
    [
        ({"hierarchy": False, "loss.instance": 0, "loss.cell": 1}, "the box head's fc layer", "box_head.5"),
        ({"alignment": False, "loss.level_weights": [1, 1, 0, 0]}, "the backbone beyond C3", "backbone.body.layer3"),
    ],
)
def test_what_is_named_of_head_and_backbone_has_no_gradient(tiny, fields, part, prefix):
    run = run_of(tiny(**{"model.box_head_convs": 4, **fields}))
    run.trainer._finish = lambda result: None
    run.advance(next(run.batches(1)))
    named = [p for name, p in run.method.query_encoder.named_parameters() if name.startswith(prefix)]
    assert named
    assert all(p.grad is None or not p.grad.any() for p in named)
    assert run.method.untrained == [part]


def test_what_no_loss_trains_is_said_once_at_the_start(tiny, tmp_path, capsys):
    fields = {"hierarchy": False, "loss.instance": 0, "loss.image": 1, "optim.epochs": 1}
    result = pretrain(tiny(**fields), tmp_path / "run")
    said = " ".join(capsys.readouterr().err.split())
    assert said.count("warning: no loss trains the FPN, the box head: saved as it begins, at random") == 1
    assert set(result.summary["warnings"]) == {"untrained"}


def test_a_full_disk_is_said_and_the_older_checkpoint_stays(tiny, tmp_path, monkeypatch):
    out = tmp_path / "full"
    stopped_run(tiny(), out, 3, monkeypatch)
    before = (out / "checkpoint.pt").read_bytes()

    def full(state, path):
        Path(path).write_bytes(b"half")
        raise RuntimeError("PytorchStreamWriter failed writing file: No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(CodoError, match=r"cannot write .*checkpoint\.pt: .*No space left"):
        resume(out)
    assert (out / "checkpoint.pt").read_bytes() == before
    assert not list(out.glob(".*"))


def test_log_every_thins_the_metrics(tiny, tmp_path):
    pretrain(tiny(run__log_every=4), tmp_path / "thin")
    assert [m["step"] for m in curve(tmp_path / "thin")] == [4, 6]


def test_sigterm_is_143():
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGTERM)
        assert stop.number == signal.SIGTERM
        assert Interrupted(stop.number, "").exit_code == 143
        with pytest.raises(KeyboardInterrupt):  # Ctrl-C after a first request is obeyed at once
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_dry_run_trains_and_writes_nothing(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    facts = dry_run(tiny())
    assert facts["steps"] == 6
    assert facts["parameters"]["backbone"] > facts["parameters"]["projector"]
    assert facts["seconds_per_step"] > 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("background", [True, False])
def test_preview_draws_a_row_a_sample(tiny, tmp_path, background):
    out = tmp_path / "sheet.png"
    preview(tiny(background=background, views=2), 3, out)
    with Image.open(out) as sheet:
        columns = 7 if background else 4
        assert sheet.width == 8 + columns * 200
        assert sheet.height == 28 + 8 + 3 * 200
        pixels = np.asarray(sheet.convert("RGB"))
    for colour in ((0x21, 0xD0, 0x7A), (0xFF, 0x8C, 0x1A)):
        assert (pixels == colour).all(2).sum() > 100


def test_preview_wants_a_png(tiny, tmp_path):
    with pytest.raises(CodoError, match="sheet is a PNG"):
        preview(tiny(), 1, tmp_path / "sheet.jpg")


@pytest.mark.parametrize(("area", "kept"), [(0.2, 144), (0.04, 320)])
def test_foregrounds_are_kept_as_large_as_the_smallest_crop_needs(tiny, tmp_path, area, kept):
    (tmp_path / "large").mkdir()
    for i in range(4):
        Image.new("RGB", (400, 400)).save(tmp_path / "large" / f"{i}.png")
    config = tiny(**{"data.foregrounds": str(tmp_path / "large"), "paste.crop_area": (area, 1.0)})
    assert build_dataset(config, find_sources(config)).foregrounds[0].shape == (kept, kept, 3)
