"""The probes of real encoders: images, embeddings, figures; in the course of a run; bad input."""

from __future__ import annotations

import copy
import json
import math
import shutil
import signal

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.ops import roi_align

import codo
from codo.augment import box_iou
from codo.cli import main
from codo.errors import CodoError, Interrupted
from codo.jobs.pretrain import pretrain, resume
from codo.jobs.pretrain.build import find_sources
from codo.jobs.pretrain.method import Method
from codo.jobs.pretrain.probing import probe_images
from codo.jobs.pretrain.training import Run
from codo.jobs.probe.bench import Bench, patch_box
from codo.jobs.probe.features import embed, frozen, representations
from codo.jobs.probe.images import choose_images, find_manifest, read_labels
from codo.jobs.probe.measure import embed_bench, measure, settle_norms
from codo.jobs.probe.run import probe
from codo.runs.record import RunFolder
from codo.runs.weights_file import read_weights
from tests.parts import tiny_config

CPU = torch.device("cpu")
FEW = {"instances": 4, "backgrounds_per_instance": 3}
TIMES = {"images_per_s", "data_wait"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory, images):
    out = tmp_path_factory.mktemp("runs") / "whole"
    return pretrain(tiny_config(images, **{"data.limit": 8, "optim.epochs": 2}), out).path


@pytest.fixture(scope="module")
def bench(images):
    return Bench.build(probe_images(tiny_config(images), **FEW), 64)


def test_images_that_cannot_be_read_are_made_up_for_unless_a_number_is_asked_for(tmp_path, images):
    for i, path in enumerate(sorted((images / "foregrounds").iterdir())[:6]):
        (tmp_path / f"{i}.png").write_bytes(b"broken" if i == 3 else path.read_bytes())
    found = Bench.build(choose_images(tmp_path, None, trained=None, pasted=None), 64)
    assert len(found.files[0]) + len(found.files[1]) == 5
    more = {"instances": 3, "backgrounds_per_instance": 3}
    chosen = choose_images(tmp_path, None, trained=None, pasted=None, **more)
    with pytest.raises(CodoError, match=r"images are needed, only \d of 3 can be read"):
        Bench.build(chosen, 64)


def test_only_the_background_differs_between_the_composites_of_an_instance(bench):
    pictures = bench.composites(bench.patches)
    assert pictures.shape == (4, 3, 64, 64, 3)
    x0, y0, x1, y1 = (int(v) for v in patch_box(64))
    inside = pictures[:, :, y0:y1, x0:x1]
    assert x1 - x0 == y1 - y0 == 43
    assert (inside == inside[:, :1]).all()
    assert not (inside[0] == inside[1]).all()
    outside = pictures.clone()
    outside[:, :, y0:y1, x0:x1] = 0
    assert (outside == outside[:1]).all()  # all instances on the same backgrounds
    assert not (outside[:, 0] == outside[:, 1]).all()
    assert not torch.equal(bench.views, bench.patches)


def test_the_jittered_boxes_have_the_iou_that_is_said_and_reach_far(bench):
    expected = [box_iou(boxes.numpy(), patch_box(64)[None])[:, 0] for boxes in bench.jittered]
    np.testing.assert_allclose(bench.iou, np.stack(expected))
    assert bench.iou.min() < 0.5 < 0.9 < bench.iou.max()


def test_foregrounds_are_held_out_where_enough_remain(images, tiny):
    config = tiny(**{"data.limit": 8})
    run = set(codo.jobs.pretrain.build.trained_foregrounds(config, images / "foregrounds"))
    assert len(run) == 8
    few = probe_images(config, instances=4)
    assert len(few.foregrounds) == 4
    assert not set(few.foregrounds) & run
    assert not few.held_out  # the backgrounds are those that it pasted on: a plain folder
    for fields in ({"background": False}, {"paste.source": "self"}):
        bare = tiny(**{"data.limit": 8, **fields})
        assert probe_images(bare, instances=4).held_out
        assert not probe_images(bare, backgrounds=images / "foregrounds", instances=4).held_out  # it trained on them
    assert len(probe_images(config, instances=5).foregrounds) == 12  # not enough: all
    assert not probe_images(tiny(background=False)).held_out


