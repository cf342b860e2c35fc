import json
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from transfer_parts import ARCHITECTURE, detector_config, encoder_state, metadata

from codo.config.sections import ArchitectureSection
from codo.config.transfer import DetectionSection
from codo.errors import CodoError
from codo.jobs.transfer.base import Detector
from codo.jobs.transfer.detectors import build_detector
from codo.jobs.transfer.proof import normalisation, prove
from codo.jobs.transfer.settings import load_transfer_config
from codo.runs.weights_file import read_metadata, read_weights, save_weights
from codo.weights import read_pretrained
from codo.weights.coverage import fresh_coverage, load_pretrained

SIZES = DetectionSection(min_size=(64,), max_size=96)
IMAGE = torch.rand(3, 50, 77, generator=torch.Generator().manual_seed(0))


def build(architecture: ArchitectureSection = ARCHITECTURE) -> Detector:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return build_detector(detector_config(architecture, SIZES), 2)


def write(path: Path, state: dict[str, torch.Tensor], **changes: str) -> str:
    save_weights(path / "weights.safetensors", state, metadata(**changes))
    return str(path)


def test_a_run_fills_all_three_groups_and_is_proven(pretrained: Path) -> None:
    detector, source = build(), read_pretrained(str(pretrained))
    fresh = {
        k: v.clone() for k, v in detector.state_dict().items() if k.startswith(("rpn.", "roi_heads.box_predictor"))
    }
    coverage = load_pretrained(detector, source)
    assert all(group.complete and not group.unexpected for group in coverage.groups.values())
    assert coverage.ignored == ["projectors.0.layers.0.weight"]
    state = encoder_state()
    own = detector.state_dict()
    assert torch.equal(own["backbone.body.conv1.0.weight"], state["backbone.body.conv1.0.weight"])
    assert torch.equal(own["roi_heads.box_head.0.1.running_var"], state["box_head.0.1.running_var"])
    assert all(torch.equal(own[k], v) for k, v in fresh.items())
    proof = prove(detector, ARCHITECTURE, source, coverage, IMAGE)
    assert proof.compared == "box head features"
    assert proof.values >= 5 * 32
    assert proof.difference is not None
    assert proof.difference < 1e-5
    assert proof.notes == []


@pytest.mark.parametrize("kind", ["detectron2 detector", "detectron2 backbone"])
def test_what_detectron2s_files_do_not_say_is_said(pretrained: Path, kind: str) -> None:
    source = replace(read_pretrained(str(pretrained)), kind=kind)
    detector = build()
    proof = prove(detector, ARCHITECTURE, source, load_pretrained(detector, source), IMAGE)
    assert proof.difference is not None
    for text in ("BGR", "PIXEL_STD 1", "strides in the 1x1", "does not say", "codo gives RGB"):
        assert text in str(proof)
    bare = build()
    state = {name: value for name, value in source.state.items() if name != "backbone.body.bn1.weight"}
    some = replace(source, state=state)
    assert "BGR" in str(prove(bare, ARCHITECTURE, some, load_pretrained(bare, some), IMAGE))


@pytest.mark.parametrize(
    "name",
    ["backbone.body.conv1.0.weight", "backbone.fpn.layer_blocks.0.0.weight", "roi_heads.box_head.0.1.running_var"],
)
def test_the_proof_fails_when_a_tensor_is_off(pretrained: Path, name: str) -> None:
    detector, source = build(), read_pretrained(str(pretrained))
    coverage = load_pretrained(detector, source)
    detector.state_dict()[name].mul_(1.02)
    with pytest.raises(CodoError, match="does not compute the box head features of pretrained"):
        prove(detector, ARCHITECTURE, source, coverage, IMAGE)


def test_the_proof_fails_when_the_normalisation_is_off(tmp_path: Path) -> None:
    source = read_pretrained(write(tmp_path / "run", encoder_state(), mean="[0.5, 0.5, 0.5]"))
    detector = build()
    coverage = load_pretrained(detector, source)
    with pytest.raises(CodoError, match="does not compute"):
        prove(detector, ARCHITECTURE, source, coverage, IMAGE)
    right = build_detector(detector_config(ARCHITECTURE, SIZES), 2, *normalisation(source))
    assert prove(right, ARCHITECTURE, source, load_pretrained(right, source), IMAGE).difference is not None


