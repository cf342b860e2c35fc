"""Ctrl-C and SIGTERM: finish the step, save, leave."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType


def ignore_stop_signals() -> None:
    """Call it in a loader worker: signals reach the whole process group, and the training process decides.

    A worker that outlives its training process notices by itself (torch's watchdog).
    """
    for number in StopRequest.SIGNALS:
        signal.signal(number, signal.SIG_IGN)


class StopRequest:
    """While open, SIGINT and SIGTERM are remembered instead of obeyed; a second Ctrl-C is obeyed at once.

    Attributes:
        number: of the signal that came, else None.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.number: int | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():  # elsewhere handlers cannot be set
            self._before = {number: signal.signal(number, self._remember) for number in self.SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # signal.signal's own return value

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self.number is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.number = number