def test_methods_are_probed_on_the_same_images_and_seeds_draw_others(tiny):
    def drawn(seed=0, **fields):
        found = probe_images(tiny(**{"data.limit": 8, **fields}), **FEW, seed=seed)
        return found.foregrounds, found.backgrounds

    assert drawn() == drawn(alignment=False) == drawn(**{"paste.source": "self"}) == drawn(background=False)
    assert drawn() != drawn(seed=1)


def test_backgrounds_are_the_validation_images_of_a_coco_set(tmp_path, images, tiny):
    (tmp_path / "images").mkdir()
    for split, names in {"train": ["00", "01", "02"], "val": ["03", "04"]}.items():
        entries = []
        for i, name in enumerate(names):
            shutil.copy(images / "backgrounds" / f"{name}.png", tmp_path / "images")
            entries.append({"id": i, "file_name": f"{name}.png", "width": 9, "height": 9})
        (tmp_path / f"instances_{split}.json").write_text(
            json.dumps({"images": entries, "annotations": [], "categories": []})
        )
    found = probe_images(tiny(**{"data.limit": 8, "data.backgrounds": str(tmp_path)}), instances=4)
    assert {path.name for path in found.backgrounds} == {"03.png", "04.png"}
    assert found.held_out
    assert found.described == {
        "foregrounds": "foregrounds, not trained on",
        "backgrounds": f"{tmp_path.name}, validation images",
    }


def test_of_a_set_without_training_annotations_the_validation_images_are_not_pasted_on(tmp_path, images, tiny, capsys):
    shutil.copytree(images / "backgrounds", tmp_path / "images")
    plain = tiny(**{"data.limit": 8, "data.backgrounds": str(tmp_path)})
    assert len(find_sources(plain).backgrounds) == 5
    assert f"no instances_train.json in {tmp_path}: a plain folder, all 5 images" in capsys.readouterr().err
    entries = [{"id": i, "file_name": f"0{i}.png", "width": 9, "height": 9} for i in (3, 4)]
    annotations = {"images": entries, "annotations": [], "categories": []}
    (tmp_path / "instances_val.json").write_text(json.dumps(annotations))
    assert [path.name for path in find_sources(plain).backgrounds] == ["00.png", "01.png", "02.png"]
    assert "a plain folder, all but the 2 validation images, 3" in capsys.readouterr().err
    assert probe_images(plain, instances=4).held_out
    (tmp_path / "instances_train.json").write_text(json.dumps(annotations))  # the two splits share their images
    assert not probe_images(plain, instances=4).held_out
    assert probe_images(tiny(**{"data.limit": 8}), backgrounds=tmp_path, instances=4).held_out


def test_without_backgrounds_other_foregrounds_take_their_place(images, tiny):
    found = probe_images(tiny(**{"data.backgrounds": None, "background": False}))
    assert len(found.foregrounds) == len(found.backgrounds) == 6
    assert not set(found.foregrounds) & set(found.backgrounds)


def test_a_broken_foreground_is_passed_over(tmp_path, images, tiny):
    folder = tmp_path / "some"
    shutil.copytree(images / "foregrounds", folder)
    order = choose_images(folder, None, trained=[], pasted=[]).foregrounds
    order[0].write_bytes(b"no image")
    chosen = choose_images(folder, images / "backgrounds", trained=[], pasted=[], instances=4)
    files, _ = Bench.build(chosen, 64).files
    assert len(files) == 4
    assert order[0] not in files


