"""What the machine can do at best: matrix products and copies."""

from __future__ import annotations

import os
from typing import Any

import torch

from codo.jobs.bench.timing import in_turns
from codo.runs.hardware import available_cores
from codo.runs.record import processor

SIDE = 2048
"""Of the square matrices multiplied."""

COPIED = 256 * 2**20
"""Bytes copied."""


def machine(device: torch.device | None = None) -> dict[str, Any]:
    """Describe this machine and its load now."""
    device = device or torch.device("cpu")
    return {
        "processor": processor(),
        "cores": available_cores(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }


def peaks(device: torch.device | None = None, *, rounds: int = 5) -> dict[str, float]:
    """Measure the peaks with as many torch threads as are set.

    Returns:
        `fp32_gflops` and `bf16_gflops` of a square matrix product, 10^9 operations a second (a multiplication and an
        addition are two); `copy_gb_s`, 10^9 bytes read a second by a copy of memory.
    """
    device = device or torch.device("cpu")
    a, b = (torch.randn(SIDE, SIDE, device=device) for _ in range(2))
    low_a, low_b = a.bfloat16(), b.bfloat16()
    source = torch.zeros(COPIED, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    times = in_turns(
        {"fp32": lambda: a @ b, "bf16": lambda: low_a @ low_b, "copy": lambda: target.copy_(source)},
        rounds=rounds,
        warm_up=2,
        device=device,
    )
    return {
        "fp32_gflops": 2 * SIDE**3 / times.median("fp32") / 1e9,
        "bf16_gflops": 2 * SIDE**3 / times.median("bf16") / 1e9,
        "copy_gb_s": COPIED / times.median("copy") / 1e9,
    }
