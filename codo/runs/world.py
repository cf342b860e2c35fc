"""The processes of a run (torchrun), and what they tell each other."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from codo.errors import CodoError
from codo.runs.console import hush

T = TypeVar("T")

TIMEOUT = timedelta(hours=2)
"""How long a process waits for the others, e.g. for the first one to decode the images."""


@dataclass(frozen=True)
class World:
    """The processes of a run; without torchrun one, for which every method is a no-op.

    Attributes:
        rank: number of this process.
        size: number of processes.
        local_rank: number of this process on its machine.
        local_size: number of processes on its machine.

    Source:
        torchrun's environment variables.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @staticmethod
    def of_environment() -> World:
        """Read torchrun's environment variables; without them a World of one.

        Raises:
            CodoError: some of them are missing or no numbers.
        """
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        if "WORLD_SIZE" not in os.environ or "MASTER_ADDR" not in os.environ:
            return World()
        try:
            return World(*(int(os.environ[name]) for name in names))
        except (KeyError, ValueError) as error:
            raise CodoError(f"torchrun's {', '.join(names)} must be set to numbers: {error}") from None

    @contextmanager
    def joined(self, device: torch.device) -> Iterator[None]:
        """Connect the processes while open: NCCL on GPUs, gloo on processors; all but the first fall silent.

        Raises:
            CodoError: another process was lost.
        """
        if self.size == 1:
            yield
            return
        if not self.first:
            hush()
        gpu = device.type == "cuda"
        if gpu:
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if gpu else "gloo", timeout=TIMEOUT, device_id=device if gpu else None)
        try:
            yield
        except RuntimeError as error:
            if "onnection" in str(error):  # gloo's and NCCL's words for a lost peer
                raise CodoError("another process failed; its own message says why") from error
            raise
        finally:
            dist.destroy_process_group()

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes and speaks."""
        return self.rank == 0

    def share(self, rows: list[T]) -> list[T]:
        """Take this process's part of a batch: an equal, contiguous run of rows, in rank order.

        Rows that do not spread evenly are filled up with the batch's first ones.
        """
        count = -(-len(rows) // self.size)
        rows = [rows[i % len(rows)] for i in range(count * self.size)]
        return rows[self.rank * count : (self.rank + 1) * count]

    def gather(self, tensor: Tensor, dim: int = 0) -> Tensor:
        """Join the processes' parts of a batch, in rank order, without gradient."""
        if self.size == 1:
            return tensor
        parts = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(self.size)]
        dist.all_gather(parts, tensor.detach().contiguous())
        return torch.cat(parts, dim)

    def gather_with_gradient(self, tensor: Tensor, dim: int = 0) -> Tensor:
        """Join the processes' parts; the gradient reaches this process's part.

        Every process then computes the loss of the whole batch. DDP averages the processes' gradients, each of which
        knows its own part alone; so that the average is the sum, they are multiplied by the number of processes.
        """
        if self.size == 1:
            return tensor
        parts = list(self.gather(tensor, dim).chunk(self.size, dim))
        parts[self.rank] = _ScaleGradient.apply(tensor, self.size)
        return torch.cat(parts, dim)

    def wrapped(self, module: nn.Module, device: torch.device, *, all_used: bool = True) -> nn.Module:
        """Wrap a module in DDP where there are several processes; each keeps the statistics of its own batch norms.

        Args:
            module: on `device`.
            device: of this process.
            all_used: whether every parameter surely takes part in the loss.
        """
        if self.size == 1:
            return module
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # broadcast_buffers; its successor is too new
            return DistributedDataParallel(
                module,
                device_ids=[device] if device.type == "cuda" else None,
                broadcast_buffers=False,
                find_unused_parameters=not all_used,
            )

    def synchronised(self, module: nn.Module, last: bool) -> AbstractContextManager[None]:
        """Let DDP exchange the gradients of what `wrapped` gave in the last backward pass of a step alone."""
        return module.no_sync() if isinstance(module, DistributedDataParallel) and not last else nullcontext()

    def average_gradients(self, parameters: list[nn.Parameter]) -> None:
        """Average the gradients of parameters that DDP does not hold."""
        if self.size == 1:
            return
        for parameter in parameters:
            if parameter.grad is not None:
                dist.all_reduce(parameter.grad)
                parameter.grad /= self.size

    def mean(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """Average scalars by name over the processes."""
        if self.size == 1:
            return values
        shared = torch.stack([value.float() for value in values.values()])
        dist.all_reduce(shared)
        return dict(zip(values, shared / self.size, strict=True))

    def copy_from_first(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite tensors by the first process's."""
        if self.size == 1:
            return
        for tensor in tensors:
            dist.broadcast(tensor, 0)

    def any(self, flag: bool, device: torch.device) -> bool:
        """Tell whether `flag` is set in any process."""
        if self.size == 1:
            return flag
        shared = torch.tensor(float(flag), device=device)
        dist.all_reduce(shared, dist.ReduceOp.MAX)
        return bool(shared)

    def collect(self, value: T) -> list[T]:
        """List every process's value, in rank order."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def check_same(self, value: Any, what: str) -> None:
        """Refuse to go on where the processes, e.g. of several machines, have found something else.

        Raises:
            CodoError: in all processes, with the first that differs.
        """
        values = self.collect(value)
        for rank, other in enumerate(values):
            if other != values[0]:
                raise CodoError(f"{what} of process {rank} are not those of process 0: {other}, not {values[0]}")

    def wait(self) -> None:
        """Wait for all processes."""
        if self.size > 1:
            dist.barrier()

    @contextmanager
    def one_after_the_first(self) -> Iterator[None]:
        """Let the first process of each machine do the body before the others, which find its work done."""
        if self.local_rank != 0:
            self.wait()
        yield
        if self.local_rank == 0:
            self.wait()


def sum_over_processes(tensor: Tensor) -> Tensor:
    """Sum a tensor over all processes; gradients are summed likewise."""
    return _Sum.apply(tensor)


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        """Sum."""
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """Sum the gradients: every process's output depends on this one's input."""
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        return total


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, factor: int) -> Tensor:
        """Return `tensor`."""
        ctx.factor = factor
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """Multiply the gradient."""
        return gradients[0] * ctx.factor, None
