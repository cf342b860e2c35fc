"""Files as other libraries write them, made here from a torchvision or timm ResNet, into a detector."""

from __future__ import annotations

import pickle
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from codo.config.sections import ArchitectureSection
from codo.config.transfer import DetectionSection, TransferConfig
from codo.errors import CodoError
from codo.jobs.transfer.base import Detector
from codo.jobs.transfer.detectors import build_detector
from codo.jobs.transfer.proof import prove
from codo.weights import Pretrained, read_pretrained
from codo.weights.coverage import Coverage, load_pretrained

SMALL = {"fpn_channels": 16, "box_head_convs": 2, "box_head_channels": 16, "box_head_fc": 32}
RESNET18 = ArchitectureSection(backbone="resnet18", **SMALL)
IMAGE = torch.rand(3, 64, 96, generator=torch.Generator().manual_seed(0))

State = dict[str, Tensor]


def detector_of(architecture: ArchitectureSection = RESNET18, detector: str = "faster_rcnn") -> Detector:
    sizes = DetectionSection(min_size=(64,), max_size=96)
    config = TransferConfig(architecture=architecture, detection=sizes, detector=detector, weights="some")
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return build_detector(config, 2)


def shaken(model: nn.Module) -> nn.Module:
    """Give a model weights and BN statistics that are no defaults, and that keep its features at a size of 1."""
    generator = torch.Generator().manual_seed(1)
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            noise = torch.rand(value.shape, generator=generator)
            if value.dim() == 1:
                value.copy_(0.5 + noise if "var" in name or "weight" in name else noise - 0.5)
            else:
                value.copy_((6 / value[0].numel()) ** 0.5 * (2 * noise - 1))
    return model.eval()


@pytest.fixture(scope="module")
def resnet() -> nn.Module:
    with torch.random.fork_rng():
        return shaken(torchvision.models.resnet18(num_classes=7))


@torch.no_grad()
def stages(resnet: Any, images: Tensor) -> list[Tensor]:
    """Compute C2-C5 with a torchvision or timm ResNet itself."""
    act = resnet.relu if hasattr(resnet, "relu") else resnet.act1
    x, found = resnet.maxpool(act(resnet.bn1(resnet.conv1(images)))), []
    for layer in (resnet.layer1, resnet.layer2, resnet.layer3, resnet.layer4):
        x = layer(x)
        found.append(x)
    return found


def load(path: Path, detector: Detector | None = None) -> tuple[Detector, Pretrained, Coverage]:
    detector = detector or detector_of()
    source = read_pretrained(str(path), "resnet18")
    return detector, source, load_pretrained(detector, source)