def test_features_are_those_of_the_encoder_and_the_common_ones_need_no_pyramid(tiny):
    config = tiny(hierarchy=False, **{"jitter.mode": "none"})
    aligned = Method(config).query_encoder
    images = torch.randn(3, 3, 64, 64, generator=torch.manual_seed(0))
    boxes = torch.tensor([[4.0, 8, 40, 60], [0, 0, 64, 64], [10, 10, 25, 30]])
    names = ["backbone", "c4", "canvas", "box_head", "embedding"]
    assert representations(aligned) == names
    with frozen(aligned):
        found = embed(aligned, images, boxes, torch.arange(3), names)
        expected = aligned(images, boxes.expand(4, 3, 4)).instance
        stages = aligned.backbone.stages(images)
    torch.testing.assert_close(found["embedding"], expected)
    torch.testing.assert_close(found["canvas"], stages[-1].mean((2, 3)))
    pooled = roi_align(stages[2], [box[None] for box in boxes], 7, 1 / 16, 0, True).mean((2, 3))
    torch.testing.assert_close(found["c4"], pooled)
    plain = Method(tiny(alignment=False, hierarchy=False)).query_encoder
    assert representations(plain) == ["backbone", "c4", "canvas", "embedding"]
    with frozen(plain):
        torch.testing.assert_close(
            embed(plain, images, boxes, torch.arange(3), ["embedding"])["embedding"],
            plain(images, boxes.expand(4, 3, 4)).image,
        )
    plain.backbone.body.load_state_dict(aligned.backbone.body.state_dict())
    with frozen(plain):
        again = embed(plain, images, boxes, torch.arange(3), ["backbone", "c4"])
    assert all(torch.equal(again[name], found[name]) for name in again)


def test_boxes_of_several_on_one_image_are_pooled_from_their_image(tiny):
    encoder = Method(tiny()).query_encoder
    images = torch.randn(2, 3, 64, 64, generator=torch.manual_seed(0))
    boxes = torch.tensor([[4.0, 8, 40, 60], [0, 0, 64, 64], [10, 10, 25, 30], [4, 8, 40, 60]])
    owners = torch.tensor([1, 0, 1, 0])
    names = ["backbone", "box_head"]
    with frozen(encoder):
        together = embed(encoder, images, boxes, owners, names)
        for row, owner in enumerate(owners):
            alone = embed(encoder, images[owner][None], boxes[row][None], torch.tensor([0]), names)
            for name in names:
                torch.testing.assert_close(together[name][row], alone[name][0], rtol=1e-4, atol=1e-5)