def test_other_pooling_in_pretraining_is_told(tmp_path: Path) -> None:
    roi = json.dumps({"sampling_ratio": 0, "aligned": True})
    source = read_pretrained(write(tmp_path / "run", encoder_state(), roi=roi))
    detector = build()
    proof = prove(detector, ARCHITECTURE, source, load_pretrained(detector, source), IMAGE)
    assert "sampling_ratio 0, aligned True" in str(proof)


def test_without_alignment_only_the_backbone_is_there(tmp_path: Path) -> None:
    body = {k: v for k, v in encoder_state().items() if k.startswith("backbone.body.")}
    source = read_pretrained(write(tmp_path / "run", body, alignment="false"))
    detector = build()
    coverage = load_pretrained(detector, source)
    assert coverage.groups["backbone"].complete
    for group in ("fpn", "box_head"):
        assert coverage.groups[group] == fresh_coverage(detector).groups[group]
        assert coverage.groups[group].missing
    assert prove(detector, ARCHITECTURE, source, coverage, IMAGE).compared == "backbone stages C2-C5"


def test_other_shapes_are_counted_and_left_fresh(pretrained: Path) -> None:
    detector = build(ARCHITECTURE.model_copy(update={"box_head_fc": 64}))
    before = detector.state_dict()["roi_heads.box_head.2.weight"].clone()
    source = read_pretrained(str(pretrained))
    coverage = load_pretrained(detector, source)
    assert coverage.groups["box_head"].reshaped == ["box_head.2.weight", "box_head.2.bias"]
    assert coverage.other_widths == {"box_head_fc": 32}
    assert torch.equal(detector.state_dict()["roi_heads.box_head.2.weight"], before)
    assert prove(detector, ARCHITECTURE, source, coverage, IMAGE).compared == "pyramid levels P2-P5"


def test_another_backbone_is_refused_and_nothing_is_loaded(pretrained: Path) -> None:
    detector = build(ARCHITECTURE.model_copy(update={"backbone": "resnet14t"}))
    before = {k: v.clone() for k, v in detector.state_dict().items()}
    with pytest.raises(CodoError, match=r"matches \d+ of the backbone's \d+ tensors"):
        load_pretrained(detector, read_pretrained(str(pretrained)))
    assert all(torch.equal(v, before[k]) for k, v in detector.state_dict().items())


@pytest.mark.parametrize("wrapping", ["plain", "model", "module"])
def test_a_plain_resnet_fills_the_backbone(tmp_path: Path, wrapping: str) -> None:
    state = timm.create_model("resnet10t").state_dict()
    # As torchvision's older files: without counters.
    state = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    if wrapping == "module":
        state = {f"module.{k}": v for k, v in state.items()}
    torch.save({"model": state, "epoch": 3} if wrapping == "model" else state, tmp_path / "resnet.pth")
    detector, source = build(), read_pretrained(str(tmp_path / "resnet.pth"))
    coverage = load_pretrained(detector, source)
    assert coverage.groups["backbone"].complete
    assert not coverage.groups["backbone"].unexpected
    assert not coverage.groups["fpn"].matched
    assert coverage.ignored == ["fc.bias", "fc.weight"]
    assert prove(detector, ARCHITECTURE, source, coverage, IMAGE).compared == "backbone stages C2-C5"


def test_a_detector_fills_a_detector(tmp_path: Path) -> None:
    first, second = build(), build()
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.add_(0.01)
    torch.save(first.state_dict(), tmp_path / "detector.pt")
    source = read_pretrained(str(tmp_path / "detector.pt"))
    coverage = load_pretrained(second, source)
    assert source.kind == "detector"
    assert all(group.complete for group in coverage.groups.values())
    assert any(name.startswith("rpn.") for name in coverage.ignored)
    assert prove(second, ARCHITECTURE, source, coverage, IMAGE).compared == "box head features"


class _Evil:
    def __reduce__(self) -> tuple:
        return print, ("executed",)


