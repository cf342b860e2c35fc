"""How other libraries name the tensors of an encoder: one table a library, read in both directions.

An encoder's own names are torchvision's: `backbone.body.*`, `backbone.fpn.inner_blocks.{i}.0|1.*` and
`layer_blocks`, `box_head.{j}.0|1.*` for its convolutions and `box_head.{n + 1}.*` for the fc behind n of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

GROUPS: dict[str, str] = {"backbone": "backbone.body.", "fpn": "backbone.fpn.", "box_head": "box_head."}
"""The parts that transfer, by the prefix of their tensors' names in an encoder."""


_FIELD = re.compile(r"\{(\w+)([+-]\d+)?\}")
_TEXT = {"leaf": r"[^.]+", "rest": r".+"}


class Template:
    """The pattern of a name: `{n}` stands for a number, `{n+2}` for that number plus 2, `{leaf}` for a last part
    without dots, `{rest}` for any rest.

    Example:
        >>> Template("layer{stage}.conv{n}.{leaf}").parse("layer3.conv1.weight")
        {'stage': 3, 'n': 1, 'leaf': 'weight'}
        >>> Template("res{stage+1}.conv{n}.{leaf}").render({"stage": 3, "n": 1, "leaf": "weight"})
        'res4.conv1.weight'
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.offsets = {name: int(offset or 0) for name, offset in _FIELD.findall(text)}
        pieces, end = [], 0
        for field in _FIELD.finditer(text):
            pieces += [re.escape(text[end : field.start()]), f"(?P<{field[1]}>{_TEXT.get(field[1], '[0-9]+')})"]
            end = field.end()
        self.pattern = re.compile("".join(pieces) + re.escape(text[end:]))

    def parse(self, name: str) -> dict[str, int | str] | None:
        """Read the fields out of a name; None if it is of another form."""
        found = self.pattern.fullmatch(name)
        if found is None:
            return None
        values = {
            field: text if field in _TEXT else int(text) - self.offsets[field]
            for field, text in found.groupdict().items()
        }
        return None if any(isinstance(value, int) and value < 0 for value in values.values()) else values

    def render(self, values: dict[str, int | str]) -> str:
        """Write the name with these fields."""

        def text(field: re.Match[str]) -> str:
            value = values[field[1]]
            return str(value + self.offsets[field[1]] if isinstance(value, int) else value)

        return _FIELD.sub(text, self.text)


class KeyMap:
    """An encoder's names and a library's, as pairs of templates; the first pair that fits a name decides.

    Args:
        pairs: (the encoder's, the library's).

    Example:
        >>> detectron2(convs=4).theirs("backbone.body.layer1.0.downsample.1.running_var")
        'backbone.bottom_up.res2.0.shortcut.norm.running_var'
        >>> detectron2(convs=4).ours("roi_heads.box_head.fc1.weight")
        'box_head.5.weight'
    """

    def __init__(self, pairs: Iterable[tuple[str, str]]) -> None:
        self.pairs = [(Template(ours), Template(theirs)) for ours, theirs in pairs]

    def ours(self, name: str) -> str | None:
        """Translate a library's name; None where it names no tensor of the three groups."""
        for ours, theirs in self.pairs:
            values = theirs.parse(name)
            if values is not None:
                return ours.render(values)
        return None

    def theirs(self, name: str) -> str | None:
        """Translate an encoder's name; None where the library has none."""
        for ours, theirs in self.pairs:
            values = ours.parse(name)
            if values is not None:
                return theirs.render(values)
        return None


def torchvision() -> KeyMap:
    """Names in torchvision's `fasterrcnn_resnet50_fpn_v2` and `maskrcnn_resnet50_fpn_v2`."""
    return KeyMap(
        [
            ("backbone.body.{rest}", "backbone.body.{rest}"),
            ("backbone.fpn.{rest}", "backbone.fpn.{rest}"),
            ("box_head.{rest}", "roi_heads.box_head.{rest}"),
        ]
    )


def old_torchvision(first_level: int) -> KeyMap:
    """Names of torchvision's FPN that need translating: of before 0.13, or of detectors whose FPN begins at P3.

    Args:
        first_level: i of the first of `inner_blocks.{i}`: 0 is P2, 1 is P3.
    """
    shifted = f"{{level{-first_level:+d}}}"
    fpn = [
        (f"backbone.fpn.{block}.{{level}}{ours}", f"backbone.fpn.{block}.{shifted}{theirs}")
        for block in ("inner_blocks", "layer_blocks")
        for ours, theirs in ((".0.{leaf}", ".{leaf}"), (".{part}.{leaf}", ".{part}.{leaf}"))
    ]
    return KeyMap(
        [*fpn, ("backbone.body.{rest}", "backbone.body.{rest}"), ("box_head.{rest}", "roi_heads.box_head.{rest}")]
    )


