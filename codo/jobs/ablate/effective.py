"""What of a pretraining config is in force: an axis over a field that nothing reads would measure noise."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from codo.config.load import flatten
from codo.config.pretrain import PretrainConfig
from codo.config.transfer import ONE_STAGE, TransferConfig


def inert(config: PretrainConfig) -> Iterator[tuple[str, str]]:
    """List what this config does not read: dotted field or section, and why."""
    if not config.background:
        yield "paste", "background is off"
    elif not config.mixes_views:
        yield "crop", "background is on: views are pasted"
    jitter = config.jitter
    stage = "stage" in config.loss_weights or bool(config.loss.custom)  # a user's own may ask for it
    if not config.alignment:
        yield "model.roi_canonical_size", "alignment is off: no box is assigned a level"
        yield "model.projector_hidden", "alignment is off: there is no box head to project from"
    if not config.alignment and not stage:
        yield "jitter", "alignment is off: no box is pooled"
        for name in ("roi_sampling_ratio", "roi_aligned"):
            yield f"model.{name}", "alignment is off: no box is pooled"
    elif not stage and set(config.loss_weights) <= {"image", "dense"}:
        yield "jitter", "no loss that is on pools a box"
    elif not config.background and jitter.custom is None:
        yield "jitter", "background is off: the box is the canvas"
    elif jitter.mode == "none" and jitter.custom is None:
        yield "jitter.levels", "jitter.mode is none"
    if jitter.mode != "ratio" or jitter.custom is not None:
        for name in ("ratio", "p", "min_iou"):
            yield f"jitter.{name}", "jitter.mode is not ratio"
    elif jitter.p == 0:
        for name in ("ratio", "min_iou", "levels"):
            yield f"jitter.{name}", "jitter.p is 0"
    if config.colour.p == 0:
        for name in ("brightness", "contrast", "saturation", "hue"):
            yield f"colour.{name}", "colour.p is 0"
    if config.colour.blur_p == 0:
        yield "colour.blur_sigma", "colour.blur_p is 0"
    if config.background and config.paste.source != "mix":
        yield "paste.mix_probability", "paste.source is not mix"
    if "level" not in config.loss_weights and not config.loss.custom:
        yield "loss.levels", "the level loss is off"
        yield "loss.level_weights", "the level loss is off"
    if not stage:
        yield "loss.stage_levels", "the stage loss is off"
    if config.loss.form != "cosine":
        yield "loss.predictor_hidden", "loss.form is not cosine"
    if config.loss.negatives == "batch":
        yield "loss.queue_size", "loss.negatives is batch: there is no queue"
    if config.optim.name == "adamw":
        yield "optim.nesterov", "optim.name is adamw"
    if config.loss.form == "cosine" and not config.loss.dense:
        for name in ("negatives", "queue_size", *(() if config.loss.cell else ("temperature",))):
            yield f"loss.{name}", "loss.form is cosine: there are no negatives"


def effective(config: PretrainConfig) -> dict[str, Any]:
    """Flatten a config to the fields in force, what is unset resolved; without `run`.

    Example:
        >>> off = PretrainConfig(background=False)
        >>> "paste.source" in effective(off), effective(off)["loss.level"]
        (False, 1.0)
    """
    fields = dict(flatten(config.model_dump(mode="json", exclude={"run"})))
    for name in ("image", "instance", "level"):
        fields[f"loss.{name}"] = config.loss_weights.get(name, 0.0)
    fields["loss.level_weights"] = list(config.level_weights)
    fields["model.roi_canonical_size"] = config.roi_canonical_size
    if config.model.key_momentum_end is None:
        fields["model.key_momentum_end"] = config.model.key_momentum
    if not config.uses_backgrounds:
        fields.pop("data.backgrounds", None)
    unread = [name for name, _ in inert(config)]
    return {key: v for key, v in fields.items() if not any(key == n or key.startswith(f"{n}.") for n in unread)}


def effective_transfer(config: TransferConfig, pretrain: PretrainConfig) -> dict[str, Any]:
    """Dump what is in force of a transfer's config: loading the parts, in any order, that there are; without `run`.

    Example:
        >>> effective_transfer(TransferConfig(), PretrainConfig(alignment=False, hierarchy=False))["load"]
        ['backbone']
    """
    tree = config.model_dump(mode="json", exclude={"run"})
    tree["load"] = sorted(group for group in tree["load"] if pretrain.alignment or group == "backbone")
    if config.detector in ONE_STAGE:
        tree["detection"] = {key: v for key, v in tree["detection"].items() if not key.startswith(("rpn_", "roi_"))}
    return tree


def why_inert(fields: list[str], *configs: PretrainConfig) -> str:
    """Say why none of `fields` is in force, in words; empty where nothing is known."""
    reasons = [
        reason for config in configs for name, reason in inert(config) for f in fields if f"{f}.".startswith(f"{name}.")
    ]
    return reasons[0] if reasons else ""
