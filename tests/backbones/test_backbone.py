"""Backbones: torchvision's names, the four strides, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torchvision.models import resnet50
from torchvision.models.detection import fasterrcnn_resnet50_fpn_v2

from codo.backbones import STRIDES, Backbone
from codo.errors import CodoError


def test_resnet50_has_the_keys_of_torchvisions_v2_detector():
    theirs = fasterrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None).backbone.state_dict()
    ours = Backbone("resnet50").state_dict()
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}


def test_the_same_weights_give_torchvisions_features():
    torch.manual_seed(0)
    theirs = fasterrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None).backbone.eval()
    ours = Backbone("resnet50").eval()
    ours.load_state_dict(theirs.state_dict())
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        for a, b in zip(ours(image).values(), theirs(image).values(), strict=False):
            assert torch.allclose(a, b, rtol=1e-4, atol=1e-4)
    assert set(ours.body.state_dict()) == {k for k in resnet50().state_dict() if not k.startswith("fc.")}


@pytest.mark.parametrize(
    "name",
    [
        "resnet10t",
        "convnext_atto",
        "regnety_002",
        "efficientnet_lite0",
        "mobilenetv3_small_050",
        "dla46_c",  # these two have maps before those that timm gives unless asked
        "tresnet_m",
    ],
)
def test_families_give_the_four_strides(name):
    backbone = Backbone(name, fpn_channels=16).eval()
    with torch.no_grad():
        stages = backbone.stages(torch.zeros(1, 3, 64, 64))
        levels = backbone.pyramid(stages)
    assert [tuple(c.shape[1:]) for c in stages] == [
        (n, 64 // s, 64 // s) for n, s in zip(backbone.stage_channels, STRIDES, strict=True)
    ]
    assert [tuple(p.shape[1:]) for p in levels.values()] == [(16, 64 // s, 64 // s) for s in STRIDES]


def test_swin_maps_are_turned_to_channels_first():
    backbone = Backbone("swin_tiny_patch4_window7_224", fpn_channels=16).eval()
    with torch.no_grad():
        stages = backbone.stages(torch.zeros(1, 3, 96, 128))  # not the size that its name speaks of
    assert [c.shape[1] for c in stages] == backbone.stage_channels
    assert [tuple(c.shape[2:]) for c in stages] == [(96 // s, 128 // s) for s in STRIDES]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("resnet5O", "did you mean .*resnet50"),
        ("vit_small_patch16_224", "strides? .*4, 8, 16 and 32"),
        ("zzzz", "no model 'zzzz'"),
        ("efficientformer_l1", "takes images of one size only"),
    ],
)
def test_backbones_that_do_not_fit_are_refused(name, said):
    with pytest.raises(CodoError, match=said):
        Backbone(name)


def test_without_a_pyramid_the_stages_come_out():
    backbone = Backbone("resnet10t", fpn_channels=None)
    assert not any(key.startswith("fpn") for key in backbone.state_dict())
    assert len(backbone(torch.zeros(1, 3, 64, 64))) == 4
    with pytest.raises(ValueError, match="without a feature pyramid"):
        backbone.pyramid([])
