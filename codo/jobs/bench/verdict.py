"""Which of loader, step and evaluation limits a config, and what to do about it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from codo.config.pretrain import PretrainConfig
from codo.config.transfer import TransferConfig
from codo.runs.console import duration
from codo.runs.hardware import Hardware, has_bf16


def costs(
    config: PretrainConfig, images: int, loader: Mapping[str, Any], step: Mapping[str, Any], evaluation: Mapping | None
) -> dict[str, float]:
    """Say what the whole config takes by each of the three alone, in seconds.

    Args:
        config: of the pretraining.
        images: foregrounds of an epoch.
        loader: from `time_loader`.
        step: from `time_step`.
        evaluation: from `time_evaluation`; None where there is none.
    """
    samples = images // config.optim.batch_size * config.optim.batch_size * config.optim.epochs
    found = {"loader": samples / loader["images_per_s"], "step": samples / step["images_per_s"]}
    if evaluation is not None:
        found["evaluation"] = evaluation["evaluations"] * evaluation["seconds"]
    return found


def sentence(config: PretrainConfig, seconds: Mapping[str, float], evaluations: int, remedy: str) -> str:
    """Say in one sentence which of the three limits, and what helps."""
    limit = max(seconds, key=lambda name: seconds[name])
    told = {
        "loader": f"the loader alone takes {duration(seconds['loader'])}",
        "step": f"the steps alone take {duration(seconds['step'])}",
    }
    if "evaluation" in seconds:
        times = f"{evaluations} evaluation{'' if evaluations == 1 else 's'}"
        told["evaluation"] = f"the detector's {times} {duration(seconds['evaluation'])}"
    rest = ", ".join(text for name, text in told.items() if name != limit)
    epochs = f"{config.optim.epochs} epoch{'' if config.optim.epochs == 1 else 's'}"
    return f"The {limit} limits you: of {epochs} of pretraining, {told[limit]} ({rest}); {remedy}."


def step_remedy(config: PretrainConfig, hardware: Hardware, step: Mapping[str, Any]) -> str:
    """Say what makes the step faster."""
    device = hardware.device
    if hardware.precision == "fp32" and has_bf16(device):
        return "compute in bf16 (--precision bf16)"
    if device.type == "cpu":
        return f"a GPU helps, or a smaller canvas (now {config.canvas}) or fewer views (now {config.views})"
    if step["peak_share"] < 0.2:
        return f"the GPU idles between small kernels: a larger batch (now {config.optim.batch_size}), or --compile"
    return "more GPUs help (torchrun)"


def evaluation_remedy(transfer: TransferConfig, evaluation: Mapping[str, Any]) -> str:
    """Say what makes evaluations take less."""
    every = transfer.optim.eval_every
    rarer = f"evaluate less often (--transfer-set optim.eval_every={4 * every:g}, now {every:g})"
    if evaluation["metrics_s"] > evaluation["seconds"] / 2:
        return f"most of it are the metrics: {rarer}"
    if evaluation["hardware"].startswith("cpu"):
        return f"{rarer}, or on a GPU"
    return rarer
