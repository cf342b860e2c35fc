"""The examples of docs/custom-parts.md run, by hand and by dotted path, and bad parts are told in one line."""

from __future__ import annotations

import json
import re
import shutil
import sys

import pytest
import torch
from torch.multiprocessing import get_start_method, set_start_method

import codo
from codo.cli import main
from codo.cli.options import read_config
from codo.config.load import dump_yaml
from codo.errors import CodoError
from codo.jobs.pretrain import pretrain, resume
from codo.jobs.pretrain.build import build_dataset, find_sources
from codo.parts import find
from codo.runs.record import RunFolder
from codo.runs.weights_file import read_weights
from tests.conftest import REPOSITORY
from tests.parts import run_of

TEXT = (REPOSITORY / "docs" / "custom-parts.md").read_text(encoding="utf-8")
BLOCKS = [block for block in re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL) if "class " in block]


@pytest.fixture
def parts(tmp_path, monkeypatch):
    """The document's parts in a module of a working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_parts.py").write_text("\n".join(BLOCKS))
    yield "my_parts"
    sys.modules.pop("my_parts", None)


def imported():
    find("my_parts:BarlowTwins")
    return sys.modules["my_parts"]


def curve(path):
    return [(r["step"], r["loss"]) for r in RunFolder(path).metrics()]


def test_each_part_is_at_most_fifteen_lines():
    for block in BLOCKS:
        for part in re.split(r"\n(?=class )", block)[1:]:
            lines = [line for line in part.splitlines() if line.strip()]
            assert len(lines) <= 15, part


def test_a_custom_loss_is_a_term_of_its_own(tiny, parts, tmp_path):
    config = tiny(**{"loss.custom": [{"path": "my_parts:BarlowTwins", "weight": 0.5}], "optim.epochs": 1})
    metrics = RunFolder(pretrain(config, tmp_path / "run").path).metrics()
    assert all(m["loss"] == pytest.approx(m["loss_level"] + 0.5 * m["loss_BarlowTwins"], rel=1e-5) for m in metrics)
    other = [{"path": "my_parts:BarlowTwins", "weight": 0.5, "parameters": {"off_diagonal": 1.0}}]
    again = RunFolder(pretrain(tiny(**{"loss.custom": other, "optim.epochs": 1}), tmp_path / "other").path).metrics()
    assert again[0]["loss_BarlowTwins"] > metrics[0]["loss_BarlowTwins"]
    assert again[0]["loss_level"] == metrics[0]["loss_level"]


def test_a_loss_from_python_is_trained_alone_where_the_weights_of_the_others_are_0(tiny, parts, tmp_path):
    config = tiny(**{"loss.level": 0, "optim.epochs": 1})
    alone = pretrain(config, tmp_path / "run", losses=[imported().BarlowTwins()])
    assert all(m["loss"] == m["loss_BarlowTwins"] for m in RunFolder(alone.path).metrics())
    with pytest.raises(CodoError, match="every weight is 0, nothing would be learnt"):
        pretrain(config, tmp_path / "none")


def test_a_custom_loss_from_a_file_through_the_command_line(tiny, parts, tmp_path, capsys):
    (tmp_path / "config.yaml").write_text(dump_yaml(tiny(**{"optim.epochs": 1})))
    file = tmp_path / "elsewhere" / "losses.py"
    file.parent.mkdir()
    shutil.copy(tmp_path / "my_parts.py", file)
    for i, path in enumerate(["my_parts:BarlowTwins", f"{file}:BarlowTwins"]):
        with pytest.raises(SystemExit) as ended:
            main(["pretrain", "--config", "config.yaml", "--loss", path, "--out", f"run-{i}"])
        assert ended.value.code == 0
    assert "BarlowTwins" in capsys.readouterr().err  # the progress
    assert curve(tmp_path / "run-0") == curve(tmp_path / "run-1")
    assert "loss_BarlowTwins" in json.loads((tmp_path / "run-0/summary.json").read_text())


def test_the_losses_of_the_command_line_join_those_of_the_config(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("loss: {custom: [{path: 'a.py:A', weight: 0.5, parameters: {x: 1.0e-05}}]}")
    given = {"file": file, "preset": None, "sets": (), "losses": ("b.py:B", "c.py:C")}
    first, *others = read_config(given).loss.custom
    assert (first.path, first.weight, first.parameters) == ("a.py:A", 0.5, {"x": 1e-5})
    assert [part.path for part in others] == ["b.py:B", "c.py:C"]
    again = read_config(given | {"sets": ("loss.custom=['d.py:D']",)})
    assert [part.path for part in again.loss.custom] == ["d.py:D", "b.py:B", "c.py:C"]


def test_python_and_dotted_path_are_the_same_run(tiny, parts, tmp_path, capsys):
    module = imported()
    fields = {"optim.epochs": 1, "hierarchy": False}
    by_hand = pretrain(
        tiny(**fields),
        tmp_path / "hand",
        losses=[module.BarlowTwins()],
        augmenters=[module.Mixup(0.2)],
        jitter=module.Shift(0.3),
        projector=module.LinearProjector,
        box_head=module.PlainBoxHead,
        backbone=module.TinyBody,
    )
    warning = "a backbone handed over from Python cannot be built anew by codo transfer"
    assert warning in " ".join(capsys.readouterr().err.split())
    named = {
        "loss.custom": ["my_parts:BarlowTwins"],
        "augment": [{"path": "my_parts:Mixup", "parameters": {"strength": 0.2}}],
        "jitter.custom": {"path": "my_parts:Shift", "parameters": {"share": 0.3}},
        "model.projector": "my_parts:LinearProjector",
        "model.box_head": "my_parts:PlainBoxHead",
        "model.backbone": "my_parts:TinyBody",
    }
    by_path = pretrain(tiny(**fields, **named), tmp_path / "path")
    assert warning not in " ".join(capsys.readouterr().err.split())
    assert curve(by_hand.path) == curve(by_path.path)
    names = set(read_weights(by_path.path / "weights.safetensors")[0])
    assert {"backbone.body.stages.0.0.weight", "projector.1.weight", "box_head.1.weight"} <= names
    _, metadata = read_weights(by_path.path / "weights.safetensors")
    assert json.loads(metadata["custom"]) == {"box_head": "my_parts:PlainBoxHead", "backbone": "my_parts:TinyBody"}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("augment", ["my_parts:Mixup"]),
        ("jitter.custom", "my_parts:Shift"),
        ("model.projector", "my_parts:LinearProjector"),
        ("model.box_head", "my_parts:PlainBoxHead"),
        ("model.backbone", "my_parts:TinyBody"),
        ("loss.custom", ["my_parts:BarlowTwins"]),
    ],
)
def test_each_part_makes_a_difference(tiny, parts, tmp_path, field, value):
    runs = [pretrain(tiny(**f, **{"optim.epochs": 1}), tmp_path / n) for n, f in {"a": {}, "b": {field: value}}.items()]
    assert curve(runs[0].path) != curve(runs[1].path)


def test_the_mixup_draws_the_same_whoever_loads(tiny, parts):
    config = tiny(**{"augment": ["my_parts:Mixup"]})
    one, two = (build_dataset(config, find_sources(config))[(1, 4)].views for _ in range(2))
    plain = build_dataset(tiny(), find_sources(tiny()))[(1, 4)].views
    assert torch.equal(one.images, two.images)
    assert not torch.equal(one.images, plain.images)
    assert torch.equal(one.exact_boxes, plain.exact_boxes)


@pytest.mark.parametrize("place", ["my_parts", "sub/my_parts.py"])
def test_workers_that_are_started_afresh_import_the_parts_again(tiny, parts, tmp_path, place):
    file = tmp_path / "sub" / "my_parts.py"
    file.parent.mkdir()
    shutil.copy(tmp_path / "my_parts.py", file)
    fields = {"augment": [f"{place}:Mixup"], "jitter.custom": f"{place}:Shift"}
    before, batches = get_start_method(), []
    try:
        for method, workers in ((before, 0), ("spawn", 1)):
            set_start_method(method, force=True)
            run = run_of(tiny(**fields, **{"run.workers": workers}))
            batches.append(next(iter(run.batches(1))))
    finally:
        set_start_method(before, force=True)
    for here, there in zip(*(batch.views[:-1] for batch in batches), strict=True):
        assert torch.equal(here, there)


def test_a_part_imports_the_files_beside_it(tmp_path, monkeypatch):
    folder = tmp_path / "sub"
    folder.mkdir()
    (folder / "helpers_beside.py").write_text("def answer(): return 42\n")
    (folder / "part.py").write_text("from helpers_beside import answer\nclass Far:\n    value = answer()\n")
    monkeypatch.chdir(tmp_path)
    assert find("sub/part.py:Far").value == 42
    assert find("sub/part.py:Far") is find(f"{folder}/part.py:Far")


def test_a_losses_queue_and_parameter_are_saved_and_resumed(tiny, parts, tmp_path):
    loss = [{"path": "my_parts:OwnQueue", "parameters": {"size": 16, "width": 16}}]
    config = tiny(**{"loss.custom": loss, "optim.epochs": 3, "run.checkpoint_every": 2, "optim.lr": 0.5})
    whole = pretrain(config, tmp_path / "whole").path
    step, stopped = codo.jobs.pretrain.training.Run.advance, tmp_path / "stopped"

    class Killed(Exception):
        pass

    def killed(self, batch):
        if self.step == 5:
            raise Killed
        return step(self, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codo.jobs.pretrain.training.Run, "advance", killed)
        with pytest.raises(Killed):
            pretrain(config, stopped)
    resume(stopped)
    assert curve(stopped) == curve(whole)
    states = [torch.load(path / "checkpoint.pt", weights_only=True)["method"] for path in (whole, stopped)]
    for name in ("losses.OwnQueue.queue.keys", "losses.OwnQueue.log_temperature"):
        assert torch.equal(states[0][name], states[1][name])
    assert float(states[0]["losses.OwnQueue.log_temperature"]) != pytest.approx(-1.6, abs=1e-4)


def test_parts_from_python_are_asked_for_again(tiny, parts, tmp_path):
    module = imported()
    out = pretrain(tiny(**{"optim.epochs": 1}), tmp_path / "run", losses=[module.BarlowTwins()]).path
    with pytest.raises(
        CodoError, match=r"began with the parts \{'losses': \['BarlowTwins'\]\} from Python, now.* none"
    ):
        resume(out, {"optim.epochs": 2})
    assert resume(out, {"optim.epochs": 2}, losses=[module.BarlowTwins()]).summary["epochs"] == 2


BAD = """
import codo, numpy as np, torch
class NoLoss: pass
class NoEmbeds(codo.Loss):
    def forward(self, query, key): return query.image.sum()
