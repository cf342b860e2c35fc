"""Time that is spent waiting for data: noticed, and said with what helps."""

from __future__ import annotations

from codo.runs.hardware import Hardware, available_cores
from codo.runs.world import World

THRESHOLD = 0.1
"""Share of the time from which on it is worth a word."""

WARM_UP = 20
"""Steps in which loader processes start and fill their queue; they say nothing of the steps after."""

READING = 30
"""Steps after the warm-up before the first word."""


def data_wait_remedy(share: float, hardware: Hardware, cores: int, cached: bool | None) -> str | None:
    """Say that a run waits for its data, and what helps.

    Args:
        share: of the time that is spent waiting, 0 to 1.
        hardware: workers and threads of this process.
        cores: that it may use.
        cached: whether the images come decoded from a cache; None where the job keeps none.

    Returns:
        One line, or None where it is not worth a word.

    Example:
        >>> import torch
        >>> hardware = Hardware(torch.device("cpu"), "fp32", workers=1, threads=3)
        >>> data_wait_remedy(0.05, hardware, 4, False)
        >>> data_wait_remedy(0.4, hardware, 4, False)[:69]
        'warning: 40% of the time is spent waiting for data. Decode the images'
    """
    if share <= THRESHOLD:
        return None
    text = loader_remedy(hardware, cores, cached)
    return f"warning: {share:.0%} of the time is spent waiting for data. {text[0].upper()}{text[1:]}"


def loader_remedy(hardware: Hardware, cores: int, cached: bool | None) -> str:
    """Say what makes loading faster or hides it; the arguments are those of `data_wait_remedy`.

    Example:
        >>> import torch
        >>> loader_remedy(Hardware(torch.device("cpu"), "fp32", workers=0, threads=4), 8, True)
        'start more loader processes (--set run.workers=4)'
    """
    on_cpu = hardware.device.type == "cpu"
    spare = cores - hardware.workers - (hardware.threads if on_cpu else 1)
    more = hardware.workers + max(1, spare)
    remedies = ["decode the images once (--cache disk or ram)"] if cached is False else []
    if spare > 0:
        remedies.append(f"start more loader processes (--set run.workers={more})")
    elif on_cpu and hardware.threads > 1:
        remedies.append(
            f"leave a core to the loader (--set run.workers={more} --set run.threads={hardware.threads - 1})"
        )
    return " or ".join(remedies) or f"all of the {cores} cores are in use: loading is what limits this machine"


class DataWait:
    """The share of time that a run waits for data, from after its first steps on.

    Args:
        hardware: of the run.
        world: its processes.
        cached: see `data_wait_remedy`.
    """

    def __init__(self, hardware: Hardware, world: World, cached: bool | None = None) -> None:
        self._hardware, self._cached = hardware, cached
        self._cores = max(1, available_cores() // world.local_size)
        self._steps = 0
        self._waited = self._seconds = 0.0

    def add(self, waited: float, seconds: float) -> str | None:
        """Take in a step that took `seconds`, of which it `waited`; return a warning once, early in the run."""
        self._steps += 1
        if self._steps > WARM_UP:
            self._waited, self._seconds = self._waited + waited, self._seconds + seconds
        return self.remedy() if self._steps == WARM_UP + READING else None

    def remedy(self) -> str | None:
        """Say at the end whether the run waited, and what helps."""
        return data_wait_remedy(self._waited / max(self._seconds, 1e-9), self._hardware, self._cores, self._cached)
