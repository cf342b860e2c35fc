"""Where every value of a config comes from, and in what two configs differ."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from codo.config.load import differences, load_config, load_pretrain_config, read_yaml
from codo.config.presets import ALIASES, PRESETS, TRANSFER_PRESETS
from codo.config.pretrain import PretrainConfig
from codo.config.transfer import TransferConfig
from codo.errors import CodoError


def default_sources(kind: type[BaseModel] = PretrainConfig, prefix: str = "") -> dict[str, str]:
    """Map each dotted field to the source of its default."""
    found: dict[str, str] = {}
    for name, field in kind.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            found |= default_sources(section, f"{prefix}{name}.")
        else:
            extra = field.json_schema_extra
            found[prefix + name] = str(extra["source"]) if isinstance(extra, dict) else ""
    return found


def explain_preset(name: str) -> str:
    """Write a preset as YAML that `--config` takes, each value with a comment on where it comes from.

    Raises:
        CodoError: no such preset.

    Example:
        >>> "views: 2  # ours" in explain_preset("codo")
        True
    """
    config = load_pretrain_config(preset=name)
    preset = PRESETS[ALIASES.get(name, name)]
    sources = default_sources() | {key: source for key, (_, source) in preset.fields.items()}
    lines = [
        f"# {ALIASES.get(name, name)}: {preset.about}",
        "# value  # where it comes from; * differs from the default",
    ]
    return "\n".join([*lines, *_lines(config.model_dump(mode="json"), sources, set(preset.fields))]) + "\n"


def _lines(tree: dict[str, Any], sources: dict[str, str], own: set[str], prefix: str = "") -> Iterator[str]:
    indent = "  " * prefix.count(".")
    for key, value in tree.items():
        field = prefix + key
        if field not in sources:
            yield f"{indent}{key}:"
            yield from _lines(value, sources, own, f"{field}.")
        else:
            text = yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("...\n").strip()
            yield f"{indent}{key}: {text}  # {sources[field]}{' *' if field in own else ''}"


def load_any(name: str) -> PretrainConfig | TransferConfig:
    """Load a config by the name of a preset of pretraining, a YAML file, or a run folder.

    A file is of transfer if it has a field that pretraining has not.

    Raises:
        CodoError: none of the three, or as `load_config`.
    """
    path = Path(name)
    file = path / "config.yaml" if path.is_dir() else path
    if file.is_file():
        fields = read_yaml(file).keys() - PretrainConfig.model_fields.keys()
        if fields & TransferConfig.model_fields.keys():
            return load_config(TransferConfig, TRANSFER_PRESETS, file=file, default_preset="small")
        return load_pretrain_config(file=file)
    if name in PRESETS or name in ALIASES:
        return load_pretrain_config(preset=name)
    raise CodoError(f"{name}: neither a preset ({', '.join(PRESETS)}), nor a YAML file, nor a run folder")


def diff(a: str, b: str) -> dict[str, tuple[Any, Any]]:
    """List the dotted fields in which two configs differ, each with both values; for names see `load_any`.

    Raises:
        CodoError: as `load_any`; one is of pretraining, the other of transfer.
    """
    left, right = load_any(a), load_any(b)
    if type(left) is not type(right):
        of_transfer, of_pretraining = (a, b) if isinstance(left, TransferConfig) else (b, a)
        raise CodoError(f"{of_transfer} is of transfer and {of_pretraining} of pretraining: they share no settings")
    return differences(left, right)
