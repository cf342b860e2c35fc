"""Sections that pretraining and transfer have in common."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt


class Section(BaseModel):
    """A frozen group of fields that refuses what it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


class ArchitectureSection(Section):
    """What is pretrained and transferred: backbone, FPN and box head, in torchvision's `_v2` shape."""

    backbone: str = "resnet50"
    """A timm model with `features_only` and strides 4, 8, 16, 32."""
    fpn_channels: int = Field(256, ge=8)
    box_head_convs: int = Field(4, ge=1)
    box_head_channels: int = Field(256, ge=8)
    box_head_fc: int = Field(1024, ge=8)


class RunSection(Section):
    """How and where a run executes.

    Not part of the fingerprint: none of it decides what is computed, except for rounding (device, precision).
    """

    device: str = "auto"
    """`auto`: CUDA where there is one, else the processor; or `cpu`, `cuda`, `cuda:1`."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """`auto`: bf16 autocast where the GPU or processor has bf16 arithmetic, else fp32."""
    workers: NonNegativeInt | Literal["auto"] = "auto"
    """Data loader processes; `auto` keeps workers + torch threads within the cores."""
    threads: PositiveInt | Literal["auto"] = "auto"
    """Torch threads on a processor; `auto` is the cores that the workers leave."""
    log_every: int = Field(10, ge=1)
    """Steps between two lines of metrics."""
