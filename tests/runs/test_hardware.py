"""Devices, precision, workers and threads: what `auto` becomes, what is kept as asked, what is refused."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from codo.config.sections import RunSection
from codo.errors import CodoError
from codo.runs import hardware as module
from codo.runs.hardware import Hardware, available_cores, has_bf16
from codo.runs.world import World


@pytest.fixture(autouse=True)
def _no_gpu_and_no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two GPUs, as far as anyone can tell without using them."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"Made-up {device}")


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def resolve(cores: int = 8, heavy: bool = False, **fields: Any) -> Hardware:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "available_cores", lambda: cores)
        return Hardware.resolve(RunSection(**{"device": "cpu", "precision": "fp32"} | fields), heavy_loading=heavy)


@pytest.mark.parametrize(
    ("cores", "heavy", "workers", "threads"),
    [(1, True, 0, 1), (1, False, 0, 1), (2, True, 1, 1), (2, False, 0, 2), (16, True, 4, 12), (16, False, 2, 14)],
)
def test_auto_shares_the_cores_of_a_processor(cores: int, heavy: bool, workers: int, threads: int) -> None:
    found = resolve(cores, heavy)
    assert (found.workers, found.threads) == (workers, threads)


@pytest.mark.parametrize(("cores", "workers", "threads"), [(1, 0, 1), (8, 7, 1), (64, 16, 48)])
@pytest.mark.parametrize("heavy", [True, False])
def test_auto_gives_the_cores_beside_a_gpu_to_loading(
    gpus: None, cores: int, workers: int, threads: int, heavy: bool
) -> None:
    found = resolve(cores, heavy, device="cuda")
    assert (found.workers, found.threads) == (workers, threads)


def test_explicit_workers_and_threads_are_kept() -> None:
    found = resolve(8, True, workers=5, threads=2)
    assert (found.workers, found.threads) == (5, 2)
    assert resolve(8, True, workers=0).threads == 8  # auto threads take what the workers leave
    assert resolve(8, True, workers=6).threads == 2
    assert resolve(8, True, threads=3).workers == 2


@pytest.mark.parametrize("fields", [{"workers": 4, "threads": 5}, {"workers": 0, "threads": 9}])
def test_more_workers_and_threads_than_cores_are_refused_in_one_line(fields: dict[str, int]) -> None:
    said = rf"run\.workers {fields['workers']} \+ run\.threads {fields['threads']} exceed the 8 cores"
    with pytest.raises(CodoError, match=said) as raised:
        resolve(8, **fields)
    assert "\n" not in str(raised.value)
    resolve(9, **fields)  # exactly all of them is fine


def test_omp_num_threads_bounds_auto_threads_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert resolve(16).threads == 3
    assert resolve(16, threads=5).threads == 5
    monkeypatch.setenv("OMP_NUM_THREADS", "100")
    assert resolve(16, workers=6).threads == 10
    monkeypatch.setenv("OMP_NUM_THREADS", "")  # set to nothing is not set
    assert resolve(16, workers=6).threads == 10


def test_auto_device_is_the_processor_without_cuda() -> None:
    assert resolve(device="auto").device == torch.device("cpu")


def test_auto_device_is_cuda_where_there_is_one(gpus: None) -> None:
    assert resolve(device="auto").device.type == "cuda"
    assert resolve(device="cpu").device.type == "cpu"  # asked for


def test_a_gpu_is_taken_by_number(gpus: None) -> None:
    assert resolve(device="cuda:1").device == torch.device("cuda:1")
    with pytest.raises(CodoError, match=r"run\.device: cuda:2 asked for, but torch sees 2 CUDA devices"):
        resolve(device="cuda:2")


@pytest.mark.parametrize(
    ("device", "said"),
    [
        ("gpu", "no device 'gpu'; auto, cpu, cuda"),
        ("cuda:x", "no device 'cuda:x'"),
        ("", "no device ''"),
        ("cuda", "cuda asked for, but torch sees 0 CUDA devices"),
        ("cuda:1", "cuda:1 asked for, but torch sees 0"),
        ("mps", "mps asked for, but torch does not see it"),
        ("meta", "meta is not supported; auto, cpu, cuda"),
    ],
)
def test_an_unknown_or_absent_device_is_refused_in_one_line(device: str, said: str) -> None:
    with pytest.raises(CodoError, match=rf"^run\.device: .*{said}|^run\.device: {said}") as raised:
        resolve(device=device)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("native", "precision"), [(True, "bf16"), (False, "fp32")])
def test_auto_precision_on_a_processor_asks_for_bf16(
    monkeypatch: pytest.MonkeyPatch, native: bool, precision: str
) -> None:
    monkeypatch.setattr(module, "has_bf16", lambda device: native)
    assert resolve(precision="auto").precision == precision
    assert resolve(precision="bf16").precision == "bf16"  # asked for, even if slow
    assert resolve(precision="fp32").precision == "fp32"


@pytest.mark.parametrize(
    ("capabilities", "native"),
    [
        ({"avx512_bf16": True}, True),
        ({"avx512_bf16": True, "cpu_name": "AMD EPYC"}, True),
        ({"avx512_bf16": True, "cpu_name": "Intel Xeon"}, False),
        ({"avx512_bf16": True, "amx_bf16": True, "cpu_name": "Intel Xeon"}, True),
        ({"amx_bf16": True}, True),
        ({"amx_tile": True}, True),
        ({"avx512_bf16": False, "amx_bf16": False, "amx_tile": False, "avx512_f": True, "avx2": True}, False),
        ({}, False),
    ],
)
def test_bf16_of_a_processor(monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, Any], native: bool) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert has_bf16(torch.device("cpu")) is native


def test_bf16_is_unknown_to_an_old_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert has_bf16(torch.device("cpu")) is False


def test_emulated_bf16_of_a_gpu_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert has_bf16(torch.device("cuda")) is False
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    assert has_bf16(torch.device("cuda")) is True
    assert has_bf16(torch.device("mps")) is False


@pytest.mark.parametrize(
    ("quota", "cores"),
    [
        ("300000 100000\n", 3),
        ("250000 100000\n", 2),
        ("50000 100000\n", 1),
        ("3200000 100000\n", 8),
        ("max 100000\n", 8),
        ("", 8),
        (None, 8),
    ],
)
def test_a_containers_quota_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str | None, cores: int
) -> None:
    if quota is not None:
        (tmp_path / "cpu.max").write_text(quota)
    monkeypatch.setattr(module, "CGROUP_QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)  # the whole machine, of which 8 are ours
    assert available_cores() == cores


def test_cores_are_counted_where_there_is_no_affinity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CGROUP_QUOTA", tmp_path / "absent")
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert available_cores() == 6
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert available_cores() == 1


@pytest.mark.parametrize(("workers", "factor"), [(0, None), (1, 4), (4, 4), (5, 3), (8, 2), (15, 1), (32, 1)])
def test_many_loader_processes_keep_few_batches_each(workers: int, factor: int | None) -> None:
    assert Hardware(torch.device("cpu"), "fp32", workers, 1).prefetch_factor == factor


def test_apply_sets_torchs_threads(threads: None) -> None:
    for number in (2, 1):
        resolve(4, workers=0, threads=number).apply()
        assert torch.get_num_threads() == number


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_autocast_computes_in_the_precision(precision: str, dtype: torch.dtype) -> None:
    x = torch.ones(2, 2)
    with resolve(precision=precision).autocast():
        assert (x @ x).dtype == dtype
    assert (x @ x).dtype == torch.float32


def test_describe_names_device_precision_threads_and_workers(gpus: None) -> None:
    parts = resolve(8, workers=2, threads=3, precision="bf16").describe().split(", ")
    assert {"cpu", "bf16", "3 threads", "2 loader workers"} <= set(parts)
    assert "Made-up cuda:1" in resolve(device="cuda:1").describe()


def test_explicit_threads_leave_the_workers_what_is_left(monkeypatch):
    monkeypatch.setattr(module, "available_cores", lambda: 8)
    settled = Hardware.resolve(RunSection(device="cpu", threads=8), heavy_loading=True)
    assert (settled.workers, settled.threads) == (0, 8)
    with pytest.raises(CodoError, match="exceed the 8 cores of this machine; lower them, or leave both at auto"):
        Hardware.resolve(RunSection(device="cpu", workers=8), heavy_loading=True)


@pytest.mark.parametrize(("value", "threads"), [("3,2", 3), ("abc", 8), ("0", 8), ("5", 5)])
def test_any_legal_or_broken_omp_num_threads_is_survived(monkeypatch, value, threads):
    monkeypatch.setattr(module, "available_cores", lambda: 8)
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert Hardware.resolve(RunSection(device="cpu", workers=0), heavy_loading=False).threads == threads


def test_processes_of_one_machine_share_its_cores_and_take_a_gpu_each(monkeypatch):
    monkeypatch.setattr(module, "available_cores", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    world = World(rank=3, size=4, local_rank=3, local_size=4)
    assert Hardware.resolve(RunSection(device="cpu"), heavy_loading=False, world=world).threads == 2
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    assert Hardware.resolve(RunSection(), heavy_loading=False, world=world).device == torch.device("cuda:3")


FAULTS = """
import resource, torch
from codo.runs.hardware import keep_freed_memory
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        torch.ones(12_000_000)  # 48 MB: glibc maps it alone
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
torch.set_num_threads(1)
first = faults()
keep_freed_memory()
faults()
print(first, min(faults() for _ in range(3)))  # the kernel may take pages back in one of them
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_freed_memory_is_kept() -> None:
    found = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True).stdout
    before, after = map(int, found.split())
    assert before > 1000
    assert after < before / 10
