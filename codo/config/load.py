"""Configs from presets, YAML files, flags and `--set`; in that order, the later one wins."""

from __future__ import annotations

import difflib
import hashlib
import json
import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from codo.config.presets import PRETRAIN_PRESETS
from codo.config.pretrain import PretrainConfig
from codo.errors import CodoError

Config = TypeVar("Config", bound=BaseModel)


DATA_PATHS = ("foregrounds", "backgrounds", "root", "train_json", "val_json", "images", "val_images")
"""Fields of `data`, of pretraining and of transfer, that say where images and annotations lie."""

MOVABLE = tuple(f"data.{name}" for name in DATA_PATHS)
"""Them, dotted: a run may find its data elsewhere, where a fingerprint shows that they are the same."""

CHOOSE_DATA = (*DATA_PATHS, "limit", "fraction")
"""Fields of `data`, of pretraining and of transfer, that say which images are used; the others how they are read."""

SECTION_EXPECTED = "a section of fields is expected"


def load_config(
    kind: type[Config],
    presets: Mapping[str, Mapping[str, Any]],
    *,
    preset: str | None = None,
    default_preset: str,
    file: str | Path | None = None,
    flags: Mapping[str, Any] | None = None,
    sets: Sequence[str] = (),
) -> Config:
    """Compose and validate a config: preset < file < flags < sets.

    Args:
        kind: the config class.
        presets: name -> nested fields that differ from the class's defaults.
        preset: the preset asked for; else the file's own `preset:` key; else, without a file, `default_preset`.
        default_preset: what runs when nothing is named.
        file: YAML, nested fields, and optionally `preset: NAME`.
        flags: dotted field -> value; None values are skipped.
        sets: `dotted.field=value`, the value read as YAML.

    Raises:
        CodoError: an unknown preset or field (with what was meant), a value out of range, a broken file.
    """
    tree = read_yaml(file) if file else {}
    named = tree.pop("preset", None)
    name = preset if preset is not None else named if named is not None else None if file else default_preset
    if name is not None and (not isinstance(name, str) or name not in presets):
        raise CodoError(f"preset: no preset {name!r}; there are {', '.join(presets)}")
    merged = _merge(dict(presets[name]) if name is not None else {}, tree)
    given = {key: value for key, value in (flags or {}).items() if value is not None}
    given |= dict(_parse_set(text) for text in sets)
    where = f" (in {file}, flags or --set)" if file else ""
    for key, value in given.items():
        nested = _nest(key, value, kind)
        _check_sections(merged, key, where)
        merged = _merge(merged, nested)
    try:
        return kind.model_validate(merged)
    except ValidationError as error:
        raise CodoError(_explain(error, kind) + where) from None


def load_pretrain_config(
    *,
    preset: str | None = None,
    file: str | Path | None = None,
    flags: Mapping[str, Any] | None = None,
    sets: Sequence[str] = (),
) -> PretrainConfig:
    """Compose a pretraining config; see `load_config`. With nothing named it is the preset `small`.

    Example:
        >>> load_pretrain_config(preset="codo", flags={"views": 1}).canvas
        256
    """
    return load_config(
        PretrainConfig, PRETRAIN_PRESETS, preset=preset, default_preset="small", file=file, flags=flags, sets=sets
    )


def load_run_config(kind: type[Config], folder: Path, changes: Mapping[str, Any] | None = None) -> Config:
    """Read the config that a run was started with, from its folder; `changes` are as the flags of `load_config`.

    Raises:
        CodoError: the run is of the other kind; as `load_config`.
    """
    tree = read_yaml(folder / "config.yaml")
    for field, command, what in (("canvas", "pretrain", "pretraining"), ("detector", "transfer", "transfer")):
        if field in tree and field not in kind.model_fields:
            other = {"pretrain": "transfer", "transfer": "pretraining"}[command]
            more = f"; that one goes on with: codo {command} --resume {shlex.quote(str(folder))}"
            finished = (folder / "summary.json").is_file()
            raise CodoError(f"{folder} is a {what} run, and a {other} run is needed here{'' if finished else more}")
    return load_config(kind, {}, file=folder / "config.yaml", default_preset="", flags=changes)


