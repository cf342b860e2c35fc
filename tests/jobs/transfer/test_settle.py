"""Batch norms that are frozen before anything has learnt them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_transfer_run import weights
from torch import nn

from codo.config.transfer import GROUPS, TransferConfig
from codo.jobs.transfer import transfer
from codo.jobs.transfer.data import Data, load_data
from codo.jobs.transfer.dataset import DetectionDataset
from codo.jobs.transfer.evaluate import to_input
from codo.jobs.transfer.hardware import hardware_of
from codo.jobs.transfer.norms import batch_norms
from codo.jobs.transfer.run import load_detector
from codo.jobs.transfer.settle import settle_norms
from codo.runs.world import World

Make = Callable[..., TransferConfig]


def dataset_of(config: TransferConfig, data: Data) -> DetectionDataset:
    return DetectionDataset(data.train, data.labels, *config.detection.sides, train=True, flip_p=1.0)


def settled(config: TransferConfig) -> tuple[Any, int, dict[str, torch.Tensor]]:
    """A detector after `settle_norms`, how many norms that found, and the detector's state before."""
    data = load_data(config)
    detector, loaded = load_detector(config, data)
    before = {name: tensor.clone() for name, tensor in detector.state_dict().items()}
    hardware = hardware_of(config, World())
    return detector, settle_norms(detector.train(), loaded["groups"], dataset_of(config, data), hardware), before


def moved(detector: nn.Module, before: dict[str, torch.Tensor]) -> set[str]:
    """The modules of which a tensor is no longer what it was, counters aside."""
    return {
        name.rpartition(".")[0]
        for name, tensor in detector.state_dict().items()
        if not name.endswith("num_batches_tracked") and not torch.equal(tensor, before[name])
    }


def test_fresh_frozen_norms_get_the_statistics_of_the_training_images(make_config: Make) -> None:
    config = make_config(weights="none", freeze=["backbone"])
    detector, count, before = settled(config)
    norms = {name: norm for name, norm in batch_norms(detector).items() if name.startswith("backbone.body.")}
    assert moved(detector, before) == set(norms)
    assert count == len(norms) > 10
    assert detector.training
    assert all(norm.momentum == 0.1 for norm in norms.values())
    # In evaluation mode each now gives its training images about mean 0 and variance 1, the deepest too.
    out: dict[str, list[torch.Tensor]] = {name: [] for name in norms}
    for name, norm in norms.items():
        hook = lambda module, given, result, name=name: out[name].append(normalised(module, given[0]))  # noqa: E731
        norm.register_forward_hook(hook)
    data = load_data(config)
    images = dataset_of(config, data)
    batch = [to_input(images[0, i].image.flip(2), torch.device("cpu")) for i in range(len(images))]
    with torch.no_grad():
        detector.eval()(batch)
    for name, (x,) in out.items():
        assert x.mean().abs() < 0.02, name
        assert x.var() == pytest.approx(1, abs=0.05), name


def normalised(norm: Any, x: torch.Tensor) -> torch.Tensor:
    mean, var = (t[None, :, None, None] for t in (norm.running_mean, norm.running_var))
    return (x - mean) / (var + norm.eps).sqrt()


def test_what_was_loaded_or_trains_is_left_alone(make_config: Make, pretrained: Path) -> None:
    for fields in (
        {"weights": "none"},  # it trains
        {"weights": "none", "freeze": GROUPS, "frozen_norm": "batch"},  # each batch's own
        {"weights": "none", "freeze": GROUPS, "norm": "gn"},
        {"weights": str(pretrained), "freeze": GROUPS},
    ):
        detector, count, before = settled(make_config(**fields))
        assert (count, moved(detector, before)) == (0, set()), fields
    detector, _, before = settled(make_config(weights=str(pretrained), load=["backbone"], freeze=GROUPS))
    assert {name.split(".")[1] for name in moved(detector, before)} == {"fpn", "box_head"}
    detector, _, before = settled(make_config(weights="none", freeze_stages=2))
    assert {name.split(".")[2] for name in moved(detector, before)} == {"conv1", "bn1", "layer1"}


def test_a_run_begins_with_them_and_keeps_them(make_config: Make, tmp_path: Path) -> None:
    config = make_config(weights="none", freeze=GROUPS)
    transfer(config, tmp_path / "run")
    ended = weights(tmp_path / "run")
    detector, _, before = settled(config)
    names = moved(detector, before)
    assert len(names) > 20
    for name in names:  # but for the order of sums: the run's tensors are channels-last
        norm = detector.get_submodule(name)
        torch.testing.assert_close(ended[f"{name}.running_mean"], norm.running_mean, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(ended[f"{name}.running_var"], norm.running_var, atol=1e-4, rtol=1e-4)
