"""What every detector is: its norms are stated."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

Norm = Literal["bn", "sync_bn", "frozen_bn"]


class Detector(nn.Module):
    """Mixed into torchvision's detectors.

    With frozen norms, the backbone's batch norms keep their statistics and their scale and shift in training mode too;
    their tensors are the same as of trained ones.

    Attributes:
        norm: how batch norms train.
        kinds: what it finds: `bbox`, `segm`.
    """

    backbone: Any
    transform: Any
    norm: Norm = "bn"
    kinds: ClassVar[tuple[str, ...]] = ("bbox",)

    def train(self, mode: bool = True) -> Detector:
        """Switch to training mode; frozen norms stay in evaluation mode."""
        super().train(mode)
        if self.norm == "frozen_bn":
            for module in batch_norms(self.backbone.body):
                module.eval()
        return self


def batch_norms(module: nn.Module) -> list[nn.Module]:
    """List the batch norms in a module."""
    return [m for m in module.modules() if isinstance(m, _BatchNorm)]
