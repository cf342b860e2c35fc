"""How long the jobs of a plan would take, from timed steps of each kind."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from codo.config.pretrain import PretrainConfig
from codo.config.transfer import TransferConfig
from codo.jobs.ablate.jobs import Job, config_hash
from codo.jobs.ablate.plan import Plan
from codo.jobs.pretrain import dry_run
from codo.jobs.transfer.timing import time_transfer
from codo.runs.console import stderr


@dataclass(frozen=True)
class Estimate:
    """Seconds of the jobs that are not done, one after the other.

    Attributes:
        pretrain: of all pretrainings.
        transfer: of all transfers.
        timed: configs of which steps were timed; other seeds and learning rates of one take as long.
    """

    pretrain: float
    transfer: float
    timed: int

    @property
    def total(self) -> float:
        """All of them; the probes, which are short, are not counted."""
        return self.pretrain + self.transfer


def estimate(plans: Sequence[Plan]) -> Estimate:
    """Time a few steps of each distinct config that has jobs left in any of the plans."""
    known: dict[str, float] = {}
    seconds = {"pretrain": 0.0, "transfer": 0.0}
    for of, job in [(plan, job) for plan in plans for job in plan.remaining()]:
        if job.kind == "probe" or not isinstance(job.settings, PretrainConfig | TransferConfig):
            continue
        same = job.settings.optim.model_copy(update={"lr": 1.0})  # neither it nor the seed takes time
        key = config_hash(job.settings.model_copy(update={"seed": 0, "optim": same}), str(job.settings.data))
        if key not in known:
            stderr.print(f"timing {plan_name(of, job)}", markup=False)
            with _quiet():
                known[key] = _seconds(job)
        seconds[job.kind] += known[key]
    return Estimate(seconds["pretrain"], seconds["transfer"], len(known))


def plan_name(plan: Plan, job: Job) -> str:
    """Name a job by its first cell."""
    key = next(key for key, cell in plan.cells.items() if job.name in cell.jobs())
    return f"{job.kind} {key.row}" + (f", {key.protocol}" if job.kind == "transfer" else "")


def _seconds(job: Job) -> float:
    if isinstance(job.settings, PretrainConfig):
        facts = dry_run(job.settings)
        return facts["seconds_per_step"] * facts["steps"]
    assert isinstance(job.settings, TransferConfig)
    return time_transfer(job.settings)


@contextmanager
def _quiet() -> Iterator[None]:
    """Show no progress of what is only timed."""
    before, stderr.quiet = stderr.quiet, True
    try:
        yield
    finally:
        stderr.quiet = before
