"""The proof that a detector computes, of one image and box, the very features that the encoder computed."""

from __future__ import annotations

import json
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codo.augment import IMAGENET_MEAN, IMAGENET_STD
from codo.backbones import STRIDES, Backbone
from codo.config.sections import ArchitectureSection
from codo.errors import CodoError
from codo.heads import RoIPool, assign_levels, box_head
from codo.jobs.transfer.base import Detector
from codo.jobs.transfer.detectors import CANONICAL_SIZE, SAMPLING_RATIO, BoxFeatures
from codo.jobs.transfer.norms import put_group_norms
from codo.weights import GROUPS, Pretrained
from codo.weights.coverage import Coverage
from codo.weights.pretrained import unknown_pixels

P2 = ("fpn.inner_blocks.0.", "fpn.layer_blocks.0.")
"""Of an FPN, what a one-stage detector's file lacks; no other level is computed from it."""

TOLERANCE = 1e-4
"""Largest difference, relative to the largest feature."""


@dataclass(frozen=True)
class Proof:
    """What was compared, and how far it was apart.

    Attributes:
        compared: `box head features`, `pyramid levels P2-P5`, `backbone stages C2-C5`, or `nothing`.
        values: how many numbers were compared.
        difference: the largest, relative to the largest feature of its tensor.
        notes: what the proof does not cover.
    """

    compared: str
    values: int
    difference: float | None
    notes: list[str]

    def __str__(self) -> str:
        if self.difference is None:
            text = "proof: nothing to compare"
        else:
            text = (
                f"proof: the detector computes the encoder's {self.compared}, {self.values} values on one image, "
                f"largest relative difference {self.difference:.1e}"
            )
        return "; ".join([text, *self.notes])


@torch.no_grad()
def prove(
    detector: Detector, architecture: ArchitectureSection, pretrained: Pretrained, coverage: Coverage, image: Tensor
) -> Proof:
    """Compare a loaded detector with an encoder that is built from the same file on its own.

    The encoder never touches the detector's modules: it is a fresh `Backbone` and `box_head` filled from the file, its
    boxes are pooled by `RoIPool` from the level that `assign_levels` names, and the image is normalised with the
    file's mean and std. The comparison goes as deep as the file does: box head, FPN or backbone.

    Args:
        detector: filled by `load_pretrained`, on the processor, in fp32.
        architecture: of the encoder.
        pretrained: the file.
        coverage: how the detector was filled.
        image: `(3, H, W)` float in 0..1.

    Raises:
        CodoError: the features differ by 1e-4 or more of the largest one.
    """
    complete = {name: group.complete for name, group in coverage.groups.items()}
    if coverage.groups["backbone"].left_out:
        return Proof("nothing", 0, None, ["the backbone was left out on purpose"])
    if not complete["backbone"]:
        missing = coverage.groups["backbone"].missing + coverage.groups["backbone"].reshaped
        return Proof(
            "nothing",
            0,
            None,
            [f"{len(missing)} tensors of the backbone are fresh, e.g. {missing[0]}", *unknown_pixels(pretrained)],
        )
    with_fpn = complete["fpn"]
    was_training = detector.training
    detector.eval()
    images, encoder_images, boxes = _inputs(detector, pretrained, image)
    encoder = Backbone(architecture.backbone, architecture.fpn_channels if with_fpn else None).eval()
    if detector.norm == "gn":
        put_group_norms(encoder)
    _fill(encoder, pretrained.state, "backbone.", may_lack=P2)
    if with_fpn and complete["box_head"] and isinstance(detector, BoxFeatures):
        compared = "box head features"
        pairs = [
            (
                detector.box_features(images, boxes),
                _box_features(encoder, architecture, pretrained, encoder_images, boxes, detector.norm),
            )
        ]
    elif with_fpn:
        ours, theirs = detector.backbone(images), encoder(encoder_images)
        shared = [name for name in ours if name in theirs]  # of P2-P5
        compared = f"pyramid levels P{int(shared[0]) + 2}-P5"
        pairs = [(ours[name], theirs[name]) for name in shared]
    else:
        compared = "backbone stages C2-C5"
        pairs = list(zip(detector.backbone.stages(images), encoder(encoder_images).values(), strict=True))
    detector.train(was_training)
    difference = max(float((a - b).abs().max() / b.abs().max().clamp_min(1e-12)) for a, b in pairs)
    if not difference < TOLERANCE:
        raise CodoError(
            f"weights: the detector does not compute the {compared} of {pretrained.name}: the largest relative "
            f"difference is {difference:.1e}, {TOLERANCE:.0e} is allowed"
        )
    return Proof(
        compared, sum(a.numel() for a, _ in pairs), difference, [*unknown_pixels(pretrained), *_notes(pretrained)]
    )