def test_probing_leaves_the_encoder_as_it_was(tiny, bench):
    encoder = Method(tiny()).query_encoder.train()
    encoder.box_head.eval()
    before, modes = copy.deepcopy(encoder.state_dict()), [m.training for m in encoder.modules()]
    state = torch.random.get_rng_state()
    measure(embed_bench(encoder, bench, CPU), bench)
    assert [m.training for m in encoder.modules()] == modes
    assert all(torch.equal(value, before[key]) for key, value in encoder.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(p.grad is None for p in encoder.parameters())


def test_an_untrained_encoder_gets_the_statistics_of_the_composites(tiny, bench):
    encoder = Method(tiny()).query_encoder
    settle_norms(encoder, bench, CPU)
    seen = []
    norm = encoder.backbone.body.bn1
    norm.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    embed_bench(encoder, bench, CPU, ["backbone"])
    values = seen[0].transpose(0, 1).flatten(1)  # all composites of this small bench in one batch
    torch.testing.assert_close(norm.running_mean, values.mean(1), rtol=1e-3, atol=1e-3)
    assert norm.momentum == pytest.approx(0.1)
    assert encoder.training


def test_the_figures_of_a_run(finished, tmp_path):
    sheet = tmp_path / "sheet.png"
    found = probe(finished, **FEW, sheet=sheet)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert set(found) == {"probes", "chance", "curves", "settings", "held_out", "fingerprint"}
    common = {name for name in found["probes"] if "/" not in name}
    retrieved = {f"{v}{h}_{m}" for v in ("", "view_") for h in ("hard", "easy") for m in ("top1", "map")}
    more = {"variance_ratio", "alignment", "uniformity", "effective_rank", "box_slope", "box_rank_correlation"}
    assert common == retrieved | more
    assert {name.split("/")[0] for name in found["probes"] if "/" in name} == {"c4", "canvas", "box_head", "embedding"}
    assert "canvas/box_slope" not in found["probes"]  # it does not look at the box
    assert found["chance"]["hard_top1"] == found["chance"]["easy_top1"] == 0.25
    assert found["settings"]["run"] == RunFolder(finished).environment()["fingerprint"]
    assert found["settings"]["knn_images"] == 0
    assert sum(found["curves"]["backbone"]["variance_shares"].values()) == pytest.approx(1)
    assert sum(point["boxes"] for point in found["curves"]["backbone"]["box"]) == 4 * 12
    with Image.open(sheet) as picture:
        assert picture.format == "PNG"
        assert (np.asarray(picture) == (0x21, 0xD0, 0x7A)).all(2).sum() > 100  # some are framed
    again = probe(finished, **FEW)
    assert again == found
    other = probe(finished, **FEW, seed=1)
    assert other["settings"]["images"] != found["settings"]["images"]
    assert other["fingerprint"] != found["fingerprint"]
    assert probe(finished, **FEW, canvas=96)["probes"] != found["probes"]


def test_an_untrained_encoder_is_the_reference_on_the_same_images(finished, tiny):
    run = codo.load_pretrain_config(file=finished / "config.yaml")
    trained, none = probe(finished, **FEW), probe(None, config=run, **FEW)
    assert none["settings"]["weights"] == "none"
    assert none["settings"]["images"] == trained["settings"]["images"]
    assert none["settings"]["config"] == trained["settings"]["config"]
    assert none["probes"] != trained["probes"]


def test_the_figures_follow_from_the_weights_alone(finished, images, tmp_path):
    """A key of the state dict that is changed changes what is measured."""
    other = tmp_path / "other"
    shutil.copytree(finished, other)
    state, metadata = read_weights(other / "weights.safetensors")
    generator = torch.Generator().manual_seed(0)
    for key, value in state.items():
        if key.startswith("projector") and value.is_floating_point():
            state[key] = torch.randn(value.shape, generator=generator)
    codo.runs.weights_file.save_weights(other / "weights.safetensors", state, metadata)
    before, after = (probe(path, **FEW)["probes"] for path in (finished, other))
    changed = {name for name in before if before[name] != after[name]}
    assert changed
    assert {name.split("/")[0] for name in changed} == {"embedding"}


def manifest_of(path, rows):
    path.write_text("file,source,label\n" + "".join(f"{name},here,{label}\n" for name, label in rows))
    return path


def test_labels_give_a_knn_accuracy_and_only_of_the_folders_files(finished, images, tmp_path):
    folder = images / "foregrounds"
    rows = [(f"{i:02d}.png", "ab"[i % 2]) for i in range(12)] + [("../backgrounds/00.png", "c"), ("/etc/passwd", "c")]
    manifest = manifest_of(tmp_path / "labels.csv", rows)
    labels = read_labels(manifest, folder)
    assert len(labels) == 12
    marked = tmp_path / "excel.csv"
    marked.write_text(manifest.read_text(), encoding="utf-8-sig")
    assert read_labels(marked, folder) == labels
    assert set(labels.values()) == {"a", "b"}
    found = probe(finished, **FEW, manifest=manifest)
    assert found["settings"]["knn_images"] == 4  # of the images that were not trained on
    assert 0 <= found["probes"]["knn"] <= 1
    assert "box_head/knn" in found["probes"]
    assert found["chance"]["knn"] >= 0.5
    assert probe(finished, **FEW, manifest=manifest, knn_images=2)["settings"]["knn_images"] == 2


def test_a_manifest_that_nobody_asked_for_need_not_be_one(finished, images, tmp_path, capsys):
    folder = tmp_path / "photos"
    shutil.copytree(images / "foregrounds", folder)
    (tmp_path / "manifest.csv").write_text("name,price\n1,2\n")
    found = probe(finished, **FEW, foregrounds=folder)
    assert found["settings"]["knn_images"] == 0
    assert "manifest.csv: no column file and label; there must be" in capsys.readouterr().err
    with pytest.raises(CodoError, match="no column file and label"):
        probe(finished, **FEW, foregrounds=folder, manifest=tmp_path / "manifest.csv")


def test_a_manifest_beside_the_images_is_found(tmp_path):
    (tmp_path / "images").mkdir()
    assert find_manifest(tmp_path / "images") is None
    (tmp_path / "manifest.csv").touch()
    assert find_manifest(tmp_path / "images") == tmp_path / "manifest.csv"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("file,kind\na,b\n", "no column label"),
        ("file,label\nabsent.png,b\n", "none of its 1 files"),
        (None, "cannot read"),
    ],
)
def test_a_manifest_that_is_none_is_refused(tmp_path, images, text, said):
    path = tmp_path / "m.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(CodoError, match=said):
        read_labels(path, images / "foregrounds")


