"""The short benchmark of one config on this machine: what `codo bench` prints."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from codo.config.pretrain import PretrainConfig
from codo.config.transfer import TransferConfig
from codo.errors import CodoError
from codo.jobs.bench.evaluation import time_evaluation
from codo.jobs.bench.machine import machine, peaks
from codo.jobs.bench.pretraining import time_loader, time_step, time_together
from codo.jobs.bench.verdict import costs, evaluation_remedy, sentence, step_remedy
from codo.jobs.pretrain.build import build_dataset, find_sources
from codo.jobs.pretrain.run import check_parts
from codo.jobs.pretrain.training import Run
from codo.jobs.transfer.data import load_data
from codo.parts import Parts
from codo.runs.data_wait import data_wait_remedy, loader_remedy
from codo.runs.hardware import available_cores
from codo.runs.world import World

SECONDS = 10.0
"""About as many for each of the parts; half for the loader."""


def bench(
    config: PretrainConfig,
    transfer: TransferConfig | None = None,
    *,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Time a config's loader, step and evaluation, alone and together; no run folder, decoded images go to the cache.

    Args:
        config: of the pretraining.
        transfer: of the detector that is evaluated; None leaves the evaluation out.
        say: told what is being measured.

    Returns:
        `machine`, `peaks`, `hardware`, `data`, `loader`, `step`, `together`, `evaluation`; `seconds` of the whole
        config by each of the three alone; `limits`, one of them; `sentence`; `data_wait`, what to do about waiting, or
        None.

    Raises:
        CodoError: what `codo pretrain` and `codo transfer` refuse, and several processes.

    Example:
        >>> found = bench(load_pretrain_config())  # doctest: +SKIP
        >>> found["limits"]  # doctest: +SKIP
        'step'
    """
    if World.of_environment().size > 1:
        raise CodoError("bench measures one process; start it without torchrun")
    check_parts(config, Parts(), World())
    data = load_data(transfer) if transfer is not None else None  # first, as the sources may be rendered
    sources = find_sources(config)
    run = Run(config, build_dataset(config, sources))
    about = machine(run.hardware.device)
    say("the machine's peaks")
    peak = peaks(run.hardware.device)
    say("the loader")
    loader = time_loader(run, SECONDS / 2)
    say("the step")
    step = time_step(run, peak, SECONDS)
    say("both together")
    together = time_together(run, SECONDS)
    evaluation = None
    if transfer is not None and data is not None:
        say("an evaluation")
        evaluation = time_evaluation(transfer, data, SECONDS)
    taken = costs(config, len(run.dataset), loader, step, evaluation)
    cores, cached = available_cores(), loader["cached"]
    remedies = {
        "loader": loader_remedy(run.hardware, cores, cached),
        "step": step_remedy(config, run.hardware, step),
    }
    if transfer is not None and evaluation is not None:
        remedies["evaluation"] = evaluation_remedy(transfer, evaluation)
    limit = max(taken, key=lambda name: taken[name])
    return {
        "machine": about,
        "peaks": peak,
        "hardware": run.hardware.describe(),
        "data": sources.record(),
        "loader": loader,
        "step": step,
        "together": together,
        "evaluation": evaluation,
        "seconds": taken,
        "limits": limit,
        "sentence": sentence(config, taken, evaluation["evaluations"] if evaluation else 0, remedies[limit]),
        "data_wait": data_wait_remedy(together["data_wait"], run.hardware, cores, cached),
    }
