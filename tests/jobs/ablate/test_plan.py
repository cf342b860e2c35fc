"""The plan: jobs named by what determines them, shared, and found again; missing data refused with its line."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
import timm
import torch
import yaml
from webdataset import ShardWriter

from codo.errors import CodoError
from codo.jobs.ablate import jobs as jobs_module
from codo.jobs.ablate import plan as planning
from codo.jobs.ablate.code_version import changed_files, code_files, source_hash
from codo.jobs.ablate.jobs import Store, _tree_hash, config_hash
from codo.jobs.ablate.plan import CellKey, make_plan
from codo.jobs.ablate.resolve import load_grid
from codo.jobs.ablate.work import next_arguments
from codo.runs.lock import held
from tests.jobs.ablate.conftest import BASE, TRANSFER


@pytest.fixture
def planned(write_grid, tmp_path):
    def make(accept: bool = False, store: str = "jobs", name: str = "grid", **keys):
        grid = load_grid(write_grid(name, **keys))
        return make_plan(grid, Store(tmp_path / store), accept)

    return make


def finish(plan) -> None:
    """Write what finished jobs leave."""
    for name, job in plan.jobs.items():
        folder = plan.store.folder(name)
        folder.write(job)
        folder.run.mkdir(exist_ok=True)
        folder.result.write_text("{}")


def test_rows_share_pretrainings_and_protocols_share_them_too(planned):
    rows = {"a": {}, "b": {"transfer.norm": "frozen_bn"}, "c": {"hierarchy": False}, "random": {"weights": "none"}}
    two = {"tuned": TRANSFER, "half": TRANSFER | {"fraction": 0.5}}
    plan = planned(design="rows", axes=None, rows=rows, reference="a", transfer=two, probes=True)
    assert plan.counts() == {"pretrain": (12, 4, 4), "transfer": (16, 16, 16), "probe": (16, 6, 6)}
    first = plan.cells[CellKey("a", "tuned", 0)]
    assert first.pretrain == plan.cells[CellKey("b", "half", 0)].pretrain
    assert first.pretrain != plan.cells[CellKey("a", "tuned", 1)].pretrain
    assert plan.jobs[first.transfers[0]].settings.seed == plan.jobs[first.pretrain].settings.seed == 0
    assert plan.jobs[first.transfers[0]].settings.weights.endswith(f"{first.pretrain}/run")
    assert plan.cells[CellKey("random", "half", 1)].pretrain is None
    order = list(plan.jobs)
    assert order.index(first.pretrain) < order.index(first.transfers[0])


def test_weights_that_a_row_begins_with_belong_to_its_jobs_by_what_they_are(planned, tmp_path):
    file, moved = tmp_path / "start.pth", tmp_path / "moved.pth"

    def jobs(place, backbone=None):
        row = {"model.init": str(place)} | ({"model.backbone": backbone} if backbone else {})
        return planned(axes={"begun": row})

    def write(seed):
        torch.manual_seed(seed)
        torch.save(timm.create_model("resnet10t").state_dict(), file)

    with pytest.raises(
        CodoError,
        match=r"grid.yaml:\d+: .*model.init: there is nothing at .*start.pth; name a run folder, a weights file$",
    ):
        jobs(file)
    with torch.random.fork_rng():
        write(0)
        first = jobs(file)
        finish(first)
        shutil.copy(file, moved)
        assert set(jobs(moved).jobs) == set(first.jobs)
        assert jobs(moved).notices == []
        write(1)
    changed = jobs(file)
    assert len(set(changed.jobs) - set(first.jobs)) == len(first.jobs) // 2  # pretraining and transfer of `begun`
    assert len(changed.notices) == 2
    assert all("weights that they begin with changed since" in notice for notice in changed.notices)
    with pytest.raises(CodoError, match=r"grid.yaml:\d+: axes.begun.model.init: start.pth .* is architecture.backbone"):
        jobs(file, "resnet18")


def test_how_files_are_read_decides_only_what_begins_with_one():
    assert "weights/layouts.py" not in {*code_files("pretrain"), *code_files("probe")}
    assert "weights/layouts.py" in code_files("pretrain", begun=True)
    assert "weights/layouts.py" in code_files("transfer")


def test_a_relative_path_of_weights_is_made_absolute_and_random_rows_stay_random(planned, tmp_path, monkeypatch):
    torch.save(timm.create_model("resnet10t").state_dict(), tmp_path / "start.pth")
    monkeypatch.chdir(tmp_path)
    model = BASE["model"] | {"init": "start.pth"}
    plan = planned(base=BASE | {"model": model}, include_none=True)
    pretrainings = [job for job in plan.jobs.values() if job.kind == "pretrain"]
    assert len(pretrainings) == 4
    assert {job.settings.model.init for job in pretrainings} == {str(tmp_path / "start.pth")}
    random = plan.cells[CellKey("random", "tuned", 0)]
    assert random.pretrain is None
    assert plan.jobs[random.transfers[0]].settings.weights == "none"


def test_a_budget_that_whole_epochs_miss_is_told(planned):
    assert planned(axes={"five": {"views": 5}}).notices == [
        "five composes 6 images of each foreground and the base 4, as epochs are whole; more epochs come closer"
    ]
    assert planned(axes={"three": {"views": 3}}).notices == []  # one epoch of 4
    assert planned(axes={"five": {"views": 5}}, budget="epochs").notices == []


def test_probes_look_at_the_same_images_in_every_row(planned):
    plan = planned(probes=True, include_none=True, axes={"no paste": {"background": False}})
    words = [job.words for job in plan.jobs.values() if job.kind == "probe"]
    assert len(words) == 6
    places = {tuple(w[w.index("--canvas") :]) for w in words}
    assert len(places) == 1
    assert {"--foregrounds", "--backgrounds", "--seed", "--device"} < set(words[0])
    assert sum(w[0] == "none" for w in words) == 2


def test_probes_that_there_are_none_of_are_refused_with_their_line(planned):
    assert planned(probes=["hard_top1", "box_head/hard_top1", "c4/knn"]).counts()["probe"][1] == 4
    for name, said in (
        ("hard_top", "did you mean hard_top1?"),
        ("c4/hard_top", "did you mean c4/"),
        ("zz", "there are"),
    ):
        with pytest.raises(CodoError, match=rf"grid.yaml:\d+: probes.1: no probe is called '{name}'; {said}"):
            planned(probes=["knn", name])


def test_grids_share_jobs_and_nothing_is_asked_for_twice(planned):
    finish(planned())
    again = planned(name="another", title="Another", axes={"x": {"hierarchy": False}, "two": {"views": 3}})
    assert again.counts()["pretrain"] == (6, 6, 2)
    assert again.notices == []


def test_a_row_that_pastes_nothing_does_not_depend_on_the_backgrounds(planned, squares, tmp_path, images):
    base = planned(axes={"off": {"background": False}})
    other = planned(
        axes={"off": {"background": False}},
        data={"foregrounds": str(images / "foregrounds"), "backgrounds": str(images / "backgrounds")},
        transfer={"tuned": TRANSFER | {"data": str(squares)}},
    )
    key = CellKey("off", "tuned", 0)
    assert base.cells[key] == other.cells[key]
    assert base.cells[CellKey("full", "tuned", 0)] != other.cells[CellKey("full", "tuned", 0)]


def test_probes_in_the_course_of_a_pretraining_make_other_jobs_and_look_at_the_same_images(planned):
    def jobs(base: dict) -> list:
        plan = planned(base=base, axes={"off": {"background": False}})
        return [plan.jobs[plan.cells[CellKey(row, "tuned", 0)].pretrain] for row in ("full", "off")]

    plain = jobs(BASE)
    probed = jobs(BASE | {"run": BASE["run"] | {"probe_every": 1}})
    assert not {job.name for job in plain} & {job.name for job in probed}
    assert plain[1].settings.data.backgrounds is None
    assert probed[1].settings.data.backgrounds == probed[0].settings.data.backgrounds


def moved(plan, kind: str, field: str):
    """Begin a job of a kind, and give it another place for its data; return its folder."""
    job = next(job for job in plan.jobs.values() if job.kind == kind)
    folder = plan.store.folder(job.name)
    folder.write(job)
    folder.run.mkdir()
    shutil.copy(folder.path / "config.yaml", folder.run)
    (folder.run / "checkpoint.pt").touch()
    assert next_arguments(folder) == [kind, "--resume", str(folder.run)]
    data = job.settings.data.model_copy(update={field: "elsewhere"})
    folder.write(replace(job, settings=job.settings.model_copy(update={"data": data})))
    return folder


def test_a_pretraining_whose_images_were_moved_goes_on_with_them(planned):
    folder = moved(planned(), "pretrain", "foregrounds")
    assert next_arguments(folder) == ["pretrain", "--resume", str(folder.run), "--foregrounds", "elsewhere"]


def test_a_transfer_whose_data_were_moved_begins_again(planned):
    folder = moved(planned(), "transfer", "root")
    with held(folder.run), pytest.raises(CodoError, match="is in use"):
        next_arguments(folder)
    assert (folder.run / "checkpoint.pt").exists()
    assert next_arguments(folder)[:2] == ["transfer", "--config"]
    assert not folder.run.exists()


def test_jobs_of_several_processes_are_others(planned):
    one, unset, two = planned(processes=1), planned(), planned(processes=2)
    assert list(one.jobs) == list(unset.jobs)
    assert not set(one.jobs) & set(two.jobs)
    job = next(iter(one.jobs.values()))
    assert job.config == config_hash(job.settings), "names of before stand"


def test_changed_code_is_noticed_and_said(planned, monkeypatch):
    before = planned()
    finish(before)
    real = code_files

    def changed(kind, custom=(), begun=False):
        return real(kind, custom, begun) | ({"losses/info_nce.py": "0"} if kind == "pretrain" else {})

    monkeypatch.setattr(planning, "code_files", changed)
    after = planned()
    assert after.counts() == before.counts() | {"pretrain": (4, 4, 4), "transfer": (4, 4, 4)}
    assert not set(after.jobs) & set(before.jobs)
    assert "finished pretrain jobs are run again: codo/ changed since (losses/info_nce.py)" in after.notices[0]
    assert "finished transfer jobs are run again: their pretraining is made anew" in after.notices[1]
    accepted = planned(accept=True)
    assert list(accepted.jobs) == list(before.jobs)
    assert accepted.remaining() == []
    assert "4 pretrain jobs are those of another version of the code" in accepted.notices[0]


def test_jobs_that_never_ran_are_not_run_again(planned, squares, images, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(squares, copy)
    keys = {"data": {"foregrounds": str(images / "foregrounds"), "backgrounds": str(copy)}}
    before = planned(**keys)
    for name, job in before.jobs.items():
        before.store.folder(name).write(job)
    shutil.copy(copy / "images" / "train_0.png", copy / "images" / "train_1.png")
    assert planned(**keys).notices == []


@pytest.mark.parametrize("processes", [1, 2])
def test_jobs_from_before_a_field_with_a_default_are_noticed_and_can_be_kept(planned, monkeypatch, processes):
    keys = {"probes": True, "include_none": True, "processes": processes}
    real = code_files

    def fewer_fields(config):
        tree = config.model_dump(mode="json")
        del tree["optim"]["accumulate"]
        return tree

    with monkeypatch.context() as earlier:
        earlier.setattr(planning, "config_hash", lambda c, *parts: _tree_hash(type(c), fewer_fields(c), *parts))
        earlier.setattr(jobs_module, "dump_yaml", lambda config: yaml.safe_dump(fewer_fields(config)))
        earlier.setattr(planning, "code_files", lambda *of: real(*of) | {"config/sections.py": "0"})
        before = planned(**keys)
        finish(before)
    after = planned(**keys)
    assert not set(after.jobs) & set(before.jobs)
    for kind in ("pretrain", "transfer", "probe"):
        assert any(notice.startswith(f"finished {kind} jobs are run again") for notice in after.notices)
    assert "codo/ changed since (config/sections.py)" in after.notices[0]
    accepted = planned(accept=True, **keys)
    assert set(accepted.jobs) == set(before.jobs)
    assert accepted.remaining() == []
    assert planned(accept=True, **keys | {"processes": 3 - processes}).remaining(), "other jobs"
    for name in before.jobs:
        (before.store.folder(name).path / "config.yaml").write_bytes(b"a: [\xff")
    assert not set(planned(accept=True, **keys).jobs) & set(before.jobs)


def test_a_changed_data_set_is_noticed_and_said(planned, squares, images, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(squares, copy)
    keys = {"data": {"foregrounds": str(images / "foregrounds"), "backgrounds": str(copy)}}
    before = planned(**keys)
    finish(before)
    assert planned(**keys).remaining() == []
    shutil.copy(copy / "images" / "train_0.png", copy / "images" / "train_1.png")
    after = planned(**keys)
    assert not set(after.jobs) & set(before.jobs)
    assert (
        "4 pretrain jobs are run again: the images, annotations or weights that they begin with changed since"
        in after.notices[0]
    )


def test_probes_are_named_by_the_images_and_labels_that_they_look_at(planned, squares, images, tmp_path):
    scenes, objects = tmp_path / "scenes", tmp_path / "objects"
    shutil.copytree(squares, scenes)
    shutil.copytree(images / "foregrounds", objects)
    keys = {"probes": True, "data": {"foregrounds": str(objects), "backgrounds": str(scenes)}, "seeds": [0]}

    def probes() -> set[str]:
        plan = planned(**keys, transfer={"x": TRANSFER | {"data": str(squares)}})
        return {name for name, job in plan.jobs.items() if job.kind == "probe"}

    seen = [probes()]
    for change in (
        lambda: shutil.copy(scenes / "images" / "val_0.png", scenes / "images" / "val_1.png"),
        lambda: (tmp_path / "manifest.csv").write_text("file,label\na.png,x\n"),
        lambda: (tmp_path / "manifest.csv").write_text("file,label\na.png,y\n"),
    ):
        change()
        seen.append(probes())
    assert len(set.union(*seen)) == 4 * 2, "two rows"


def test_shards_are_pretrained_on_and_not_probed(planned, images, squares, tmp_path):
    with ShardWriter(str(tmp_path / "photos-%02d.tar"), maxcount=50, verbose=0) as writer:
        for file in sorted((images / "foregrounds").iterdir()):
            writer.write({"__key__": file.stem, "png": file.read_bytes()})
    data = {"foregrounds": str(tmp_path / "photos-{00..00}.tar"), "backgrounds": str(squares)}
    assert planned(data=data).counts()["pretrain"][1] == 4
    with pytest.raises(CodoError, match=r"grid.yaml:\d+: data.foregrounds: .*probes look at folders"):
        planned(data=data, probes=True)


def test_data_that_is_missing_is_refused_with_its_line(planned, images, squares, tmp_path):
    with pytest.raises(CodoError, match=r"grid.yaml:\d+: data.foregrounds: .*nowhere"):
        planned(data={"foregrounds": str(tmp_path / "nowhere"), "backgrounds": str(squares)})
    with pytest.raises(CodoError, match=r"grid.yaml:\d+: data.backgrounds: .*nowhere"):
        planned(data={"foregrounds": str(images / "foregrounds"), "backgrounds": str(tmp_path / "nowhere")})
    with pytest.raises(CodoError, match=r"grid.yaml:\d+: axes.b.data.backgrounds: .*nowhere"):
        planned(axes={"b": {"data.backgrounds": str(tmp_path / "nowhere")}})
    with pytest.raises(CodoError, match=r"grid.yaml:\d+: transfer.tuned.data: .*nowhere"):
        planned(transfer={"tuned": TRANSFER | {"data": {"root": str(tmp_path / "nowhere")}}})
    with pytest.raises(CodoError, match=r"grid.yaml:\d+: .*: 12 images do not fill one batch of 16"):
        planned(axes={"big": {"optim.batch_size": 16}}, budget="epochs")


def test_backbones_and_parts_that_there_are_not_are_refused_with_their_line(planned, tmp_path):
    part = tmp_path / "part.py"
    part.write_text("class Jitter:\n    pass\n")
    for axis, said in (
        ({"loss.custom": ["nope.py:X"]}, "loss.custom: nope.py: no such file"),
        ({"augment": [f"{part}:Nope"]}, "augment: .* has no Nope"),
        (
            {"jitter.custom": {"path": f"{part}:Jitter", "parameters": {"x": 1}}},
            r"jitter.custom: .*Jitter\(\) takes no",
        ),
        ({"model.box_head": f"{part}:Jitter"}, r"model.box_head: .*Jitter\(\) takes no"),
        ({"model.projector": f"{part}:Nope"}, "model.projector: .* has no Nope"),
        ({"model.backbone": "resnet999"}, "model.backbone: backbone: timm has no model 'resnet999'"),
        ({"transfer.detector": "nope.py:X"}, "transfer.detector: nope.py: no such file"),
    ):
        with pytest.raises(CodoError, match=rf"grid.yaml:\d+: axes.bad.{said}"):
            planned(axes={"bad": axis})
    base = BASE | {"loss": BASE["loss"] | {"custom": ["nope.py:X"]}}
    with pytest.raises(CodoError, match=r"base.loss.custom: nope.py: no such file") as raised:
        planned(base=base)
    line = int(str(raised.value).split("grid.yaml:")[1].partition(":")[0])
    assert "custom" in (tmp_path / "grid.yaml").read_text().splitlines()[line - 1]
    with pytest.raises(CodoError, match=r"grid.yaml:\d+: transfer.tuned.detector: nope.py: no such file"):
        planned(transfer={"tuned": TRANSFER | {"detector": "nope.py:X"}})


def test_the_code_version_is_of_what_the_code_does(tmp_path):
    file = tmp_path / "part.py"
    file.write_text('"""Doc."""\n\n\ndef f(x):\n    """Doc."""\n    return x + 1  # why\n')
    before = source_hash(file)
    for text, same in (
        ('"""Other."""\ndef f(x):\n    return (x\n      + 1)\n', True),
        ("def f(x):\n    return x + 2\n", False),
    ):
        file.write_text(text)
        assert (source_hash(file) == before) is same
    assert code_files("transfer", [f"{file}:f"])[str(file)] == source_hash(file)
    assert changed_files({"a": "1", "b": "2"}, {"a": "1", "b": "3", "c": "4"}) == ["b", "c"]


def test_the_code_version_is_the_same_on_every_python(tmp_path):
    """Where another Python (3.11 here, 3.12 there) takes up a study, nothing is run again."""
    file = tmp_path / "part.py"
    file.write_text(
        """async def f(x, *, y=None):
    "Doc."
    yield f"{x!r:>{y}} {', '.join('ab')} \\u00e9", b"0", 1e3, ...