def assert_same_features(detector: Detector, resnet: nn.Module) -> None:
    images = IMAGE[None]
    with torch.no_grad():
        for ours, theirs in zip(detector.eval().backbone.stages(images), stages(resnet, images), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def under(prefix: str, state: State) -> State:
    return {prefix + name: value for name, value in state.items()}


def without_fc(state: State) -> State:
    return {name: value for name, value in state.items() if not name.startswith("fc.")}


def moco(state: State) -> dict[str, Any]:
    """facebookresearch/moco's main_moco.py: DistributedDataParallel, query and key encoder, queue, optimiser."""
    key = {name: torch.zeros_like(value) for name, value in state.items()}
    fc = {"fc.0.weight": torch.ones(4, 4), "fc.2.weight": torch.ones(2, 4)}
    tensors = under("module.encoder_q.", without_fc(state) | fc) | under("module.encoder_k.", without_fc(key) | fc)
    tensors |= {"module.queue": torch.zeros(2, 8), "module.queue_ptr": torch.zeros(1, dtype=torch.long)}
    return {"epoch": 200, "arch": "resnet18", "state_dict": OrderedDict(tensors), "optimizer": {"state": {}}}


def sequential(state: State) -> State:
    """lightly's tutorials: `nn.Sequential(*list(resnet.children())[:-1])`."""
    network = torchvision.models.resnet18(num_classes=7)
    network.load_state_dict(state)
    return nn.Sequential(*list(network.children())[:-1]).state_dict()


def lightly_lightning(state: State) -> dict[str, Any]:
    body, copy = sequential(state), {name: torch.zeros_like(value) for name, value in sequential(state).items()}
    tensors = under("backbone.", body) | under("backbone_momentum.", copy)
    tensors |= {"projection_head.layers.0.weight": torch.ones(4, 4)}
    return {"state_dict": tensors, "pytorch-lightning_version": "2.5.0", "epoch": 9, "callbacks": {}, "loops": None}


def solo_learn(state: State) -> dict[str, Any]:
    copy = {name: torch.zeros_like(value) for name, value in state.items()}
    tensors = under("backbone.", without_fc(state)) | under("momentum_backbone.", without_fc(copy))
    return {"state_dict": tensors | {"projector.0.weight": torch.ones(3, 3), "classifier.weight": torch.ones(3, 3)}}


LAYOUTS: dict[str, tuple[Callable[[State], Any], str, int]] = {
    "plain": (dict, "backbone", 2),
    "without classifier": (without_fc, "backbone", 0),
    "torchvision's train.py": (lambda s: {"model": s, "epoch": 1}, "backbone", 2),
    "compiled": (lambda s: under("_orig_mod.", s), "backbone", 2),
    "moco": (moco, "MoCo's query encoder", 126),
    "lightly, named": (lambda s: under("backbone.", without_fc(s)), "lightly", 0),
    "lightly, numbered": (lambda s: under("backbone.", sequential(s)), "lightly", 0),
    "lightly, numbered alone": (sequential, "backbone", 0),
    "lightly, lightning": (lightly_lightning, "lightly", 121),
    "solo-learn": (solo_learn, "solo-learn", 122),
    "solo-learn, old": (lambda s: {"state_dict": under("encoder.", without_fc(s))}, "solo-learn", 0),
    "mmselfsup": (
        lambda s: {"meta": {}, "state_dict": under("backbone.", without_fc(s)) | {"neck.0.weight": s["fc.bias"]}},
        "mmselfsup",
        1,
    ),
    "of one's own": (lambda s: under("net.student.", s) | under("net.ema_teacher.", s), "net.student.", 124),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_checkpoint_fills_the_backbone(tmp_path: Path, resnet: nn.Module, layout: str) -> None:
    make, kind, ignored = LAYOUTS[layout]
    torch.save(make(resnet.state_dict()), tmp_path / "file.pth")
    detector, source, coverage = load(tmp_path / "file.pth")
    backbone = coverage.groups["backbone"]
    assert backbone.complete
    assert len(backbone.matched) == 100  # 20 convolutions and batch norms
    assert not backbone.unexpected
    assert kind in source.kind
    assert len(source.ignored) == ignored
    assert not coverage.groups["fpn"].matched
    assert_same_features(detector, resnet)
    proof = prove(detector, RESNET18, source, coverage, IMAGE)
    assert proof.compared == "backbone stages C2-C5"


def test_a_timm_resnet_as_safetensors(tmp_path: Path) -> None:
    model = shaken(timm.create_model("resnet18"))
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    detector, _, coverage = load(tmp_path)  # the folder, as timm's hub has it
    assert coverage.groups["backbone"].complete
    assert_same_features(detector, model)


@pytest.mark.parametrize("name", ["convnext_atto", "mobilenetv3_small_050"])
def test_other_timm_models_have_their_own_names(tmp_path: Path, name: str) -> None:
    model = shaken(timm.create_model(name))
    torch.save(model.state_dict(), tmp_path / "model.pth")
    architecture = ArchitectureSection(backbone=name, **SMALL)
    source = read_pretrained(str(tmp_path / "model.pth"), name)
    detector = detector_of(architecture)
    coverage = load_pretrained(detector, source)
    assert coverage.groups["backbone"].complete
    features = timm.create_model(name, features_only=True).eval()
    body = {k.removeprefix("backbone.body."): v for k, v in source.state.items()}
    features.load_state_dict(body)
    with torch.no_grad():
        theirs = {tuple(f.shape): f for f in features(IMAGE[None])}
        for ours in detector.eval().backbone.stages(IMAGE[None]):
            torch.testing.assert_close(ours, theirs[tuple(ours.shape)], rtol=1e-5, atol=1e-5)
    assert any("head" in left or "classifier" in left for left in source.ignored)


# The detectors. Their names are written out here, and not made by codo's key maps.


def old_names(state: State) -> State:
    """torchvision before 0.13, and `fasterrcnn_resnet50_fpn` to this day."""
    found = {f"backbone.body.{name}": value for name, value in without_fc(state).items()}
    for i, channels in enumerate((64, 128, 256, 512)):
        found[f"backbone.fpn.inner_blocks.{i}.weight"] = torch.full((16, channels, 1, 1), 0.1 * i)
        found[f"backbone.fpn.layer_blocks.{i}.weight"] = torch.full((16, 16, 3, 3), 0.1 * i)
        found[f"backbone.fpn.inner_blocks.{i}.bias"] = torch.ones(16)
    return found | {"roi_heads.box_head.fc6.weight": torch.ones(32, 784), "rpn.head.conv.weight": torch.ones(1)}


def test_torchvisions_older_detectors(tmp_path: Path, resnet: nn.Module) -> None:
    torch.save(old_names(resnet.state_dict()), tmp_path / "detector.pth")
    detector, source, coverage = load(tmp_path / "detector.pth")
    fpn = coverage.groups["fpn"]
    assert (len(fpn.matched), len(fpn.missing), len(fpn.unexpected)) == (8, 32, 4)  # no norms, but biases
    assert coverage.groups["box_head"].unexpected == ["box_head.fc6.weight"]
    assert source.ignored == ["rpn.head.conv.weight"]
    assert float(detector.state_dict()["backbone.fpn.layer_blocks.3.0.weight"].mean()) == pytest.approx(0.3)
    assert_same_features(detector, resnet)


def test_a_pyramid_from_p3_is_not_taken_for_one_from_p2(tmp_path: Path, resnet: nn.Module) -> None:
    torch.save(without_fc(resnet.state_dict()), tmp_path / "plain.pth")
    body = read_pretrained(str(tmp_path / "plain.pth")).state
    for library, inner, outer in (
        ("torchvision", "backbone.fpn.inner_blocks.{}.0.weight", "backbone.fpn.layer_blocks.{}.0.weight"),
        ("mmdetection", "neck.lateral_convs.{}.conv.weight", "neck.fpn_convs.{}.conv.weight"),
    ):
        state = body if library == "torchvision" else under("backbone.", without_fc(resnet.state_dict()))
        for i, channels in enumerate((128, 256, 512)):
            state = state | {
                inner.format(i): torch.full((16, channels, 1, 1), float(i)),
                outer.format(i): torch.full((16, 16, 3, 3), float(i)),
            }
        torch.save(state, tmp_path / "retinanet.pth")
        for kind in ("faster_rcnn", "retinanet"):
            detector, _, coverage = load(tmp_path / "retinanet.pth", detector_of(detector=kind))
            assert not coverage.groups["fpn"].reshaped, library
            assert len(coverage.groups["fpn"].matched) == 6
            for level in (1, 2, 3):
                assert detector.state_dict()[f"backbone.fpn.layer_blocks.{level}.0.weight"].mean() == level - 1


def test_a_codo_detector_fills_another(tmp_path: Path) -> None:
    first = shaken(detector_of(detector="retinanet"))
    torch.save(first.state_dict(), tmp_path / "detector.pth")
    detector, _, coverage = load(tmp_path / "detector.pth")
    assert len(coverage.groups["fpn"].matched) == 30  # P3-P5
    assert not coverage.groups["fpn"].unexpected  # P6 and P7 are of no group
    name = "backbone.fpn.layer_blocks.1.0.weight"
    assert torch.equal(detector.state_dict()[name], first.state_dict()[name])


@pytest.mark.parametrize("kind", ["retinanet", "fcos", "faster_rcnn"])
def test_a_one_stage_detector_fills_others_and_is_proven(tmp_path: Path, kind: str) -> None:
    """Its file has no P2: a detector that needs none gets all of its pyramid, another its backbone."""
    torch.save(shaken(detector_of(detector="retinanet")).state_dict(), tmp_path / "detector.pth")
    detector, source, coverage = load(tmp_path / "detector.pth", detector_of(detector=kind))
    proof = prove(detector, RESNET18, source, coverage, IMAGE)
    assert proof.compared == ("backbone stages C2-C5" if kind == "faster_rcnn" else "pyramid levels P3-P5")
    assert proof.difference == 0


DETECTRON2 = {
    "stem.conv1.weight": "conv1.weight",
    "stem.conv1.norm.running_var": "bn1.running_var",
    "res2.0.conv1.weight": "layer1.0.conv1.weight",
    "res5.1.conv2.norm.bias": "layer4.1.bn2.bias",
    "res3.0.shortcut.weight": "layer2.0.downsample.0.weight",
    "res3.0.shortcut.norm.running_mean": "layer2.0.downsample.1.running_mean",
}


def detectron2_backbone(state: State) -> dict[str, np.ndarray]:
    """MoCo's `detection/convert-pretrain-to-detectron2.py`, line by line."""
    found = {}
    for k, v in without_fc(state).items():
        if "layer" not in k:
            k = "stem." + k
        for t in (1, 2, 3, 4):
            k = k.replace(f"layer{t}", f"res{t + 1}")
        for t in (1, 2, 3):
            k = k.replace(f"bn{t}", f"conv{t}.norm")
        k = k.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
        found[k] = v.numpy()
    return found


@pytest.mark.parametrize("protocol", [0, 2, 3, 4, 5])
@pytest.mark.parametrize("prefix", ["", "backbone.bottom_up."])
def test_detectron2s_pickles(tmp_path: Path, resnet: nn.Module, prefix: str, protocol: int) -> None:
    arrays = detectron2_backbone(resnet.state_dict())
    assert all(np.array_equal(arrays[theirs], resnet.state_dict()[own]) for theirs, own in DETECTRON2.items())
    model = {prefix + name: value for name, value in arrays.items()}
    content = {"model": model, "__author__": "MOCO", "matching_heuristics": True, "epoch": np.float32(3)}
    (tmp_path / "file.pkl").write_bytes(pickle.dumps(content, protocol))
    detector, source, coverage = load(tmp_path / "file.pkl")
    assert source.kind == ("detectron2 detector" if prefix else "detectron2 backbone")
    assert coverage.groups["backbone"].complete
    assert_same_features(detector, resnet)


def test_python_2s_pickles(tmp_path: Path, resnet: nn.Module) -> None:
    """Their bytes come as text in latin1, whatever reads them."""
    array = np.arange(6, dtype=">f4").reshape(2, 3)

    class Py2(pickle._Pickler):
        dispatch = {**pickle._Pickler.dispatch, bytes: lambda self, data: self.save_str2(data)}  # noqa: RUF012

        def save_str2(self, data: bytes) -> None:
            self.write(pickle.BINSTRING + len(data).to_bytes(4, "little") + data)

    with open(tmp_path / "file.pkl", "wb") as file:
        Py2(file, 2).dump({"a": array, "b": np.asfortranarray(array)})
    from codo.weights.arrays import read_arrays

    found = read_arrays(tmp_path / "file.pkl")
    assert found["a"].dtype == np.float32
    assert np.array_equal(found["a"], array)
    assert np.array_equal(found["b"], array)


class _Runs:
    """A pickle that writes a file when a plain unpickler reads it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return open, (str(self.path), "w")


def test_what_a_pickle_may_not_hold(tmp_path: Path) -> None:
    proof, file = tmp_path / "ran", tmp_path / "evil.pkl"
    array = np.zeros(3, np.float32)
    cases = {
        "it wants io.open": {"a": array, "b": _Runs(proof)},
        "it wants numpy.testing": np.testing.assert_equal,
        "type 'O8'": np.array([{"a": 1}], dtype=object),
        "type 'V4'": np.zeros(2, [("x", "f4")]),
        "it wants torch": {"a": torch.zeros(2)},
    }
    for message, content in cases.items():
        file.write_bytes(pickle.dumps({"model": content}, 4))
        with pytest.raises(CodoError, match=message) as caught:
            read_pretrained(str(file))
        assert "\n" not in str(caught.value)
    assert not proof.exists()
    # numpy.dtype itself, with the state (None, {"array": 1}): a plain unpickler would set its attribute.
    file.write_bytes(b"cnumpy\ndtype\n(N(S'array'\nI1\ndtb.")
    with pytest.raises(CodoError, match="it changes what is no array"):
        read_pretrained(str(file))
    whole = pickle.dumps({"a": np.arange(1000.0)}, 4)
    for broken in (whole[:-500], b"hello", b"", whole.replace(b"M\xe8\x03", b"M\xe9\x03")):  # a thousand and one
        file.write_bytes(broken)
        with pytest.raises(CodoError, match=r"evil\.pkl is (refused|not a whole pickle)") as caught:
            read_pretrained(str(file))
        assert "\n" not in str(caught.value)


class _History:
    def __init__(self) -> None:
        self.values, self.mean, self.kind = [1.0], np.float64(2), int
        self.cache: dict[str, int] = defaultdict(dict)  # type: ignore[arg-type]
        self.method = _History.__init__.__get__(self)  # pickled by getattr


def test_settings_beside_the_tensors_are_passed_over(
    tmp_path: Path, resnet: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    """mmengine's histories and omegaconf's settings need those packages to be read, and nobody needs them."""
    import sys
    import types

    for package, passes in (("mmengine", True), ("trojan", False)):
        module = types.ModuleType(package)
        module._History = _History  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, package, module)
        monkeypatch.setattr(_History, "__module__", package)
        file = tmp_path / f"{package}.pth"
        content = {"state_dict": under("backbone.", without_fc(resnet.state_dict())), "message_hub": {"a": _History()}}
        torch.save(content, file)
        monkeypatch.delitem(sys.modules, package)
        if passes:
            assert load(file)[2].groups["backbone"].complete
        else:
            with pytest.raises(CodoError, match=r"plain tensors .* it wants trojan\._History"):
                read_pretrained(str(file))


def test_what_is_not_the_backbone_is_refused(tmp_path: Path, resnet: nn.Module) -> None:
    plain = without_fc(resnet.state_dict())
    cifar = [nn.Conv2d(3, 64, 3), nn.BatchNorm2d(64), resnet.layer1, resnet.layer2, resnet.layer3, resnet.layer4]
    half = {k: v for k, v in plain.items() if k.startswith(("layer1", "layer2", "conv1", "bn1"))}
    cases: dict[str, tuple[str, Any]] = {
        "half": ("matches 50 of the backbone's 100", half),
        "two": ("several networks, below left., right.", under("left.", plain) | under("right.", plain)),
        "caffe": ("Caffe2's names", {"conv1_w": torch.ones(1), "res2_0_branch2a_w": torch.ones(1)}),
        "cifar": (r"matches 0 of .* the file has, e\.g\., 0\.bias", nn.Sequential(*cifar).state_dict()),
        "other": ("matches 0 of", {"stem_0.weight": torch.ones(2)}),
        "empty": ("there are no tensors", {"epoch": 3}),
    }  # fmt: skip
    for name, (message, content) in cases.items():
        torch.save(content, tmp_path / f"{name}.pth")
        with pytest.raises(CodoError, match=message) as caught:
            load(tmp_path / f"{name}.pth")
        assert "\n" not in str(caught.value)


def test_a_follower_alone_is_not_taken_for_the_network(tmp_path: Path, resnet: nn.Module) -> None:
    torch.save(under("encoder_k.", without_fc(resnet.state_dict())), tmp_path / "keys.pth")
    with pytest.raises(CodoError, match="matches 0 of the backbone's 100"):
        load(tmp_path / "keys.pth")
