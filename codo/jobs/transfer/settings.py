"""Transfer configs: what the weights say about the architecture comes between the preset and the user."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from codo.config.load import load_config
from codo.config.presets import TRANSFER_PRESETS
from codo.config.transfer import TransferConfig
from codo.errors import CodoError
from codo.weights import check_architecture, read_architecture


def load_transfer_config(
    *,
    preset: str | None = None,
    file: Path | None = None,
    flags: Mapping[str, Any] | None = None,
    sets: Sequence[str] = (),
) -> TransferConfig:
    """Compose a config: preset < the weights' own architecture < file < flags < sets.

    Raises:
        CodoError: as `load_config`; or the architecture asked for is not the weights' own.

    Example:
        >>> load_transfer_config(flags={"detector": "retinanet", "optim.epochs": 3}).optim.batch_size
        4
    """
    given: dict[str, Any] = {
        "preset": preset,
        "default_preset": "small",
        "file": file,
        "flags": flags,
        "sets": sets,
    }
    config = load_config(TransferConfig, TRANSFER_PRESETS, **given)
    own = read_architecture(config.weights) if config.weights != "none" else None
    if own is None:
        return config
    # Without the presets' architecture, the fields that are set are those that the user set.
    bare = {
        name: {key: value for key, value in tree.items() if key != "architecture"}
        for name, tree in TRANSFER_PRESETS.items()
    }
    asked = load_config(TransferConfig, bare, **given).architecture
    if ":" in own.backbone and asked.backbone != own.backbone:
        raise CodoError(
            f"weights: {config.weights} has a backbone of your own, {own.backbone}; to run that code, say "
            f"--set architecture.backbone={own.backbone}"
        )
    explicit = {name: getattr(asked, name) for name in asked.model_fields_set}
    architecture = own.model_copy(update=explicit)
    check_architecture(architecture, config.weights)
    return config.model_copy(update={"architecture": architecture})