class Vector(codo.Loss):
    embeds = "image"
    def forward(self, query, key): return query.image.sum(1)
class Returns(codo.Loss):
    embeds = "level"
    def __init__(self, what):
        super().__init__()
        self.what = what
    def forward(self, query, key):
        return {"None": None, "float": 1.0, "int": torch.tensor(3), "complex": query.level.sum() * 1j}[self.what]
class Forgets(torch.nn.Linear):
    def __init__(self, inputs, hidden, outputs): super().__init__(inputs, outputs)
    def forward(self, x): super().forward(x)
class Wider(torch.nn.Linear):
    def __init__(self, inputs, hidden, outputs): super().__init__(inputs, outputs + 1)
class Grey:
    def __call__(self, rng, image, box, foregrounds): return image.mean(2), box
class Alone:
    def __call__(self, rng, image, box, foregrounds): return image
class Turned:
    def __call__(self, rng, image, box, foregrounds): return image, box[::-1]
class Flat:
    def __call__(self, rng, box, canvas): return box[[0, 1, 2, 1]]
class Endless:
    def __call__(self, rng, box, canvas): return box * np.array([1, 1, np.inf, 1])
class Three:
    def __call__(self, rng, box, canvas): return box[:3]
class Body(torch.nn.Module):
    channels = [1, 2, 3, 4]
    def forward(self, images): return [images] * 4
