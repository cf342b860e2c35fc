"""Transfer configs: what the weights say about the architecture comes between the preset and the user."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from codo.config.load import load_config, read_yaml
from codo.config.presets import TRANSFER_PRESETS
from codo.config.schedules import REFERENCE_BATCH, SCHEDULES, schedule_fields
from codo.config.transfer import TransferConfig
from codo.errors import CodoError
from codo.weights import check_architecture, read_architecture


def load_transfer_config(
    *,
    preset: str | None = None,
    file: str | Path | None = None,
    flags: Mapping[str, Any] | None = None,
    sets: Sequence[str] = (),
    schedule: str | None = None,
    like: str | None = None,
) -> TransferConfig:
    """Compose a config: preset < the weights' own architecture < file < schedule < flags < sets.

    One length among the flags, `optim.epochs` or `optim.iterations`, takes the place of the other below them.

    Args:
        preset: as for `load_config`; `1x`, `2x` and `12k` scale with the batch size, as `schedule` does, but for the
            fields that are set to something else or stand in the file.
        file: YAML.
        flags: dotted field -> value.
        sets: `dotted.field=value`.
        schedule: a name of `SCHEDULES`, scaled to the batch size by the linear rule (`schedule_fields`).
        like: with the weights `none`, or those of others, a run or file of codo's whose architecture they are put into.

    Raises:
        CodoError: as `load_config`; or the architecture asked for is not the weights' own.

    Example:
        >>> load_transfer_config(flags={"detector": "retinanet", "optim.epochs": 3}).optim.batch_size
        4
    """
    config, given = compose(preset, file, flags or {}, sets, schedule)
    theirs = read_architecture(config.weights) if config.weights != "none" else None
    if like is not None and theirs is not None:
        raise CodoError(f"--like {like}: the weights {config.weights} have an architecture of their own; leave it out")
    named = config.weights if theirs is not None else like
    own = read_architecture(named) if named is not None else None
    if like is not None and own is None:
        raise CodoError(f"--like {like}: it does not say of which architecture it is; name a run of codo's")
    if named is None or own is None:
        return config
    # Without the presets' architecture, the fields that are set are those that the user set.
    bare = {
        name: {key: value for key, value in tree.items() if key != "architecture"}
        for name, tree in TRANSFER_PRESETS.items()
    }
    asked = load_config(TransferConfig, bare, **given).architecture
    if ":" in own.backbone and asked.backbone != own.backbone:
        raise CodoError(
            f"weights: {named} has a backbone of your own, {own.backbone}; to run that code, say "
            f"--set architecture.backbone={own.backbone}"
        )
    explicit = {name: getattr(asked, name) for name in asked.model_fields_set}
    architecture = own.model_copy(update=explicit)
    check_architecture(architecture, named)
    return config.model_copy(update={"architecture": architecture})


def compose(
    preset: str | None,
    file: str | Path | None,
    flags: Mapping[str, Any],
    sets: Sequence[str] = (),
    schedule: str | None = None,
) -> tuple[TransferConfig, dict[str, Any]]:
    """Compose a config as `load_transfer_config` does, but for the weights, which are not looked at.

    Returns:
        The config, and the arguments of `load_config` that make it.
    """
    flags = {key: value for key, value in flags.items() if value is not None}
    given: dict[str, Any] = {"preset": preset, "default_preset": "small", "file": file}
    given |= {"flags": flags, "sets": (*_other_length(flags), *sets)}
    config = load_config(TransferConfig, TRANSFER_PRESETS, **given)
    tree = read_yaml(file) if file else {}
    scaled = _scaled(config, preset or tree.get("preset"), schedule, kept=tree.get("optim", {}))
    if scaled:
        if "optim.epochs" in flags:
            scaled.pop("optim.iterations", None)
        given["flags"] = flags = scaled | flags
        given["sets"] = (*_other_length(flags), *sets)
        config = load_config(TransferConfig, TRANSFER_PRESETS, **given)
    return config, given


def _other_length(flags: Mapping[str, Any]) -> list[str]:
    """Unset the length that is not among the flags, where the other one is: a preset or file may have set it."""
    lengths = ("optim.epochs", "optim.iterations")
    return [f"{name}=null" for name in lengths if name not in flags and any(length in flags for length in lengths)]


def _scaled(config: TransferConfig, preset: str | None, schedule: str | None, kept: Collection[str]) -> dict[str, Any]:
    """List the fields of a schedule at the config's batch size; of a preset's schedule those not set to something else.

    Args:
        config: with the schedule as it is at batch 16.
        preset: the one that the config is of.
        schedule: the one asked for in its place.
        kept: fields of `optim` that stay as they are where the schedule is a preset's.

    Raises:
        CodoError: no such schedule.
    """
    size = config.optim.batch_size
    if schedule is not None:
        if schedule not in SCHEDULES:
            raise CodoError(f"schedule: no schedule {schedule!r}; there are {', '.join(SCHEDULES)}")
        return {key: value for key, value in schedule_fields(schedule, size).items() if value is not None}
    if preset not in SCHEDULES or size == REFERENCE_BATCH or config.optim.epochs is not None:
        return {}
    own = {f"optim.{key}": value for key, value in config.optim.model_dump(mode="json").items()}
    unscaled, wanted = schedule_fields(preset, REFERENCE_BATCH), schedule_fields(preset, size)
    return {
        key: value
        for key, value in wanted.items()
        if value is not None and own[key] == unscaled[key] and key.removeprefix("optim.") not in kept
    }
