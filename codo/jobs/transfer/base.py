"""What every detector is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from torch import nn

if TYPE_CHECKING:
    from codo.jobs.transfer.trunk import FrozenTrunk

Norm = Literal["bn", "sync_bn", "frozen_bn", "gn"]


class Detector(nn.Module):
    """Mixed into torchvision's detectors.

    Attributes:
        trunk: a frozen backbone and FPN (`caching.freeze_trunk`).
        norm: how batch norms train; `norms.set_training` sees to it.
        kinds: what it finds: `bbox`, `segm`.
    """

    backbone: Any
    transform: Any
    norm: Norm = "bn"
    trunk: FrozenTrunk | None = None
    kinds: ClassVar[tuple[str, ...]] = ("bbox",)