def test_files_that_cannot_be_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.pth").write_text("hello")
    (tmp_path / "text.safetensors").write_text("hello")
    torch.save({"a": _Evil()}, tmp_path / "evil.pt")
    torch.save({"a": _Evil}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    broken = encoder_state()
    broken["backbone.fpn.inner_blocks.0.0.weight"][0, 0] = float("nan")
    write(tmp_path / "nan", broken)
    messages = {
        "absent": "there is nothing at",
        "empty": "is it a run folder",
        "text.pth": "not a file of plain tensors .*: it is cut off, or not what torch.save writes",
        "old.pth": "not a file of plain tensors .*: it wants .*_Evil; save its state_dict alone",
        "text.safetensors": "not a whole safetensors file",
        "evil.pt": "not a file of plain tensors",
        "nan": "not finite, e.g. in backbone.fpn.inner_blocks.0.0.weight",
    }
    for name, message in messages.items():
        with pytest.raises(CodoError, match=message) as caught:
            read_pretrained(str(tmp_path / name))
        assert "\n" not in str(caught.value)
        assert "torch.load" not in str(caught.value)  # torch advises to let it run code
    assert "executed" not in capsys.readouterr().out


def test_an_unfinished_run_is_named_so(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("{}")
    with pytest.raises(CodoError, match="did the run finish"):
        read_pretrained(str(tmp_path))


def test_the_architecture_comes_from_the_run(pretrained: Path, tmp_path: Path) -> None:
    flags = {"weights": str(pretrained)}
    assert load_transfer_config(flags=flags).architecture == ARCHITECTURE  # not the preset's resnet18
    same = load_transfer_config(flags=flags, sets=["architecture.fpn_channels=16"])
    assert same.architecture == ARCHITECTURE
    with pytest.raises(CodoError, match=r"fpn_channels 64 \(the weights: 16\)"):
        load_transfer_config(flags=flags, sets=["architecture.fpn_channels=64"])
    file = tmp_path / "own.yaml"
    file.write_text("architecture: {backbone: resnet18}\noptim: {epochs: 1}\n")
    with pytest.raises(CodoError, match=r"backbone resnet18 \(the weights: resnet10t\)"):
        load_transfer_config(file=file, flags=flags)


def test_a_fresh_detector_can_have_the_architecture_of_a_run(pretrained: Path, tmp_path: Path) -> None:
    like = str(pretrained)
    config = load_transfer_config(flags={"weights": "none"}, like=like)
    assert (config.weights, config.architecture) == ("none", ARCHITECTURE)
    assert load_transfer_config(like=like).architecture == ARCHITECTURE  # no weights are the default
    with pytest.raises(CodoError, match=r"fpn_channels 64 \(the weights: 16\)"):
        load_transfer_config(sets=["architecture.fpn_channels=64"], like=like)
    with pytest.raises(CodoError, match=r"--like .*: the weights .* have an architecture of their own; leave it out"):
        load_transfer_config(flags={"weights": like}, like=like)
    torch.save(encoder_state(), tmp_path / "w.pth")
    others = load_transfer_config(flags={"weights": str(tmp_path / "w.pth")}, like=like)
    assert (others.weights, others.architecture) == (str(tmp_path / "w.pth"), ARCHITECTURE)
    with pytest.raises(CodoError, match=r"--like .*w\.pth: it does not say of which architecture it is"):
        load_transfer_config(like=str(tmp_path / "w.pth"))


def test_weights_files_round_trip(tmp_path: Path) -> None:
    state = {"a": torch.rand(2, 3, 4, 4).to(memory_format=torch.channels_last), "b": torch.tensor(3)}
    state["c"] = state["a"]  # shared memory, which safetensors refuses
    save_weights(tmp_path / "w.safetensors", state, {"x": "y"})
    read, told = read_weights(tmp_path / "w.safetensors")
    assert told == {"x": "y"} == read_metadata(tmp_path / "w.safetensors")
    assert all(torch.equal(read[name], value) for name, value in state.items())
    data = (tmp_path / "w.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(CodoError, match="not a whole safetensors file"):
        read_weights(tmp_path / "cut.safetensors")


def test_code_that_a_weights_file_names_is_run_only_if_the_user_names_it_too(tmp_path, monkeypatch):
    told = {"architecture": ARCHITECTURE.model_copy(update={"backbone": "evil:Body"}).model_dump_json()}
    file = tmp_path / "shared.safetensors"
    save_weights(file, encoder_state(), metadata() | told | {"custom": '{"backbone": "evil:Body"}'})
    (tmp_path / "evil.py").write_text("raise SystemExit('this ran')\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CodoError, match=r"to run that code, say --set architecture\.backbone=evil:Body"):
        load_transfer_config(flags={"weights": str(file)})
    config = load_transfer_config(flags={"weights": str(file), "architecture.backbone": "evil:Body"})
    assert config.architecture.backbone == "evil:Body"


def test_a_backbone_that_only_python_knew_is_named(tmp_path):
    file = tmp_path / "w.safetensors"
    save_weights(file, encoder_state(), metadata() | {"custom": '{"backbone": "Body"}'})
    with pytest.raises(CodoError, match="the backbone Body, handed over from Python"):
        load_transfer_config(flags={"weights": str(file)})


@pytest.mark.parametrize("custom", ["[", "[]", '{"backbone": 3}'])
def test_metadata_of_parts_that_are_broken_are_refused(tmp_path, custom):
    file = tmp_path / "w.safetensors"
    save_weights(file, encoder_state(), metadata() | {"custom": custom})
    with pytest.raises(CodoError, match="has metadata that are not codo's: custom = "):
        load_transfer_config(flags={"weights": str(file)})


@pytest.mark.parametrize("load", [("backbone",), ("backbone", "fpn"), ("fpn", "box_head"), ("box_head",)])
def test_what_is_not_to_be_loaded_stays_fresh_and_is_counted(pretrained: Path, load: tuple[str, ...]) -> None:
    detector, source = build(), read_pretrained(str(pretrained))
    fresh = {name: tensor.clone() for name, tensor in detector.state_dict().items()}
    coverage = load_pretrained(detector, source, load)
    for group, name in (
        ("backbone", "backbone.body.conv1.0.weight"),
        ("fpn", "backbone.fpn.layer_blocks.2.0.weight"),
        ("box_head", "roi_heads.box_head.0.0.weight"),
    ):
        found = coverage.groups[group]
        assert torch.equal(detector.state_dict()[name], fresh[name]) == (group not in load)
        assert bool(found.matched) == found.complete == (group in load)
        assert bool(found.left_out) == (group not in load)
        assert not found.missing
    proof = prove(detector, ARCHITECTURE, source, coverage, IMAGE)
    compared = {("backbone",): "backbone stages C2-C5", ("backbone", "fpn"): "pyramid levels P2-P5"}
    assert proof.compared == compared.get(load, "nothing")
    if "backbone" not in load:
        assert "left out on purpose" in str(proof)


def test_a_part_that_the_file_has_not_cannot_be_loaded_alone(tmp_path: Path) -> None:
    body = {k: v for k, v in encoder_state().items() if k.startswith("backbone.body.")}
    with pytest.raises(CodoError, match="has nothing of fpn, box_head that fits the model"):
        load_pretrained(build(), read_pretrained(write(tmp_path / "run", body)), ("fpn", "box_head"))


def test_which_parts_can_be_asked_for(pretrained: Path) -> None:
    flags = {"weights": str(pretrained)}
    assert load_transfer_config(flags=flags, sets=["load=[fpn, backbone]"]).load == ("fpn", "backbone")
    for value, message in (("[neck]", r"load"), ("[]", "load"), ("[fpn, fpn]", "names a part twice")):
        with pytest.raises(CodoError, match=message):
            load_transfer_config(flags=flags, sets=[f"load={value}"])
    with pytest.raises(CodoError, match="with weights=none there are none"):
        load_transfer_config(sets=["load=[backbone]"])
    with pytest.raises(CodoError, match="frozen_bn keeps statistics that nothing has learnt"):
        load_transfer_config(flags=flags, sets=["load=[fpn]", "norm=frozen_bn"])
