"""The settings of transfer."""

from __future__ import annotations

from codo.config.sections import Section


class TransferConfig(Section):
    """Everything that a transfer run is."""
