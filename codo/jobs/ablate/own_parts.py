"""The backbones, parts, detectors and weights that a grid's rows name: each made once before anything runs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from codo.backbones import Backbone
from codo.config.pretrain import PretrainConfig
from codo.errors import CodoError
from codo.jobs.ablate.jobs import digest
from codo.jobs.ablate.lines import Keys
from codo.jobs.ablate.resolve import Grid, ResolvedRow
from codo.jobs.pretrain.build import build_jitter
from codo.jobs.pretrain.init import read_init
from codo.jobs.pretrain.method import custom_losses, encoder_of
from codo.jobs.transfer.detectors import kinds_of
from codo.parts import Parts, make


def check_parts(grid: Grid) -> None:
    """Make every backbone and part that a row names, import its detectors, and read the weights that it begins with.

    Raises:
        CodoError: there is none of that name, or it does not take its parameters; with the line of the YAML.
    """
    tried: set[str] = set()

    def attempt(field: str, value: object, keys: Keys, made: Callable[[], object]) -> None:
        if (name := digest(field, value)) not in tried:
            tried.add(name)
            try:
                made()
            except CodoError as error:
                raise grid.yaml.error(keys, str(error).removeprefix(f"{field}: ")) from None

    with torch.random.fork_rng(devices=[]):
        for row in grid.rows:
            for field, made in _makers(row.pretrain).items():
                section, _, name = field.rpartition(".")
                value = (getattr(row.pretrain, section) if section else row.pretrain).model_dump()[name]
                attempt(field, value, _keys(grid, row, field), made)
            if row.changes is not None and row.pretrain.model.init is not None:
                network = (row.pretrain.alignment, row.pretrain.model.model_dump(mode="json"))
                attempt("model.init", network, _keys(grid, row, "model.init"), partial(_fill, row.pretrain))
            for protocol, transfer in row.transfers.items():
                keys = _of_row(row, "transfer.detector") or ("transfer", protocol, "detector")
                attempt("detector", transfer.detector, keys, partial(kinds_of, transfer.detector))


def _fill(config: PretrainConfig) -> None:
    """Fill an encoder with the weights that a pretraining begins with."""
    if (init := read_init(config)) is not None:
        init.fill(encoder_of(config, Parts(), set()))


def _makers(config: PretrainConfig) -> dict[str, Callable[[], object]]:
    """List what makes each part, as a run would: dotted field -> maker."""
    model = config.model
    makers: dict[str, Callable[[], object]] = {
        "model.backbone": lambda: Backbone(model.backbone, None),
        "loss.custom": lambda: custom_losses(config, Parts()),
        "augment": lambda: [make(part) for part in config.augment],
        "jitter.custom": lambda: build_jitter(config),
    }
    if (projector := model.projector) is not None:
        widths = (model.box_head_fc, model.projector_hidden, model.embedding)
        makers["model.projector"] = lambda: make(projector, *widths)
    if (box_head := model.box_head) is not None:
        makers["model.box_head"] = lambda: make(box_head, model.fpn_channels, model.box_head_fc)
    return makers


def _keys(grid: Grid, row: ResolvedRow, field: str) -> Keys:
    """Find where a row, or else the base, sets a field, nested or dotted."""
    of_base: tuple[Keys, ...] = (("base", field), ("base", *field.split(".")))
    return _of_row(row, field) or max(of_base, key=lambda keys: grid.yaml.line(*keys))


def _of_row(row: ResolvedRow, field: str) -> Keys | None:
    return next((change.keys for change in reversed(row.plan.changes or ()) if change.field == field), None)