def normalisation(pretrained: Pretrained | None) -> tuple[list[float], list[float]]:
    """Read mean and std of the weights' images; ImageNet's where the file says nothing.

    Raises:
        CodoError: the file's are not three numbers each.
    """
    metadata = pretrained.metadata if pretrained else {}
    pair = []
    for key, default in {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}.items():
        try:
            values = [float(v) for v in json.loads(metadata[key])] if key in metadata else list(default)
        except (ValueError, TypeError):
            values = []
        if len(values) != 3:
            raise CodoError(f"weights: the file's {key} is {metadata[key]!r}; three numbers in brackets are expected")
        pair.append(values)
    return pair[0], pair[1]


def _inputs(detector: Detector, pretrained: Pretrained, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Prepare the image twice, by the detector's transform and by hand, and boxes of every level's size."""
    transformed, _ = detector.transform([image])
    height, width = transformed.image_sizes[0]
    mean, std = (torch.tensor(values)[:, None, None] for values in normalisation(pretrained))
    resized = F.interpolate(image[None], size=(height, width), mode="bilinear", align_corners=False)
    padding = (0, transformed.tensors.shape[3] - width, 0, transformed.tensors.shape[2] - height)
    by_hand = F.pad((resized - mean) / std, padding)
    centre = torch.tensor([width / 2, height / 2])
    # From a sixteenth of the image's sides to the whole image: P2 upwards.
    halves = torch.stack([centre / n for n in (16, 8, 4, 2, 1)])
    return transformed.tensors, by_hand, torch.cat([centre - halves, centre + halves], dim=1)


def _box_features(
    encoder: Backbone,
    architecture: ArchitectureSection,
    pretrained: Pretrained,
    images: Tensor,
    boxes: Tensor,
    norm: str,
) -> Tensor:
    """Compute the box head's features as pretraining does, box by box from its own level."""
    head = box_head(
        architecture.fpn_channels,
        architecture.box_head_fc,
        conv_channels=architecture.box_head_channels,
        convs=architecture.box_head_convs,
    ).eval()
    if norm == "gn":
        put_group_norms(head)
    _fill(head, pretrained.state, GROUPS["box_head"])
    pool = RoIPool(SAMPLING_RATIO, aligned=False)
    levels = list(encoder(images).values())
    pooled = [
        pool(levels[k - 2], box[None], STRIDES[k - 2])
        for k, box in zip(assign_levels(boxes, CANONICAL_SIZE).tolist(), boxes, strict=True)
    ]
    return head(torch.cat(pooled))


def _fill(module: nn.Module, state: dict[str, Tensor], prefix: str, may_lack: tuple[str, ...] = ()) -> None:
    """Load a module strictly, apart from batch norm counters and parts that files may lack, which stay as they are."""
    own = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    fresh = module.state_dict()
    lacking = {n: t for n, t in fresh.items() if n.endswith("num_batches_tracked") or n.startswith(may_lack)}
    module.load_state_dict({**lacking, **{name: tensor for name, tensor in own.items() if name in fresh}})


def _notes(pretrained: Pretrained) -> list[str]:
    """Say where pretraining pooled otherwise than the detector does."""
    try:
        roi = json.loads(pretrained.metadata.get("roi", "{}"))
        asked = int(roi.get("sampling_ratio", SAMPLING_RATIO)), bool(roi.get("aligned", False))
    except (ValueError, TypeError, AttributeError):
        return []
    if asked == (SAMPLING_RATIO, False):
        return []
    return [
        f"pretraining pooled with sampling_ratio {asked[0]}, aligned {asked[1]}; the detector, and this proof, with "
        f"{SAMPLING_RATIO} and False"
    ]