def records(folder):
    return [{k: v for k, v in r.items() if k not in TIMES} for r in RunFolder(folder).metrics()]


@pytest.fixture(scope="module")
def probed(tmp_path_factory, images):
    config = tiny_config(images, **{"run.probe_every": 1})
    return pretrain(config, tmp_path_factory.mktemp("probed") / "run").path


def test_probing_in_the_course_of_a_run_changes_nothing_but_what_is_logged(probed, tiny, tmp_path):
    plain = pretrain(tiny(), tmp_path / "plain").path
    log = records(probed)
    assert [{k: v for k, v in r.items() if not k.startswith("probe/")} for r in log] == records(plain)
    assert [r["step"] for r in log if "probe/hard_top1" in r] == [3, 6]
    ours, theirs = (read_weights(folder / "weights.safetensors")[0] for folder in (plain, probed))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    last = {k.removeprefix("probe/"): v for k, v in log[-1].items() if k.startswith("probe/")}
    assert last == pytest.approx({k: v for k, v in probe(probed)["probes"].items() if "/" not in k}, rel=1e-5)


def test_a_stopped_run_logs_the_same_probes_and_each_once(probed, tiny, tmp_path, monkeypatch):
    advance = Run.advance

    def stopping(self, batch):
        result = advance(self, batch)
        if self.step == 4:
            signal.raise_signal(signal.SIGINT)
        return result

    half = tmp_path / "half"
    with monkeypatch.context() as patch:
        patch.setattr(Run, "advance", stopping)
        with pytest.raises(Interrupted):
            pretrain(tiny(**{"run.probe_every": 1}), half)
    with open(half / "metrics.jsonl", "a") as file:  # what a kill leaves, whose checkpoint is step 4's
        file.write('{"step": 6, "loss": 1.0, "probe/hard_top1": 0.5}\n')
    resume(half)
    assert records(half) == records(probed)


def test_an_epoch_that_is_probed_is_logged_whatever_log_every(tiny, tmp_path):
    fields = {"run.probe_every": 2, "run.log_every": 5, "optim.epochs": 3}
    log = records(pretrain(tiny(**fields), tmp_path / "run").path)
    assert [(r["step"], "probe/hard_top1" in r) for r in log] == [(5, False), (6, True), (9, False)]


