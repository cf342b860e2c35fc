"""A timm backbone with torchvision's feature pyramid, shaped and named as the `*_fpn_v2` detectors have it."""

from __future__ import annotations

import difflib
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock

from codo.config.sections import Part
from codo.errors import CodoError
from codo.parts import make

LEVELS: tuple[int, ...] = (2, 3, 4, 5)
"""The k of the stages C2-C5 and of the pyramid levels P2-P5."""

STRIDES: tuple[int, ...] = tuple(2**k for k in LEVELS)
"""Pixels per cell of those levels: 4, 8, 16, 32."""


def has_branches(name: str) -> bool:
    """Tell whether some parameters of timm's model `name` feed a finer level alone, as an HRNet's parallel branches do.

    Example:
        >>> has_branches("hrnet_w18_small"), has_branches("resnet50")
        (True, False)
    """
    return name.startswith("hrnet")


class Backbone(nn.Module):
    """The stages C2-C5 of a timm model and, on top, the pyramid levels P2-P5 with BN (torchvision's `_v2`).

    The state dict has torchvision's detector names below `backbone`: `body.*` (of a ResNet: torchvision's and timm's
    own keys) and `fpn.inner_blocks.{i}.0|1.*`, `fpn.layer_blocks.{i}.0|1.*`. It is a torchvision detector's backbone as
    it stands: calling it returns the ordered dict of levels that those detectors expect.

    Args:
        name: a timm model name with `features_only`, e.g. `resnet50`, `convnext_tiny`; or a user's own body by dotted
            path, or what makes it: a module with `channels` of C2-C5, whose call gives these four maps.
        fpn_channels: channels of every level (256 in torchvision), or None for a backbone without pyramid.
        extra_blocks: torchvision's extra FPN levels for a detector (`LastLevelMaxPool()`); pretraining needs none.

    Attributes:
        stage_channels: channels of C2-C5.
        out_channels: channels of every map that `forward` returns.

    Raises:
        CodoError: timm has no such model, or it lacks one of the strides 4, 8, 16, 32.

    Example:
        >>> import torch
        >>> backbone = Backbone("resnet18", fpn_channels=64)
        >>> [tuple(level.shape[1:]) for level in backbone(torch.zeros(2, 3, 64, 64)).values()]
        [(64, 16, 16), (64, 8, 8), (64, 4, 4), (64, 2, 2)]
    """

    def __init__(
        self,
        name: str | Callable[[], nn.Module],
        fpn_channels: int | None = 256,
        extra_blocks: ExtraFPNBlock | None = None,
    ) -> None:
        super().__init__()
        self.body, self.stage_channels = _body(name)
        self._nhwc = getattr(self.body, "output_fmt", None) == "NHWC"  # Swin's order; timm names it
        self.fpn: nn.Module | None = None
        if fpn_channels is not None:
            self.fpn = FeaturePyramidNetwork(
                self.stage_channels, fpn_channels, extra_blocks=extra_blocks, norm_layer=nn.BatchNorm2d
            )
        self.out_channels = fpn_channels if fpn_channels is not None else self.stage_channels[-1]

    def stages(self, images: Tensor) -> list[Tensor]:
        """Compute C2-C5.

        Args:
            images: `(B, 3, H, W)`, normalised with ImageNet's mean and std.

        Returns:
            Four maps `(B, C_k, H/2^k, W/2^k)`, k = 2..5.
        """
        maps = self.body(images)
        return [c.permute(0, 3, 1, 2) for c in maps] if self._nhwc else list(maps)

    def pyramid(self, stages: list[Tensor]) -> OrderedDict[str, Tensor]:
        """Compute P2-P5 (keys "0".."3", torchvision's), and what `extra_blocks` adds ("pool"), from C2-C5."""
        if self.fpn is None:
            raise ValueError("this backbone was built without a feature pyramid (fpn_channels=None)")
        return self.fpn(OrderedDict((str(i), stage) for i, stage in enumerate(stages)))

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        """Compute the pyramid of `images` `(B, 3, H, W)`; of a backbone without pyramid the stages C2-C5."""
        stages = self.stages(images)
        if self.fpn is None:
            return OrderedDict((str(i), stage) for i, stage in enumerate(stages))
        return self.pyramid(stages)


def _body(name: str | Callable[[], nn.Module]) -> tuple[nn.Module, list[int]]:
    """Build the feature extractor of exactly the strides 4-32, and its channels."""
    if isinstance(name, str) and ":" not in name:
        return _timm_body(name)
    told = name if isinstance(name, str) else getattr(name, "__name__", repr(name))
    shapes: list[tuple[int, ...]] = []
    try:
        body = make(Part(path=name)) if isinstance(name, str) else name()
        channels = list(getattr(body, "channels", []))
        if isinstance(body, nn.Module) and len(channels) == len(STRIDES):
            with torch.no_grad():
                shapes = [tuple(getattr(c, "shape", ())) for c in body.eval()(torch.zeros(1, 3, 64, 64))]
            body.train()
    except CodoError:
        raise
    except Exception as error:  # whatever a user's body does wrong
        line = " ".join(f"{type(error).__name__}: {error}".split())
        raise CodoError(f"backbone: {told} fails ({line})") from error
    expected = [(1, c, 64 // stride, 64 // stride) for c, stride in zip(channels, STRIDES, strict=False)]
    if not expected or shapes != expected:
        raise CodoError(f"backbone: {told} must have `channels` of C2-C5 and return them, strides 4, 8, 16, 32")
    return body, channels


def _timm_body(name: str) -> tuple[nn.Module, list[int]]:
    """Build the timm feature extractor of exactly the strides 4-32, and its channels."""
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f"did you mean {', '.join(near)}?" if near else "timm.list_models() names all"
        raise CodoError(f"backbone: timm has no model {name!r}; {hint}")
    try:
        trial: Any = timm.create_model(name, features_only=True)
        strides = trial.feature_info.reduction()
    except (RuntimeError, ValueError, AttributeError, TypeError) as error:
        raise CodoError(f"backbone: timm gives no feature maps (features_only) of {name}: {error}") from error
    if any(stride not in strides for stride in STRIDES):
        raise CodoError(
            f"backbone: {name} has maps of stride {strides}, a feature pyramid needs 4, 8, 16 and 32; "
            "resnet*, regnet*, convnext*, swin*, efficientnet* and mobilenetv3* have them"
        )
    indices = [trial.feature_info.out_indices[strides.index(s)] for s in STRIDES]  # of DLA and TResNet they begin at 1
    body: Any = timm.create_model(name, features_only=True, out_indices=indices)
    try:
        _try_size(body)
    except (AssertionError, RuntimeError, ValueError):  # Swin: made for one image size unless told otherwise
        try:
            body = timm.create_model(name, features_only=True, out_indices=indices, strict_img_size=False)
            _try_size(body)
        except (TypeError, AssertionError, RuntimeError, ValueError) as error:
            raise CodoError(f"backbone: {name} takes images of one size only ({error})") from error
    if (found := body.feature_info.reduction()) != list(STRIDES):
        raise CodoError(f"backbone: of {name} timm gives maps of strides {found} where 4, 8, 16 and 32 are asked for")
    return body, body.feature_info.channels()


@torch.no_grad()
def _try_size(body: nn.Module) -> None:
    """Pass an image of a size that no model is made for."""
    body.eval()(torch.zeros(1, 3, 96, 64))
    body.train()
