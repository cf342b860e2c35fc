"""Waiting for data is said, with what helps, and not while a queue only fills."""

from __future__ import annotations

import time

import pytest
import torch

from codo.jobs.pretrain import pretrain
from codo.jobs.pretrain.samples import SampleDataset
from codo.runs import data_wait as module
from codo.runs.data_wait import READING, WARM_UP, DataWait, data_wait_remedy
from codo.runs.hardware import Hardware
from codo.runs.world import World


def hardware(device="cpu", workers=1, threads=3):
    return Hardware(torch.device(device), "fp32", workers, threads)


@pytest.mark.parametrize(
    ("running", "cores", "cached", "said"),
    [
        (hardware(), 4, False, "Decode the images once (--cache disk or ram) or leave a core to the loader"),
        (hardware(), 4, True, "Leave a core to the loader (--set run.workers=2 --set run.threads=2)"),
        (hardware(), 8, None, "Start more loader processes (--set run.workers=5)"),
        (hardware("cuda", 3), 8, True, "Start more loader processes (--set run.workers=7)"),
        (hardware("cuda", 7), 8, True, "All of the 8 cores are in use"),
        (hardware(workers=0, threads=1), 1, True, "All of the 1 cores are in use"),
    ],
)
def test_the_remedy_fits_the_machine(running, cores, cached, said):
    text = data_wait_remedy(0.5, running, cores, cached)
    assert text.startswith(f"warning: 50% of the time is spent waiting for data. {said}")
    assert data_wait_remedy(0.1, running, cores, cached) is None


def test_filling_the_queue_is_no_reason_to_warn():
    wait = DataWait(hardware(), World())
    assert [wait.add(5.0, 5.1) for _ in range(WARM_UP)] == [None] * WARM_UP
    assert [wait.add(0.01, 1.0) for _ in range(2 * READING)] == [None] * 2 * READING
    assert wait.remedy() is None


def test_it_is_said_once_and_at_the_end():
    wait = DataWait(hardware(), World())
    said = [wait.add(0.3, 1.0) for _ in range(WARM_UP + 3 * READING)]
    assert [i + 1 for i, text in enumerate(said) if text] == [WARM_UP + READING]
    assert "30%" in (wait.remedy() or "")


def test_a_run_says_it(tiny, tmp_path, monkeypatch, capsys):
    slow = SampleDataset.__getitem__

    def getitem(self, key):
        time.sleep(0.05)
        return slow(self, key)

    monkeypatch.setattr(SampleDataset, "__getitem__", getitem)
    monkeypatch.setattr(module, "WARM_UP", 1)
    monkeypatch.setattr(module, "READING", 2)
    pretrain(tiny(run__cache="off", run__workers=0), tmp_path / "run")
    assert capsys.readouterr().err.count("% of the time is spent waiting for data. Decode the images once") == 2
