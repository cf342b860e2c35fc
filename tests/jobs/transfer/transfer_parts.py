"""What the tests of transfer share besides fixtures."""

from __future__ import annotations

import json

import torch

from codo.augment import IMAGENET_MEAN, IMAGENET_STD
from codo.backbones import Backbone
from codo.config.sections import ArchitectureSection
from codo.config.transfer import DetectionSection, TransferConfig
from codo.heads import box_head

ARCHITECTURE = ArchitectureSection(
    backbone="resnet10t", fpn_channels=16, box_head_convs=1, box_head_channels=16, box_head_fc=32
)


def detector_config(
    architecture: ArchitectureSection = ARCHITECTURE, detection: DetectionSection | None = None, **fields: object
) -> TransferConfig:
    """Make a config of a detector; weights are named, for `frozen_bn` wants some."""
    sizes = {"detection": detection} if detection else {}
    return TransferConfig.model_validate({"architecture": architecture, "weights": "some", **sizes, **fields})


def encoder_state(architecture: ArchitectureSection = ARCHITECTURE) -> dict[str, torch.Tensor]:
    """The state dict of an encoder whose BN statistics and weights are no defaults."""
    generator = torch.Generator().manual_seed(3)
    parts = {
        "backbone": Backbone(architecture.backbone, architecture.fpn_channels),
        "box_head": box_head(
            architecture.fpn_channels,
            architecture.box_head_fc,
            conv_channels=architecture.box_head_channels,
            convs=architecture.box_head_convs,
        ),
    }
    state = {f"{name}.{key}": value for name, part in parts.items() for key, value in part.state_dict().items()}
    for key, value in state.items():
        if key.endswith("num_batches_tracked"):
            value.fill_(7)
        elif value.dim() == 1:
            value.copy_(0.5 + torch.rand(value.shape, generator=generator))
        else:
            bound = (6 / value[0].numel()) ** 0.5
            value.copy_(bound * (2 * torch.rand(value.shape, generator=generator) - 1))
    return state | {"projectors.0.layers.0.weight": torch.zeros(2, 2)}


def metadata(**changes: str) -> dict[str, str]:
    """What pretraining writes beside the tensors."""
    return {
        "codo_version": "0",
        "fingerprint": "0123456789abcdef",
        "architecture": ARCHITECTURE.model_dump_json(),
        "alignment": "true",
        "norm": "bn",
        "mean": json.dumps(IMAGENET_MEAN),
        "std": json.dumps(IMAGENET_STD),
        "roi": json.dumps({"sampling_ratio": 2, "aligned": False}),
        **changes,
    }
