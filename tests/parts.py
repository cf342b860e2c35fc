"""What tests share that is no fixture."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from codo.cli import main
from codo.config import PretrainConfig, load_pretrain_config
from codo.jobs.pretrain.build import build_dataset, find_sources
from codo.jobs.pretrain.training import Run

TINY: dict[str, Any] = {
    "canvas": 64,
    "views": 1,
    "model.backbone": "resnet10t",
    "model.fpn_channels": 16,
    "model.box_head_convs": 1,
    "model.box_head_channels": 16,
    "model.box_head_fc": 32,
    "model.projector_hidden": 32,
    "model.embedding": 16,
    "model.bn_groups": 2,
    "loss.queue_size": 32,
    "loss.negatives": "both",
    "optim.epochs": 2,
    "optim.batch_size": 4,
    "run.log_every": 1,
    "run.device": "cpu",
    "run.precision": "fp32",
    "run.workers": 0,
    "run.threads": 1,
}
"""Dotted fields of pretraining that takes seconds."""

TINY_DETECTION: dict[str, Any] = {
    "min_size": [64],
    "max_size": 96,
    "rpn_pre_nms_train": 50,
    "rpn_pre_nms_test": 50,
    "rpn_post_nms_train": 20,
    "rpn_post_nms_test": 20,
    "roi_batch_size": 8,
    "score_threshold": 0.0,
}
"""The section `detection` of a transfer that takes seconds."""


def tiny_config(images: Path, **fields: Any) -> PretrainConfig:
    """Make a config of a network that takes a step in a fraction of a second; `a__b` stands for `a.b`."""
    sources = {"data.foregrounds": str(images / "foregrounds"), "data.backgrounds": str(images / "backgrounds")}
    given = {key.replace("__", "."): value for key, value in fields.items()}
    absent = [f"{key}=null" for key, value in given.items() if value is None]
    return load_pretrain_config(preset="codo", flags=TINY | sources | given, sets=absent)


def run_of(config: PretrainConfig) -> Run:
    """Make the pretraining that a config describes, on its own data."""
    return Run(config, build_dataset(config, find_sources(config)))


def leaves(kind: type[BaseModel], prefix: str = "") -> list[str]:
    """List the dotted fields of a config."""
    names = []
    for name, field in kind.model_fields.items():
        nested = isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
        names += leaves(field.annotation, f"{prefix}{name}.") if nested else [prefix + name]
    return names


def codo(*arguments: str | Path) -> int:
    """Run a command in this process; return its exit code."""
    with pytest.raises(SystemExit) as left:
        main([*map(str, arguments)])
    return int(left.value.code or 0)


def launch(processes: int, *arguments: str, **more: str) -> subprocess.Popen[str]:
    """Start a command on one process, or on several by torchrun; `more` joins the environment."""
    runner = [sys.executable]
    if processes > 1:
        runner += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return subprocess.Popen(
        [*runner, str(Path(__file__).parents[1] / "cli.py"), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"} | more,
    )


def finish(process: subprocess.Popen[str], code: int | None = 0) -> str:
    """Wait for what `launch` started; return all that it printed."""
    out, _ = process.communicate(timeout=150)
    if code is not None:
        assert process.returncode == code, out
    return out