NUMBER = 3
def number(): return NUMBER
def nothing(*_): return None
class Named(torch.nn.Module):
    channels = [1, 2, 3, 4]
    def forward(self, images): return {"c2": images}
class Fails(torch.nn.Module):
    def __init__(self): raise OSError("no weights here")
class Wide(torch.nn.Sequential):
    def __init__(self, channels, fc): super().__init__(torch.nn.Flatten(), torch.nn.Linear(channels * 49, 2 * fc))
"""


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("loss.custom", ["nowhere:Loss"], "cannot import nowhere"),
        ("loss.custom", ["absent.py:Loss"], "absent.py: no such file"),
        ("loss.custom", ["bad_parts:Missing"], "bad_parts has no Missing"),
        ("loss.custom", ["broken:Loss"], "cannot import broken .SyntaxError"),
        ("loss.custom", ["bad_parts:NoLoss"], "loss NoLoss: a codo.Loss is expected"),
        ("loss.custom", ["bad_parts:NoEmbeds"], "`embeds` must be one of image, instance, level, dense"),
        (
            "loss.custom",
            ["bad_parts:Vector"],
            r"loss Vector: must return a scalar of floats, not \(4,\) of",
        ),
        *(
            ("loss.custom", [{"path": "bad_parts:Returns", "parameters": {"what": what}}], f"loss Returns: must {said}")
            for what, said in {
                "None": "return a scalar tensor, not a NoneType",
                "float": "return a scalar tensor, not a float",
                "int": r"return a scalar of floats, not \(\) of torch.int64",
                "complex": r"return a scalar of floats, not \(\) of torch.complex64",
            }.items()
        ),
        (
            "loss.custom",
            [{"path": "bad_parts:NoEmbeds", "parameters": {"x": 1}}],
            "bad_parts:NoEmbeds: .*unexpected keyword",
        ),
        ("augment", ["bad_parts:Grey"], r"augmenter Grey: must return an image \(64, 64, 3\) uint8"),
        ("augment", ["bad_parts:Alone"], r"augmenter Alone: must return an image \(64, 64, 3\) uint8 and a box"),
        (
            "augment",
            ["bad_parts:Turned"],
            r"augmenter Turned: must return .* a box \(4,\), finite, x0 < x1 and y0 < y1",
        ),
        ("jitter.custom", "bad_parts:Flat", r"jitter Flat: must return a box \(4,\), finite, x0 < x1 and y0 < y1"),
        ("jitter.custom", "bad_parts:Endless", r"jitter Endless: must return a box \(4,\), finite"),
        ("jitter.custom", "bad_parts:Three", r"jitter Three: must return a box \(4,\)"),
        ("model.backbone", "bad_parts:Body", "must have `channels` of C2-C5"),
        ("model.backbone", "bad_parts:NUMBER", "bad_parts:NUMBER: 'int' object is not callable"),
        ("model.backbone", "bad_parts:number", "must have `channels` of C2-C5"),
        ("model.backbone", "bad_parts:Named", "must have `channels` of C2-C5"),
        ("model.backbone", "bad_parts:Fails", r"bad_parts:Fails fails \(OSError: no weights here\)"),
        ("model.box_head", "bad_parts:Wide", r"model.box_head: must give \(R, 32\).* it gives \(2, 64\)"),
        ("model.box_head", "bad_parts:nothing", "model.box_head: an nn.Module is expected, this is a NoneType"),
        ("model.projector", "bad_parts:nothing", "model.projector: an nn.Module is expected, this is a NoneType"),
        ("model.projector", "bad_parts:Forgets", r"model.projector: must give \(R, 16\).* of 2 rows it gives NoneType"),
        ("model.projector", "bad_parts:Wider", r"model.projector: must give \(R, 16\).* of 2 rows it gives \(2, 17\)"),
        ("model.projector", "bad_parts:Wide", "bad_parts:Wide: .* takes 3 positional arguments but 4 were given"),
        ("augment", ["bad_parts:nothing"], "bad_parts:nothing: must give what can be called on a view.*NoneType"),
        ("jitter.custom", "bad_parts:nothing", "bad_parts:nothing: must give what can be called on a view.*NoneType"),
    ],
)
def test_a_bad_part_is_told_in_one_line(tiny, tmp_path, monkeypatch, field, value, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad_parts.py").write_text(BAD)
    (tmp_path / "broken.py").write_text("def (:\n")
    sys.modules.pop("bad_parts", None)
    with pytest.raises(CodoError, match=said) as raised:
        pretrain(tiny(**{field: value}), tmp_path / "run")
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists()  # free for the corrected command


class Detached(codo.Loss):
    embeds = "level"

    def forward(self, query, key):
        return (query.level.detach() - key.level).square().mean()


def test_a_loss_without_gradient_is_told_and_alone_refused(tiny, tmp_path):
    warnings = pretrain(tiny(), tmp_path / "beside", losses=[Detached()]).summary["warnings"]
    assert warnings["gradient"].startswith("warning: loss Detached: had no gradient in the first step")
    with pytest.raises(CodoError, match=r"^loss Detached: has no gradient, nothing would be learnt$"):
        pretrain(tiny(loss__level=0), tmp_path / "alone", losses=[Detached()])
    with pytest.raises(CodoError, match=r"^loss Detached: has no gradient, nothing would be learnt$"):
        pretrain(tiny(loss__level=0, optim__accumulate=2), tmp_path / "parts", losses=[Detached()])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"losses": Detached()}, "losses: a list is expected, this is a Detached"),
        ({"projector": torch.nn.Linear(16, 16)}, "projector: as a class or function of 3 widths it fails: "),
        ({"box_head": torch.nn.Flatten()}, "box_head: as a class or function of 2 widths it fails: "),
    ],
)
def test_a_part_from_python_that_is_none_is_told(tiny, tmp_path, given, said):
    with pytest.raises(CodoError, match=said):
        pretrain(tiny(), tmp_path / "run", **given)


def test_a_path_without_a_name_is_refused_by_the_config(tiny):
    with pytest.raises(CodoError, match=r"loss\.custom"):
        tiny(**{"loss.custom": ["my_parts.BarlowTwins"]})
