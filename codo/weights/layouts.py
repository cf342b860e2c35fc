"""Whose file it is: the names of a state dict, recognised and translated to an encoder's."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass

from torch import Tensor

from codo.errors import CodoError
from codo.weights import keys
from codo.weights.timm_names import body_names

BODIES = {
    "": "backbone",
    "encoder_q.": "MoCo's query encoder",
    "encoder_q.0.": "mmselfsup's query encoder",
    "base_encoder.": "MoCo v3's encoder",
    "backbone.": "backbone of a pretraining checkpoint (lightly, solo-learn, mmselfsup)",
    "encoder.": "encoder of a pretraining checkpoint (solo-learn)",
}
"""Where checkpoints keep the network that is wanted, in the order in which it is looked for, and what that is."""

_RESNET = ("conv1.", "bn1.", "layer")

_HEADS = ("rpn.", "roi_heads.", "head.")

_FOLLOWERS = ("momentum", "encoder_k", "teacher", "target", "ema")
"""In the names of copies that follow the trained network; these are not what is wanted."""

_SEQUENTIAL = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
"""Number in `nn.Sequential(*children[:-1])` (lightly) -> child of a torchvision or timm ResNet that holds tensors."""

_STAGE = re.compile(r"[4-7]\.\d+\.(conv[1-3]|bn[1-3]|downsample)\.")


@dataclass(frozen=True)
class Recognised:
    """A state dict under an encoder's names.

    Attributes:
        kind: whose file it is.
        state: tensors by an encoder's names.
        ignored: the file's names of the others: projectors, RPN, predictors, classifiers.
    """

    kind: str
    state: dict[str, Tensor]
    ignored: list[str]


def recognise(raw: dict[str, Tensor], codo: bool, backbone: str | None) -> Recognised:
    """Tell whose names a state dict has, and translate them.

    Args:
        raw: tensors by the file's names.
        codo: whether codo wrote it.
        backbone: the timm model whose own names it may have.

    Raises:
        CodoError: it holds several networks and none is clearly the wanted one, or names that no rule translates.
    """
    name_map = _detector(raw, codo)
    if name_map is not None:
        kind, translate = name_map
        return _translated(kind, raw, translate)
    caffe = [name for name in raw if re.fullmatch(r"res\d_\d+_branch\w+", name)]
    if caffe:
        raise CodoError(
            f"weights: the file has Caffe2's names ({caffe[0]}): a network on BGR images with its strides in the 1x1 "
            "convolutions, which is another one than torchvision's and timm's"
        )
    prefix, body = _body(raw, backbone)
    if prefix is None:
        # Nothing is known of it: the coverage will show that it does not match.
        return Recognised("unknown", {}, sorted(raw))
    inside = {name.removeprefix(prefix): name for name in raw if name.startswith(prefix)}
    state = {f"backbone.body.{body[own]}": raw[name] for own, name in inside.items() if own in body}
    used = {inside[own] for own in body if own in inside}
    return Recognised(BODIES.get(prefix, f"what is below {prefix}"), state, sorted(raw.keys() - used))


def _translated(kind: str, raw: dict[str, Tensor], translate: Callable[[str], str | None]) -> Recognised:
    state, ignored = {}, []
    for name, tensor in raw.items():
        ours = translate(name)
        if ours is None or keys.group_of(ours) is None:
            ignored.append(name)
        else:
            state[ours] = tensor
    return Recognised(kind, state, sorted(ignored))


def _detector(raw: Collection[str], codo: bool) -> tuple[str, Callable[[str], str | None]] | None:
    """Find the key map of a detector's file."""
    if codo:
        kind = "codo detector" if any(name.startswith(_HEADS) for name in raw) else "codo encoder"
        torchvision = keys.torchvision()
        return kind, lambda name: name if name.startswith("box_head.") else torchvision.ours(name)
    if any(name.startswith("backbone.body.") for name in raw):
        return _torchvision(raw)
    if any(name.startswith("backbone.bottom_up.") for name in raw):
        convs = keys.count(raw, "roi_heads.box_head.conv{n}.{leaf}")
        return "detectron2 detector", keys.detectron2(convs).ours
    if any(name.startswith("stem.conv1.norm.") for name in raw) and any(name.startswith("res2.") for name in raw):
        map_ = keys.detectron2(0)
        return "detectron2 backbone", lambda name: map_.ours(f"backbone.bottom_up.{name}")
    if any(name.startswith(("neck.lateral_convs.", "roi_head.")) for name in raw):
        laterals = keys.count(raw, "neck.lateral_convs.{n}.conv.{leaf}")
        convs = keys.count(raw, "roi_head.bbox_head.shared_convs.{n}.conv.{leaf}")
        # mmdetection's one-stage detectors begin their pyramid at P3.
        return "mmdetection detector", keys.mmdetection(convs, first_level=1 if laterals == 3 else 0).ours
    return None


