"""Signals: remembered while a step runs, obeyed when asked twice, and left as they were found."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from codo.runs.interrupt import StopRequest, ignore_stop_signals

BOTH = (signal.SIGINT, signal.SIGTERM)


@pytest.fixture(autouse=True)
def _handlers_are_put_back() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in BOTH}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", BOTH)
def test_a_signal_is_remembered_and_the_step_goes_on(number: signal.Signals) -> None:
    with StopRequest() as stop:
        assert stop.number is None
        signal.raise_signal(number)
        assert stop.number == number
    assert stop.number == number  # readable after the block too


def test_a_second_ctrl_c_is_obeyed_at_once() -> None:
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert stop.number == signal.SIGINT


def test_ctrl_c_after_sigterm_is_obeyed_at_once() -> None:
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert stop.number == signal.SIGTERM


def test_a_second_sigterm_does_not_cut_the_saving_off() -> None:
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
    assert stop.number == signal.SIGTERM


def test_handlers_are_put_back_even_after_a_failure() -> None:
    heard: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _: heard.append(number))
    signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def fail() -> None:
        with StopRequest():
            assert signal.getsignal(signal.SIGTERM) is not signal.SIG_IGN
            raise ValueError("why")

    with pytest.raises(ValueError, match="why"):
        fail()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    signal.raise_signal(signal.SIGINT)
    assert heard == [signal.SIGINT]


def test_a_second_request_starts_anew() -> None:
    for _ in range(2):
        with StopRequest() as stop:
            signal.raise_signal(signal.SIGINT)  # would raise if the first were remembered
        assert stop.number == signal.SIGINT


def test_a_thread_can_open_it_and_sets_no_handlers() -> None:
    before = [signal.getsignal(number) for number in BOTH]
    seen: list[object] = []

    def work() -> None:
        with StopRequest() as stop:
            seen.extend([stop.number, *(signal.getsignal(number) for number in BOTH)])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [None, *before]
    assert [signal.getsignal(number) for number in BOTH] == before


def test_loader_workers_ignore_what_the_process_group_gets() -> None:
    code = (
        "import signal; from codo.runs.interrupt import ignore_stop_signals; ignore_stop_signals();"
        "signal.raise_signal(signal.SIGINT); signal.raise_signal(signal.SIGTERM); print('alive')"
    )
    root = Path(__file__).parents[2]
    result = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout) == (0, "alive\n")


def test_workers_ignore_signals_that_a_request_remembered_before() -> None:
    with StopRequest() as stop:  # a forked worker inherits the open request
        ignore_stop_signals()
        for number in BOTH:
            signal.raise_signal(number)
        assert stop.number is None