def test_a_probe_that_cannot_be_made_is_told_before_images_are_decoded(tiny, images, tmp_path, monkeypatch):
    (tmp_path / "one").mkdir()
    shutil.copy(images / "backgrounds" / "00.png", tmp_path / "one")
    config = tiny(**{"run.probe_every": 1, "data.backgrounds": str(tmp_path / "one")})
    monkeypatch.setattr("codo.jobs.pretrain.run.build_dataset", None)
    with pytest.raises(CodoError, match=r"^run\.probe_every: a probe needs 2 backgrounds or more, there are 1"):
        pretrain(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_command(finished, images, tmp_path, capsys):
    out = tmp_path / "probes.json"
    arguments = ["probe", str(finished), "--instances", "4", "--backgrounds-per-instance", "3", "--out", str(out)]
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 0
    assert json.loads(out.read_text()) == probe(finished, **FEW)
    said = capsys.readouterr().out
    assert "hard_top1" in said
    assert "0.250" in said  # chance
    assert "NOT held out" in said
    arguments = ["probe", "none", "--config", str(finished / "config.yaml"), "--instances", "4", "--set", "views=1"]
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["absent"], "absent is not a run folder"),
        (["RUN", "--preset", "codo"], "go with none"),
        (["RUN", "--instances", "13"], "--instances: 13 foregrounds are needed, there are 12"),
        (["RUN", "--backgrounds-per-instance", "6"], "6 backgrounds are needed, there are 5"),
        (["RUN", "--out", "x.csv"], "name it x.json"),
        (["RUN", "--sheet", "x.jpg"], "name it x.png"),
        (["RUN", "--canvas", "100"], "multiple of 32"),
        (["RUN", "--foregrounds", "absent"], "absent does not exist"),
        (["RUN", "--backgrounds", "absent"], "absent does not exist"),
        (["RUN", "--foregrounds-manifest", "absent.csv"], "cannot read the manifest absent.csv"),
        (["RUN", "--device", "tpu"], "no device 'tpu'"),
        (["none", "--preset", "big"], "no preset 'big'"),
    ],
)
def test_a_mistake_is_said_in_one_line(finished, arguments, said, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["probe", *(str(finished) if a == "RUN" else a for a in arguments)])
    assert ended.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1
    assert said in error[0]


def test_the_place_is_looked_at_before_the_work(finished, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Bench, "build", lambda *_: pytest.fail("the work was begun"))
    (tmp_path / "file").touch()
    for flag, name in {"--sheet": "a.png", "--out": "a.json"}.items():
        with pytest.raises(SystemExit) as ended:
            main(["probe", str(finished), flag, str(tmp_path / "file" / name)])
        assert ended.value.code == 2
        assert f"{name}: {tmp_path / 'file'} is a file; choose another folder" in capsys.readouterr().err


def test_a_disk_that_fills_up_leaves_the_figures(finished, tmp_path, full_disk, capsys):
    few = ["--instances", "4", "--backgrounds-per-instance", "3"]
    sheet, out = tmp_path / "a.png", tmp_path / "a.json"
    with full_disk(20_000), pytest.raises(SystemExit) as ended:
        main(["probe", str(finished), *few, "--sheet", str(sheet), "--out", str(out)])
    captured = capsys.readouterr()
    assert ended.value.code == 2
    assert captured.err.strip().endswith(
        f"cannot write {sheet}: File too large; free some space or choose another folder"
    )
    assert "hard_top1" in captured.out
    assert "hard_top1" in json.loads(out.read_text())["probes"]
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


def test_runs_that_cannot_be_probed_say_why(finished, tmp_path):
    half = tmp_path / "half"
    shutil.copytree(finished, half)
    (half / "summary.json").unlink()
    with pytest.raises(CodoError, match=r"not complete; finish it with: codo pretrain --resume"):
        probe(half)
    other = tmp_path / "other"
    shutil.copytree(finished, other)
    environment = json.loads((other / "environment.json").read_text())
    (other / "environment.json").write_text(json.dumps(environment | {"parts": {"backbone": ["Mine"]}}))
    with pytest.raises(CodoError, match="parts handed over from Python"):
        probe(other)
    shutil.copy(finished / "environment.json", other)
    config = (other / "config.yaml").read_text().replace("fpn_channels: 16", "fpn_channels: 24")
    (other / "config.yaml").write_text(config)
    with pytest.raises(CodoError, match=r"weights are not those of its config\.yaml"):
        probe(other)


def test_where_the_runs_own_images_are_gone_others_are_not_called_held_out(finished, images, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(finished, moved)
    config = (moved / "config.yaml").read_text()
    (moved / "config.yaml").write_text(config.replace(str(images / "foregrounds"), str(tmp_path / "gone")))
    found = probe(moved, foregrounds=images / "foregrounds", **FEW)
    assert not found["held_out"]
    assert math.isfinite(found["probes"]["hard_top1"])
    with pytest.raises(CodoError, match="gone does not exist"):
        probe(moved)