def _torchvision(raw: Collection[str]) -> tuple[str, Callable[[str], str | None]]:
    """Choose between torchvision's names and its older ones; an encoder's own are among the former."""
    kind = "detector" if any(name.startswith(_HEADS) for name in raw) else "encoder"
    blocks = {n for n in range(4) if any(name.startswith(f"backbone.fpn.inner_blocks.{n}.") for name in raw)}
    from_p3 = blocks == {0, 1, 2}  # torchvision's own RetinaNet and FCOS
    old = any(re.fullmatch(r"backbone\.fpn\.inner_blocks\.\d\.weight", name) for name in raw)
    map_ = keys.old_torchvision(1 if from_p3 else 0) if from_p3 or old else keys.torchvision()
    return kind, lambda name: name if name.startswith("box_head.") else map_.ours(name)


def _body(raw: Collection[str], backbone: str | None) -> tuple[str | None, dict[str, str]]:
    """Find the backbone in a checkpoint.

    Returns:
        The prefix of its names, None where there is no backbone; and the body's name of each of its names.
    """
    own = body_names(backbone) if backbone is not None and ":" not in backbone else {}
    known = [*BODIES, *sorted(_prefixes(raw) - BODIES.keys())]
    found = {}
    for prefix in known:
        inside = [name.removeprefix(prefix) for name in raw if name.startswith(prefix)]
        names = _names_of_body(inside, own)
        if names:
            found[prefix] = names
    for prefix in BODIES:
        if prefix in found:
            return prefix, found[prefix]
    trained = [prefix for prefix in found if not any(word in prefix for word in _FOLLOWERS)]
    if len(trained) > 1:
        raise CodoError(
            f"weights: the file holds several networks, below {', '.join(trained)}; save the state_dict of one"
        )
    return (trained[0], found[trained[0]]) if trained else (None, {})


def _prefixes(raw: Collection[str]) -> set[str]:
    """List what stands before a ResNet's first stage, named or numbered, and before that of other networks."""
    return {match[1] for name in raw if (match := re.fullmatch(r"(.*\.)(?:layer1|stages\.0|4)\..*", name))}


def _names_of_body(inside: list[str], own: dict[str, str]) -> dict[str, str]:
    """Map the names of a network to the body's; empty where it is none that is known."""
    if any(name.startswith("layer1.0.") for name in inside) and any(name.startswith("conv1.") for name in inside):
        # A ResNet: its body keeps the names, whatever is behind the last stage belongs to none.
        return {name: own.get(name, name) for name in inside if name in own or name.startswith(_RESNET)}
    stages = [name for name in inside if name[0] in "4567"]
    if {name.split(".")[0] for name in inside} == _SEQUENTIAL.keys() and all(map(_STAGE.match, stages)):
        return {name: f"{_SEQUENTIAL[first]}.{rest}" for name in inside for first, _, rest in (name.partition("."),)}
    if own and sum(name in own for name in inside) > len(own) // 2:
        return {name: own[name] for name in inside if name in own}
    return {}
