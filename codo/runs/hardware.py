"""Which device, which precision, how many loader workers and torch threads."""

from __future__ import annotations

import ctypes
import os
import sys
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from codo.config.sections import RunSection
from codo.errors import CodoError
from codo.runs.interrupt import ignore_stop_signals
from codo.runs.world import World

CGROUP_QUOTA = Path("/sys/fs/cgroup/cpu.max")

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Of glibc's malloc.h: how much stays free at the end of the heap, and from what size on blocks are mapped alone."""


@dataclass(frozen=True)
class Hardware:
    """What a run executes on; made by `Hardware.resolve`.

    Attributes:
        device: where the networks are.
        precision: `fp32`, or `bf16` or `fp16` autocast.
        workers: data loader processes; 0 loads in the training process.
        threads: torch threads of the training process.
    """

    device: torch.device
    precision: Literal["fp32", "bf16", "fp16"]
    workers: int
    threads: int

    @staticmethod
    def resolve(run: RunSection, *, heavy_loading: bool, world: World | None = None) -> Hardware:
        """Settle everything that `run` leaves to `auto`.

        Args:
            run: the config's `run` section.
            heavy_loading: images are decoded on each access (no cache), so that loading is worth a process.
            world: the processes that share this machine; on GPUs each takes its own.

        Raises:
            CodoError: an unknown or absent device; more threads and workers than cores.
        """
        world = world or World()
        device = _device(run.device, world)
        cores = max(1, available_cores() // world.local_size)
        if run.workers != "auto":
            workers = run.workers
        elif device.type != "cpu":
            workers = min(cores - 1, 16)
        else:
            workers = max(1, cores // 4) if heavy_loading and cores > 1 else cores // 8
            if run.threads != "auto":
                workers = min(workers, max(0, cores - run.threads))
        threads = max(1, min(_omp_threads() or cores, cores - workers)) if run.threads == "auto" else run.threads
        if device.type == "cpu" and (run.workers, run.threads) != ("auto", "auto") and threads + workers > cores:
            # Oversubscribed cores make every convolution wait for its slowest thread.
            raise CodoError(
                f"run.workers {workers} + run.threads {threads} exceed the {cores} cores of this "
                f"{'machine' if world.local_size == 1 else 'process'}; lower them, or leave both at auto"
            )
        precision = run.precision
        if precision == "auto":
            precision = "bf16" if has_bf16(device) else "fp32"
        return Hardware(device, precision, workers, threads)

    @property
    def prefetch_factor(self) -> int | None:
        """Batches that each loader process keeps ready, or None without such a process.

        At most 4, and in all about 16: a GPU's batches lie in pinned memory, and the driver, which launches nothing
        meanwhile, takes a fifth of a second for each 150 MB of it.
        """
        return min(4, max(1, 16 // self.workers)) if self.workers else None

    def loader_options(self) -> dict[str, Any]:
        """Collect the arguments that all data loaders have in common."""
        return {
            "num_workers": self.workers,
            "prefetch_factor": self.prefetch_factor,
            "pin_memory": self.device.type == "cuda",
            "worker_init_fn": _quiet_worker,
            # A loader draws a seed for its workers from a generator, by default the global one; nobody uses that seed.
            "generator": torch.Generator(),
        }

    def apply(self) -> None:
        """Set the number of torch threads of this process."""
        torch.set_num_threads(self.threads)

    def autocast(self) -> AbstractContextManager[None]:
        """Open a region that computes in this precision."""
        dtype = torch.float16 if self.precision == "fp16" else torch.bfloat16
        return torch.autocast(self.device.type, dtype, enabled=self.precision != "fp32")

    def describe(self) -> str:
        """Say it in one line."""
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else str(self.device)
        return f"{name}, {self.precision}, {self.threads} threads, {self.workers} loader workers"


def _quiet_worker(worker: int) -> None:
    """Leave Ctrl-C and SIGTERM to the training process, which finishes its step."""
    ignore_stop_signals()


def keep_freed_memory() -> None:
    """Let glibc keep what is freed, as torch's own allocator does on a GPU.

    A step's large tensors would else be mapped and given back each time, and the kernel clears every page anew: 4% of a
    pretraining step's time (`python -m benchmarks.memory`). It is for a process, `codo pretrain`'s, whose tensors have
    the same sizes in every step; where sizes vary, the heap falls apart and grows. Does nothing where the C library is
    another one, or a glibc that refuses (before 2.35).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None and mallopt(M_MMAP_THRESHOLD, 2**31 - 1):
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def available_cores() -> int:
    """Count the cores this process may use: by affinity, and by the quota of its container (cgroup v2)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = CGROUP_QUOTA.read_text(encoding="ascii").split()
        return max(1, min(cores, int(quota) // int(period)))
    except (OSError, ValueError):  # no cgroup v2, or no quota ("max")
        return cores


def _omp_threads() -> int | None:
    """Read OMP_NUM_THREADS, which may be a list by depth of nesting; None where it is no number."""
    first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(first) if first.isdigit() and int(first) > 0 else None


def has_bf16(device: torch.device) -> bool:
    """Tell whether the device computes faster in bf16 than in fp32; elsewhere it is emulated, or takes longer."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        cpu = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
        if cpu.get("amx_bf16") or cpu.get("amx_tile"):
            return True
        # Intel's vector units without AMX, as virtual machines show them, take twice fp32's time for a bf16 product.
        return bool(cpu.get("avx512_bf16")) and not str(cpu.get("cpu_name", "")).startswith("Intel")
    return False


def _device(name: str, world: World) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and world.size > 1:
        name = f"cuda:{world.local_rank}"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise CodoError(f"run.device: no device {name!r}; auto, cpu, cuda, cuda:1 or mps") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise CodoError(f"run.device: {name} asked for, but torch sees {torch.cuda.device_count()} CUDA devices")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise CodoError("run.device: mps asked for, but torch does not see it on this machine")
    if device.type not in ("cpu", "cuda", "mps"):
        raise CodoError(f"run.device: {name} is not supported; auto, cpu, cuda, cuda:1 or mps")
    return device
