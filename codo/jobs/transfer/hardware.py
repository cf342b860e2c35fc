"""What a transfer runs on."""

from __future__ import annotations

from codo.config.transfer import DETECTORS, TransferConfig
from codo.runs.hardware import Hardware
from codo.runs.world import World


def hardware_of(config: TransferConfig, world: World | None = None) -> Hardware:
    """Settle what the config leaves to `auto`: as `Hardware.resolve`, but a user's own detector gets fp32.

    Our detectors' heads hand on float32. Another's would decode boxes in bf16, which tells coordinates above 256 px
    apart in steps of 2 px.

    Raises:
        CodoError: as `Hardware.resolve`.
    """
    run = config.run
    if config.detector not in DETECTORS and run.precision == "auto":
        run = run.model_copy(update={"precision": "fp32"})
    return Hardware.resolve(run, heavy_loading=False, world=world)
