"""What every detector is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn
from torchvision.models.detection.anchor_utils import AnchorGenerator

from codo.config.transfer import Norm

if TYPE_CHECKING:
    from codo.jobs.transfer.trunk import FrozenTrunk


class Detector(nn.Module):
    """Mixed into torchvision's detectors.

    Attributes:
        trunk: a frozen backbone and FPN (`caching.freeze_trunk`).
        norm: how batch norms train; `norms.set_training` sees to it.
        held: names of the modules that stay in evaluation mode.
        kinds: what it finds: `bbox`, `segm`.
    """

    backbone: Any
    transform: Any
    norm: Norm = "bn"
    held: tuple[str, ...] = ()
    trunk: FrozenTrunk | None = None
    kinds: ClassVar[tuple[str, ...]] = ("bbox",)


class Anchors(AnchorGenerator):
    """torchvision's anchors, in float32 whatever the features are in.

    torchvision takes the features' type, and bf16 tells coordinates from 256 px on apart in steps of 2 px, from 1024 px
    on in steps of 8.
    """

    def set_cell_anchors(self, dtype: torch.dtype, device: torch.device) -> None:
        """Move the anchors of one cell to the device; the type asked for is passed over."""
        super().set_cell_anchors(torch.float32, device)