def dump_yaml(config: BaseModel) -> str:
    """Write a config as YAML; reading it back gives an equal config."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, default_flow_style=None, width=100)


def fingerprint(config: BaseModel, data: str = "") -> str:
    """Name what a config computes: 16 hex digits over all fields but the `run` section and those that name files.

    Args:
        config: the resolved config.
        data: a fingerprint of the data, and of what else is read, which stands in for its paths and for how much of it
            is used.
    """
    tree = config.model_dump(mode="json", exclude={"run": True, "weights": True, "model": {"init"}})
    if "data" in tree:
        tree["data"] = {name: value for name, value in tree["data"].items() if name not in CHOOSE_DATA}
    text = json.dumps([type(config).__name__, tree, data], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def differences(a: BaseModel, b: BaseModel) -> dict[str, tuple[Any, Any]]:
    """List the dotted fields in which two configs differ, with both values; None is that of a section not there."""
    left, right = (dict(flatten(c.model_dump(mode="json"))) for c in (a, b))
    return {key: (left.get(key), right.get(key)) for key in {**left, **right} if left.get(key) != right.get(key)}


def told(changed: Mapping[str, tuple[Any, Any]]) -> str:
    """Say in words what `differences` found."""
    return ", ".join(f"{key} {old} -> {new}" for key, (old, new) in changed.items())


def check_resumed(run: Path, changed: Mapping[str, tuple[Any, Any]], free: Collection[str]) -> None:
    """Refuse to resume a run with another config: only the section `run` and the fields in `free` may change."""
    refused = {key: pair for key, pair in changed.items() if not key.startswith("run.") and key not in free}
    if refused:
        raise CodoError(
            f"--resume {run}: a resumed run keeps its config ({told(refused)}); only run.* and where the data "
            "lie may change, epochs grow"
        )


def read_yaml(file: str | Path) -> dict[str, Any]:
    """Read a mapping of settings; an empty file is an empty one.

    Raises:
        CodoError: it cannot be read, or is something else.
    """
    try:
        tree = yaml.load(Path(file).read_text(encoding="utf-8"), _Loader)  # a safe one
    except OSError as error:
        raise CodoError(f"config: cannot read {file}: {error.strerror}") from error
    except RecursionError:
        raise CodoError(f"config: {file} is nested too deeply") from None
    except (yaml.YAMLError, ValueError) as error:  # a ValueError of bytes that are no text, of a date that is none
        line = " ".join(str(error).split())
        raise CodoError(f"config: {file} is not YAML: {line}") from error
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise CodoError(f"config: {file} holds a {type(tree).__name__}; a mapping of fields is expected")
    return tree


class _Loader(yaml.SafeLoader):
    """The safe loader, but a key that stands twice is an error: the first value would be lost."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and (key.tag, key.value) in seen:
                raise yaml.composer.ComposerError(None, None, f"{key.value!r} stands here twice", key.start_mark)
            seen.add((key.tag, str(key.value)))
        return node


def _parse_set(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise CodoError(f"--set {text}: write field=value, e.g. --set optim.lr=0.05")
    try:
        return key.strip(), yaml.safe_load(value)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise CodoError(f"--set {text}: the value is not YAML") from error


def _nest(key: str, value: Any, kind: type[BaseModel]) -> dict[str, Any]:
    names = key.split(".")
    section: Any = kind
    for i, name in enumerate(names):
        fields = getattr(section, "model_fields", None)
        if not fields or name not in fields:
            raise CodoError(unknown_field(names[: i + 1], kind))
        section = fields[name].annotation
    for name in reversed(names):
        value = {name: value}
    return value


def _check_sections(tree: Mapping[str, Any], field: str, where: str) -> None:
    """Refuse what is no section where `field` has one: what a file says is not thrown away."""
    names = field.split(".")[:-1]
    for i, name in enumerate(names):
        section = tree.get(name, {})
        if not isinstance(section, Mapping):
            raise CodoError(f"config: {'.'.join(names[: i + 1])} = {section!r}: {SECTION_EXPECTED}{where}")
        tree = section


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        nested = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merge(merged[key], value) if nested else value
    return merged


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """List the dotted fields of a dumped config, with their values."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _fields(kind: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in kind.model_fields.items():
        yield prefix + name
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _fields(field.annotation, f"{prefix}{name}.")


def unknown_field(loc: Sequence[str], kind: type[BaseModel]) -> str:
    """One line for a field that does not exist: near in spelling, or the same name in another section."""
    key, known = ".".join(loc), list(_fields(kind))
    near = [name for name in known if name.rpartition(".")[2] == loc[-1]]
    near += difflib.get_close_matches(key, known, n=2, cutoff=0.8)
    near += difflib.get_close_matches(loc[-1], [k for k in known if "." not in k], n=1, cutoff=0.7)
    hint = f"; did you mean {' or '.join(dict.fromkeys(near))}?" if near else ""
    return f"config: there is no field {key!r}{hint}"


def plain(error: Mapping[str, Any]) -> str:
    """Say a validation's error in the words of who writes YAML."""
    if error["type"] in ("tuple_type", "list_type"):
        return "a list is expected"
    if error["type"] == "model_type":
        return SECTION_EXPECTED
    if error["type"] == "too_short":
        return f"at least {error['ctx']['min_length']} in the list expected"
    message = str(error["msg"])
    ours = message.removeprefix("Value error, ")
    return ours if ours != message else message[:1].lower() + message[1:]


def _explain(error: ValidationError, kind: type[BaseModel]) -> str:
    """One line for the first error of a validation."""
    first = error.errors(include_url=False)[0]
    loc = [str(part) for part in first["loc"]]
    if first["type"] == "extra_forbidden":
        return unknown_field(loc, kind)
    message = plain(first)
    if first["type"] == "string_pattern_mismatch":  # of a DottedPath, the only pattern
        message = "write module:Name or file.py:Name"
    if not loc:
        return f"config: {message}"
    value = first.get("input")
    field = [
        part
        for part in loc
        if not part.startswith("literal[")
        and part not in ("int", "float", "str")
        and not part.startswith("constrained-")
    ]
    return f"config: {'.'.join(field)} = {value!r}: {message}"
