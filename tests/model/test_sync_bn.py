"""Batch norm over several processes, whose parts need not be equal."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from codo.model import synchronise_bn

PARTS = {"equal": (6, 6), "unequal": (9, 2), "one empty": (5, 0), "all empty": (0, 0)}
"""Rows of the two processes."""
SLOPE = torch.tensor([1.0, -2.0, 0.5])


def rows(count: int, seed: int) -> Tensor:
    return 3 + 2 * torch.randn(count, 3, 2, 1, generator=torch.Generator().manual_seed(seed))


def normalise(norm: nn.Module, batch: Tensor) -> dict[str, Tensor]:
    """Outputs, gradients and statistics of one training step."""
    batch.requires_grad_()
    out = norm(batch)
    (SLOPE.view(1, 3, 1, 1) * out.square()).sum().backward()
    found = {"out": out, "input gradient": batch.grad, "weight gradient": norm.weight.grad}
    return {name: tensor.detach() for name, tensor in found.items()} | dict(norm.named_buffers())


def in_process(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    found = {}
    for name, counts in PARTS.items():
        norm = nn.Sequential(nn.BatchNorm2d(3))
        synchronise_bn(norm, torch.device("cpu"))
        found[name] = normalise(norm[0].train(), rows(counts[rank], rank))
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, Tensor]]]:
    """What the two processes found, by the name of the case."""
    folder = tmp_path_factory.mktemp("processes")
    torch.multiprocessing.spawn(in_process, (folder,), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.parametrize("name", ["equal", "unequal", "one empty"])
def test_parts_are_normalised_as_their_whole(name: str, found: list[dict[str, dict[str, Tensor]]]) -> None:
    first, second = (process[name] for process in found)
    whole = normalise(nn.BatchNorm2d(3), torch.cat([rows(count, rank) for rank, count in enumerate(PARTS[name])]))
    for key in ("out", "input gradient"):
        torch.testing.assert_close(torch.cat([first[key], second[key]]), whole[key])
    torch.testing.assert_close(first["weight gradient"] + second["weight gradient"], whole["weight gradient"])
    for key in ("running_mean", "running_var", "num_batches_tracked"):
        torch.testing.assert_close(first[key], whole[key])
        assert torch.equal(first[key], second[key])


def test_no_rows_at_all_leave_the_statistics_alone(found: list[dict[str, dict[str, Tensor]]]) -> None:
    for process in found:
        assert torch.equal(process["all empty"]["running_mean"], torch.zeros(3))
        assert torch.equal(process["all empty"]["running_var"], torch.ones(3))
        assert process["all empty"]["num_batches_tracked"] == 0


def test_of_one_process_it_is_the_plain_norm_with_its_activation_its_eps_and_its_momentum(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        rows = 3 + 2 * torch.randn(6, 3, 2, 1, generator=torch.Generator().manual_seed(0))
        for make in (
            lambda: BatchNormAct2d(3, eps=0.1, momentum=0.3),
            lambda: nn.BatchNorm2d(3, eps=0.1, momentum=0.3),
            lambda: nn.BatchNorm2d(3, momentum=None),  # the plain mean of all batches
        ):
            plain, ours = make(), nn.Sequential(make())
            synchronise_bn(ours, torch.device("cpu"))
            for batch in (rows, 2 * rows, 3 - rows):
                torch.testing.assert_close(ours(batch), plain(batch))
            torch.testing.assert_close(dict(ours[0].named_buffers()), dict(plain.named_buffers()))
            torch.testing.assert_close(ours.eval()(rows[:2]), plain.eval()(rows[:2]))
            torch.testing.assert_close(dict(ours[0].named_buffers()), dict(plain.named_buffers()))
    finally:
        dist.destroy_process_group()