def detectron2(convs: int) -> KeyMap:
    """Names in detectron2's detectors with a ResNet and an FPN.

    Args:
        convs: convolutions of the box head.

    Source:
        The names that detectron2's `ResNet`, `FPN` and `FastRCNNConvFCHead` give; the converters of MoCo and InsLoc.
    """
    body = "backbone.bottom_up."
    layer, res = "backbone.body.layer{stage}.{block}.", f"{body}res{{stage+1}}.{{block}}."
    return KeyMap(
        [
            ("backbone.body.conv1.{leaf}", f"{body}stem.conv1.{{leaf}}"),
            ("backbone.body.bn1.{leaf}", f"{body}stem.conv1.norm.{{leaf}}"),
            (f"{layer}conv{{n}}.{{leaf}}", f"{res}conv{{n}}.{{leaf}}"),
            (f"{layer}bn{{n}}.{{leaf}}", f"{res}conv{{n}}.norm.{{leaf}}"),
            (f"{layer}downsample.0.{{leaf}}", f"{res}shortcut.{{leaf}}"),
            (f"{layer}downsample.1.{{leaf}}", f"{res}shortcut.norm.{{leaf}}"),
            *_with_norm("backbone.fpn.inner_blocks.{level}", "backbone.fpn_lateral{level+2}", "", ".norm"),
            *_with_norm("backbone.fpn.layer_blocks.{level}", "backbone.fpn_output{level+2}", "", ".norm"),
            *_with_norm("box_head.{conv}", "roi_heads.box_head.conv{conv+1}", "", ".norm"),
            (f"box_head.{convs + 1}.{{leaf}}", "roi_heads.box_head.fc1.{leaf}"),
        ]
    )


def mmdetection(convs: int, first_level: int = 0) -> KeyMap:
    """Names in mmdetection's detectors with a ResNet, `FPN` and `Shared4Conv1FCBBoxHead`.

    Args:
        convs: convolutions of the box head.
        first_level: the stage of the neck's first lateral convolution: 0 is C2, 1 (RetinaNet's `start_level`) C3.
    """
    level = f"{{level{-first_level:+d}}}"
    return KeyMap(
        [
            ("backbone.body.{rest}", "backbone.{rest}"),
            *_with_norm("backbone.fpn.inner_blocks.{level}", f"neck.lateral_convs.{level}", ".conv", ".bn"),
            *_with_norm("backbone.fpn.layer_blocks.{level}", f"neck.fpn_convs.{level}", ".conv", ".bn"),
            *_with_norm("box_head.{conv}", "roi_head.bbox_head.shared_convs.{conv}", ".conv", ".bn"),
            (f"box_head.{convs + 1}.{{leaf}}", "roi_head.bbox_head.shared_fcs.0.{leaf}"),
        ]
    )


def _with_norm(ours: str, theirs: str, conv: str, norm: str) -> list[tuple[str, str]]:
    """Pair a convolution and the norm behind it, `0` and `1` in an encoder."""
    return [(f"{ours}.0.{{leaf}}", f"{theirs}{conv}.{{leaf}}"), (f"{ours}.1.{{leaf}}", f"{theirs}{norm}.{{leaf}}")]


def count(names: Iterable[str], template: str) -> int:
    """Count the different numbers `{n}` that names of a form have.

    Example:
        >>> count(["conv1.weight", "conv1.bias", "conv2.weight", "fc1.weight"], "conv{n}.{leaf}")
        2
    """
    form = Template(template)
    return len({values["n"] for values in map(form.parse, names) if values is not None})


def group_of(name: str) -> str | None:
    """Say to which group a tensor belongs; None for projectors, RPN, predictors, and P6 and P7 of other detectors."""
    if ".extra_blocks." in name:
        return None
    return next((group for group, prefix in GROUPS.items() if name.startswith(prefix)), None)


def box_head_convs(names: Sequence[str]) -> int:
    """Count the convolutions of an encoder's box head.

    Example:
        >>> box_head_convs(["box_head.0.0.weight", "box_head.0.1.weight", "box_head.2.weight"])
        1
    """
    return count(names, "box_head.{n}.0.{leaf}")
