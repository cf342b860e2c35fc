"""Options that several commands share, and how they become a config."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from codo.errors import CodoError

if TYPE_CHECKING:
    from codo.config import PretrainConfig

FIELDS = {
    "foregrounds": "data.foregrounds",
    "backgrounds": "data.backgrounds",
    "background": "background",
    "alignment": "alignment",
    "hierarchy": "hierarchy",
    "views": "views",
    "backbone": "model.backbone",
    "init": "model.init",
    "epochs": "optim.epochs",
    "batch_size": "optim.batch_size",
    "seed": "seed",
    "device": "run.device",
    "precision": "run.precision",
    "compile": "run.compile",
    "cache": "run.cache",
}
"""Flag -> the config field that it sets."""

OPTIONS = [
    click.option(
        "--foregrounds",
        metavar="DIR|SHARDS",
        help="Folder of unlabelled, object-centric images; or tar shards, 'train-{0000..0099}.tar', local or URLs.",
    ),
    click.option(
        "--backgrounds",
        metavar="DIR|SHARDS",
        help="COCO-format data set, folder or shards: the images you will detect on, labels unused.",
    ),
    click.option("--preset", metavar="NAME", help="Named settings to start from (`codo presets` lists them)."),
    click.option("--config", "file", metavar="FILE", type=click.Path(path_type=Path), help="YAML of config fields."),
    click.option("--set", "sets", metavar="FIELD=VALUE", multiple=True, help="Set any config field; repeatable."),
    click.option("--background/--no-background", default=None, help="Paste instances on backgrounds, or not."),
    click.option("--alignment/--no-alignment", default=None, help="Pretrain FPN and box head too, or not."),
    click.option("--hierarchy/--no-hierarchy", default=None, help="Contrast at every level, or at one."),
    click.option("--jitter/--no-jitter", default=None, help="Jitter the query's boxes, or not."),
    click.option(
        "--loss",
        "losses",
        metavar="PATH",
        multiple=True,
        help="Add your own loss to the config's, module:Name or file.py:Name; repeatable.",
    ),
    click.option("--views", type=int, metavar="N", help="Query views a sample."),
    click.option("--backbone", metavar="NAME", help="Any timm model with feature maps of strides 4, 8, 16, 32."),
    click.option("--epochs", type=int, metavar="N", help="Passes over the foregrounds."),
    click.option("--batch-size", type=int, metavar="N", help="Samples a step."),
    click.option("--seed", type=int, metavar="N", help="One seed fixes a run on one machine."),
    click.option("--device", metavar="NAME", help="auto, cpu, cuda, cuda:1, mps."),
    click.option("--precision", metavar="NAME", help="auto, fp32, bf16 or fp16."),
    click.option("--cache", metavar="WHERE", help="Decoded images: auto, ram, disk or off."),
    click.option("--compile/--no-compile", default=None, help="torch.compile the encoders, or not."),
]


def read_seeds(text: str) -> list[int]:
    """Read the value of a --seeds.

    Raises:
        CodoError: it is no list of whole numbers, each once.
    """
    parts = [part.strip() for part in text.split(",")]
    seeds = [int(part) for part in parts if part.isdecimal()]
    if len(set(seeds)) != len(parts):
        raise CodoError(f"--seeds {text}: whole numbers with commas between, each once, e.g. 0,1,2")
    return seeds


def config_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of a pretraining config to a command."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command


def fields_of(options: dict[str, Any]) -> dict[str, Any]:
    """Map the flags that were given to config fields."""
    fields = {field: options[flag] for flag, field in FIELDS.items() if options.get(flag) is not None}
    if options.get("jitter") is False:
        fields["jitter.mode"] = "none"
    if options.get("losses"):
        fields["loss.custom"] = list(options["losses"])
    return fields


def read_config(options: dict[str, Any]) -> PretrainConfig:
    """Compose the config: preset < file < flags < --set; the losses of --loss join those that it has."""
    import yaml

    from codo.config import load_pretrain_config

    fields = fields_of(options)
    losses = fields.pop("loss.custom", [])
    given = {name: options[name] for name in ("preset", "file", "sets")}
    config = load_pretrain_config(flags=fields, **given)
    if options.get("jitter") and config.jitter.mode == "none":  # a preset or file without jitter, and --jitter
        fields["jitter.mode"] = "ratio"
        config = load_pretrain_config(flags=fields, **given)
    if losses:
        all_losses = [*(part.model_dump(mode="json") for part in config.loss.custom), *losses]
        text = yaml.safe_dump(all_losses, default_flow_style=True)
        config = load_pretrain_config(flags=fields, **{**given, "sets": (*given["sets"], f"loss.custom={text}")})
    return config
