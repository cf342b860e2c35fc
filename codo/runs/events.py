"""TensorBoard events, beside the JSON lines."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from codo.errors import CodoError


class Events:
    """Writes scalars into RUN/tensorboard.

    Args:
        folder: the run folder.
        first: steps done before; what an earlier session wrote after them is hidden.

    Raises:
        CodoError: the extra `tensorboard` is not installed.
    """

    def __init__(self, folder: Path, first: int = 0) -> None:
        check_tensorboard()
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=first + 1 if first else None)

    def write(self, step: int, record: Mapping[str, float]) -> None:
        """Write the finite numbers of a metrics record."""
        for name, value in record.items():
            if name != "step" and math.isfinite(value):
                self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()


def check_tensorboard() -> None:
    """Refuse where TensorBoard is missing."""
    try:
        import tensorboard  # noqa: F401  # whether it is there
    except ImportError:
        raise CodoError("run.tensorboard: TensorBoard is not installed; pip install 'codo[tensorboard]'") from None
