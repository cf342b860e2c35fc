"""A loader's workers end with the block that uses them, and their mistakes are one line."""

import multiprocessing

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from codo.errors import CodoError
from codo.runs.hardware import Hardware
from codo.runs.loading import loading


class Numbers(Dataset[int]):
    """0 to 7; `broken` cannot be read."""

    def __init__(self, broken: int | None = None) -> None:
        self.broken = broken

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> int:
        if index == self.broken:
            raise CodoError(f"image {index}: no picture: at all")
        return index


def loader(workers: int, broken: int | None = None) -> DataLoader[int]:
    hardware = Hardware(torch.device("cpu"), "fp32", workers, 1)
    return DataLoader(Numbers(broken), batch_size=None, **hardware.loader_options())


@pytest.mark.parametrize("workers", [0, 1])
def test_everything_comes_and_no_worker_stays(workers: int) -> None:
    with loading(loader(workers)) as batches:
        assert list(batches) == list(range(8))
        assert next(batches, None) is None
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("workers", [0, 1])
def test_a_mistake_is_said_in_the_same_words_with_workers(workers: int) -> None:
    with pytest.raises(CodoError, match=r"^image 2: no picture: at all$"), loading(loader(workers, 2)) as batches:
        list(batches)
    assert multiprocessing.active_children() == []


def test_workers_end_though_a_traceback_keeps_their_iterator() -> None:
    """They ignore the SIGTERM by which Python would end them before it waits for them."""

    def fail() -> None:
        with loading(loader(1)) as batches:
            next(batches)
            assert len(multiprocessing.active_children()) == 1
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory") as kept:
        fail()
    assert kept.tb is not None
    assert multiprocessing.active_children() == []