""",
        encoding="utf-8",
    )
    assert source_hash(file) == "d77fca56"


def test_what_decides_numbers_is_in_the_code_version():
    pretrain, transfer = code_files("pretrain"), code_files("transfer")
    both = {"backbones/backbone.py", "heads/box.py", "data/coco.py", "runs/seed.py", "runs/sgd.py", "model/sync_bn.py"}
    assert both | {"augment/jitter.py", "losses/info_nce.py", "model/encoder.py", "jobs/pretrain/loop.py"} <= set(
        pretrain
    )
    assert both | {"jobs/transfer/loop.py", "jobs/transfer/detectors.py", "weights/pretrained.py"} <= set(transfer)
    assert not {"losses/info_nce.py", "losses/base.py", "augment/jitter.py", "jobs/pretrain/loop.py"} & set(transfer)
    assert {name for name in transfer if name.startswith("augment/")} == {"augment/pixels.py"}
    shown = {"jobs/pretrain/preview.py", "runs/console.py", "config/presets.py", "cli/pretrain.py", "__init__.py"}
    assert not shown & (set(pretrain) | set(transfer))


def test_a_part_of_its_own_is_found_where_it_is_imported_from(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_part_of_mine.py").write_text("x = 1\n")
    assert "own_part_of_mine" in code_files("pretrain", ["own_part_of_mine:x"])
    assert code_files("pretrain", ["not_there_at_all:x"]) == code_files("pretrain")


def test_what_a_part_imports_of_the_users_own_is_in_the_code_version(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files = {
        "sub/part.py": "import json, codo\nfrom helpers_beside import f\ndef g():\n    import at_the_top\n",
        "sub/helpers_beside.py": "from own_package import deep\n",
        "at_the_top.py": "",
        "own_package/__init__.py": "",
        "own_package/deep/__init__.py": "from . import inner\nfrom ..other import x\n",
        "own_package/deep/inner.py": "",
        "own_package/other.py": "x = 1\n",
        "own_package/unused.py": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    own = {"own_package", "own_package.deep", "own_package.deep.inner", "own_package.other"}
    found = code_files("pretrain", ["sub/part.py:g"])
    helpers = {f"sub/part.py: {name}" for name in own | {"helpers_beside", "at_the_top"}}
    assert found.keys() - code_files("pretrain").keys() == {"sub/part.py", *helpers}
    package = code_files("pretrain", ["own_package.deep:inner"])
    assert package.keys() - code_files("pretrain").keys() == {
        "own_package.deep",
        *(f"own_package.deep: {name}" for name in own - {"own_package.deep"}),
    }
    (tmp_path / "own_package/other.py").write_text("x = 2\n")
    changed = changed_files(found, code_files("pretrain", ["sub/part.py:g"]))
    assert [name for name in changed if name.startswith("sub/")] == ["sub/part.py: own_package.other"]
