"""What sections are made of, and those that pretraining and transfer have in common."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, StringConstraints, model_validator

DottedPath = Annotated[str, StringConstraints(pattern=r"^[^:\s]+:[A-Za-z_]\w*$")]
"""`package.module:Name` or `file.py:Name`."""

Precision = Literal["auto", "fp32", "bf16", "fp16"]


def sourced(default: Any, source: str, **constraints: Any) -> Any:
    """Make a field that says where its default comes from; `codo presets NAME` prints it.

    Args:
        default: the value.
        source: a paper or code base by name (`InsLoc`), or `ours`; `run` for what decides nothing of the method.
        constraints: as pydantic's `Field` takes them.
    """
    return Field(default, json_schema_extra={"source": source}, **constraints)


class Section(BaseModel):
    """A frozen group of fields that refuses what it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


class Part(Section):
    """A user's own part: a class or function by its dotted path, and the arguments to call it with.

    In YAML a bare path stands for a part without arguments.
    """

    path: DottedPath = sourced(..., "user")
    """`package.module:Name`, looked for in the working directory too, or `path/to/file.py:Name`."""
    parameters: dict[str, Any] = sourced({}, "user")
    """Keyword arguments."""

    @model_validator(mode="before")
    @classmethod
    def _bare_path(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value

    @property
    def name(self) -> str:
        """What the path names within its module."""
        return self.path.rpartition(":")[2]


class ArchitectureSection(Section):
    """What is pretrained and transferred: backbone, FPN and box head, in torchvision's `_v2` shape."""

    backbone: str = sourced("resnet50", "CoDo abstract")
    """A timm model with `features_only` and strides 4, 8, 16, 32; or a user's own by dotted path."""
    fpn_channels: int = sourced(256, "torchvision", ge=8)
    box_head_convs: int = sourced(4, "InsLoc", ge=1)
    box_head_channels: int = sourced(256, "torchvision", ge=8)
    box_head_fc: int = sourced(1024, "torchvision", ge=8)


class RunSection(Section):
    """How and where a run executes.

    Not part of the fingerprint: none of it decides what is computed, except for rounding (device, precision).
    """

    device: str = sourced("auto", "run")
    """`auto`: CUDA where there is one, else the processor; or `cpu`, `cuda`, `cuda:1`, `mps`."""
    precision: Precision = sourced("auto", "run")
    """`auto`: bf16 autocast where it is faster on the GPU or processor, else fp32. fp16 scales its losses."""
    workers: NonNegativeInt | Literal["auto"] = sourced("auto", "run")
    """Data loader processes of each training process; `auto` keeps workers + torch threads within the cores."""
    threads: PositiveInt | Literal["auto"] = sourced("auto", "run")
    """Torch threads on a processor; `auto` is the cores that the workers leave."""
    log_every: int = sourced(10, "run", ge=1)
    """Steps between two lines of metrics."""
