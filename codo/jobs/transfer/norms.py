"""How a detector's norms train, and what of it does not train at all."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from codo.config.transfer import GROUPS, TransferConfig
from codo.errors import CodoError
from codo.jobs.transfer.base import Detector

GROUP_MODULES = {"backbone": "backbone.body", "fpn": "backbone.fpn", "box_head": "roi_heads.box_head"}
"""Group -> its module in a detector."""

NORM_GROUPS = 32
"""Groups of a GroupNorm (Wu and He, arXiv 1803.08494; torchvision's heads)."""


def norm_groups(channels: int) -> int:
    """Choose how many groups a GroupNorm has: up to 32, each of two channels or more.

    Example:
        >>> norm_groups(256), norm_groups(24), norm_groups(16)
        (32, 8, 8)
    """
    groups = math.gcd(NORM_GROUPS, channels)
    return groups if groups < channels else max(1, channels // 2)


def batch_norms(module: nn.Module) -> dict[str, nn.Module]:
    """Find the batch norms in a module, by name."""
    return {name: child for name, child in module.named_modules() if isinstance(child, _BatchNorm)}


def put_group_norms(module: nn.Module) -> None:
    """Put a GroupNorm in the place of every batch norm; scale and shift keep their names, and begin as 1 and 0."""
    for name, norm in batch_norms(module).items():
        assert isinstance(norm, _BatchNorm)
        new: nn.Module
        if isinstance(norm, BatchNormAct2d):
            new = _GroupNormAct(norm)
        else:
            new = nn.GroupNorm(norm_groups(norm.num_features), norm.num_features)
        nn.init.constant_(new.weight, float(norm.weight.detach()[0]))  # 0 where it ends a residual branch
        parent, _, child = name.rpartition(".")
        setattr(module.get_submodule(parent), child, new)


class _GroupNormAct(nn.GroupNorm):
    """A GroupNorm with the activation that timm's batch norms carry."""

    def __init__(self, norm: Any) -> None:
        super().__init__(norm_groups(norm.num_features), norm.num_features)
        self.drop, self.act = norm.drop, norm.act

    def forward(self, input: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(input)))


def check_norm(config: TransferConfig, metadata: dict[str, str]) -> None:
    """Refuse weights whose norms do not fit: BN's scale and shift mean nothing to GroupNorm, nor the other way round.

    Args:
        config: of the run.
        metadata: of the weights; files that are not codo's have none, and are taken for BN's.

    Raises:
        CodoError: one of the two is `gn` and the other is not.
    """
    theirs = metadata.get("norm", "bn")
    if (config.norm == "gn") != (theirs == "gn"):
        right = "use norm=bn, or weights=none" if config.norm == "gn" else "use norm=gn"
        raise CodoError(f"norm: {config.norm}, but the weights were learnt with {theirs}; {right}")


def set_training(detector: Detector, config: TransferConfig) -> None:
    """Settle what of a freshly built detector trains: frozen groups, frozen stages, frozen norms.

    What is frozen takes no gradient. With `population` statistics it stays in evaluation mode whatever mode the
    detector is put in (`detector.held`); with `batch` it follows the detector's mode.

    Raises:
        CodoError: there is no batch norm to freeze, or the parts or the backbone's stages are not known.
    """
    held: list[str] = []
    if config.norm == "frozen_bn":
        norms = batch_norms(_body(detector, "norm"))
        if not norms:
            raise CodoError(f"norm: {config.architecture.backbone} has no batch norm to freeze; use norm=bn")
        for norm in norms.values():
            norm.requires_grad_(False)
        held += [f"backbone.body.{name}" for name in norms]
    if config.freeze:
        _body(detector, "freeze")
    frozen = [name for group in config.freeze for name in group_modules(detector, group)]
    if config.freeze_stages:
        names = stage_modules(_body(detector, "freeze_stages"), config.architecture.backbone)
        frozen += [f"backbone.body.{name}" for stage in names[: config.freeze_stages] for name in stage]
    for name in frozen:
        detector.get_submodule(name).requires_grad_(False)
    if config.frozen_norm == "population":
        held += frozen

    def hold(module: nn.Module, _: Any) -> None:
        for name in held:
            module.get_submodule(name).eval()

    detector.held = tuple(held)
    if held:  # by name: SyncBN takes the place of modules
        detector.register_forward_pre_hook(hold)


def _body(detector: nn.Module, field: str) -> nn.Module:
    try:
        return detector.get_submodule(GROUP_MODULES["backbone"])
    except AttributeError:
        raise CodoError(
            f"{field}: the detector's `backbone` is not the one it was given, so that its parts are not known; "
            "freeze them in your own code"
        ) from None


def group_modules(detector: nn.Module, group: str) -> list[str]:
    """Name the modules of a group. P6 and P7 of one-stage detectors are not of the pyramid: they are always fresh.

    A detector without a box head has no modules in that group.
    """
    try:
        found = detector.get_submodule(GROUP_MODULES[group])
    except AttributeError:
        return []
    if group != "fpn":
        return [GROUP_MODULES[group]]
    return [f"{GROUP_MODULES[group]}.{name}" for name, _ in found.named_children() if name != "extra_blocks"]


def stage_modules(body: nn.Module, name: str) -> list[list[str]]:
    """Name the modules of the backbone's stages: stem, C2, C3, C4, C5.

    Raises:
        CodoError: the backbone does not say where its stages end.
    """
    info = getattr(body, "feature_info", None)
    ends = [str(end) for end in info.module_name()] if info is not None else []
    units: list[str] = []
    for child, module in body.named_children():
        nested = any(end.startswith(f"{child}.") for end in ends)
        units += [f"{child}.{inner}" for inner, _ in module.named_children()] if nested else [child]
    if not ends or not set(ends) <= set(units):  # timm writes some nested names with an underscore
        ends = [end.replace(".", "_") for end in ends]
    if len(set(ends)) != 4 or not set(ends) <= set(units):
        raise CodoError(f"freeze_stages: {name} does not name its stages; freeze the whole of it (--freeze backbone)")
    marks = [units.index(end) for end in ends]
    starts = [0, marks[0], *(mark + 1 for mark in marks)]
    return [units[a:b] for a, b in pairwise(starts)]


def parameter_counts(detector: nn.Module) -> dict[str, dict[str, int]]:
    """Count the parameters of each group, and of the rest (RPN, predictors, heads, P6 and P7): trained and frozen."""
    prefixes = {name + ".": group for group in GROUPS for name in group_modules(detector, group)}
    counts = {group: {"trained": 0, "frozen": 0} for group in (*GROUPS, "rest")}
    for name, parameter in detector.named_parameters():
        group = next((group for prefix, group in prefixes.items() if name.startswith(prefix)), "rest")
        counts[group]["trained" if parameter.requires_grad else "frozen"] += parameter.numel()
    return counts
