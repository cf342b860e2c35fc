"""Timing sides in turns, so that a noisy machine is noisy for all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Times:
    """The rounds' seconds of each side.

    Attributes:
        seconds: side -> one number a round, in the order of the rounds.

    Example:
        >>> times = Times({"peer": [3.0, 9.0, 3.2], "codo": [1.0, 3.0, 1.0]})
        >>> times.median("peer"), times.ratio("peer", "codo")
        (3.2, 3.0)
    """

    seconds: Mapping[str, list[float]]

    def median(self, side: str) -> float:
        """Median seconds of a side."""
        return statistics.median(self.seconds[side])

    def ratio(self, slow: str, fast: str) -> float:
        """How many times faster `fast` is: the median over the rounds of the ratio within a round."""
        pairs = zip(self.seconds[slow], self.seconds[fast], strict=True)
        return statistics.median(a / b for a, b in pairs)

    def spread(self, slow: str, fast: str) -> tuple[float, float]:
        """The smallest and the largest ratio of a round."""
        ratios = [a / b for a, b in zip(self.seconds[slow], self.seconds[fast], strict=True)]
        return min(ratios), max(ratios)


def synchronise(device: torch.device) -> None:
    """Wait until the device has done what it was given, so that a clock may be read."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def repeated(work: Callable[[], Any], *, seconds: float, at_least: int = 3) -> list[float]:
    """Run `work` for about `seconds`, and `at_least` times; list the seconds of each run.

    Args:
        work: what is timed.
        seconds: no run begins after as many.
        at_least: runs, however long they take.

    Example:
        >>> len(repeated(lambda: None, seconds=0.0))
        3
    """
    times: list[float] = []
    begin = time.perf_counter()
    while len(times) < at_least or time.perf_counter() - begin < seconds:
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return times


def in_turns(
    sides: Mapping[str, Callable[[], Any]], *, rounds: int, warm_up: int = 1, device: torch.device | None = None
) -> Times:
    """Run the sides one after the other, `warm_up` rounds untimed and then `rounds` timed ones (A B C A B C ...).

    Args:
        sides: what is timed, by name.
        rounds: timed ones.
        warm_up: untimed ones.
        device: where the sides compute, waited for within each side's time; None: they wait themselves.

    Example:
        >>> sorted(in_turns({"a": lambda: 1, "b": lambda: 2}, rounds=3).seconds)
        ['a', 'b']
    """

    def run(side: Callable[[], Any]) -> None:
        side()
        if device is not None:
            synchronise(device)

    for _ in range(warm_up):
        for side in sides.values():
            run(side)
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            start = time.perf_counter()
            run(side)
            seconds[name].append(time.perf_counter() - start)
    return Times(seconds)
