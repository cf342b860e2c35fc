"""What is shown: a live bar on a terminal, few plain lines in a pipe, results never mixed with either."""

from __future__ import annotations

import io
from types import SimpleNamespace

import pytest
from rich.console import Console
from rich.text import Text

from codo.runs import console as module
from codo.runs.console import PLAIN_SECONDS, JobProgress, counter, duration, warn

HIDE, SHOW = "\x1b[?25l", "\x1b[?25h"
"""The cursor: hidden while a bar is live."""


@pytest.fixture(autouse=True)
def _no_terminal_is_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A clock that goes on only when its `now` is moved."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    file = io.StringIO()
    monkeypatch.setattr(module, "stderr", Console(file=file, force_terminal=False, highlight=False, soft_wrap=True))
    return file


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    file = io.StringIO()
    options = {"force_terminal": True, "width": 150, "highlight": False, "soft_wrap": True, "color_system": None}
    shown = Console(file=file, _environ={"TERM": "xterm"}, **options)
    monkeypatch.setattr(module, "stderr", shown)
    return file


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "0 s"),
        (42.4, "42 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (185, "3 min 05 s"),
        (3599.7, "1 h 00 min"),
        (7645, "2 h 07 min"),
        (100 * 3600, "100 h 00 min"),
    ],
)
def test_durations_are_as_people_read_them(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_a_pipe_gets_a_line_in_ten_seconds_and_one_at_the_end(pipe: io.StringIO, clock: SimpleNamespace) -> None:
    with JobProgress(100, "pretrain") as progress:
        for step in range(1, 101):
            clock.now += PLAIN_SECONDS / 40
            progress.update(step, {"loss": 0.123456, "images": 7, "phase": "warm"})
    assert pipe.getvalue().splitlines() == [
        "pretrain 40/100  loss 0.1235  images 7  phase warm  left 15 s",
        "pretrain 80/100  loss 0.1235  images 7  phase warm  left 5 s",
        "pretrain 100/100  loss 0.1235  images 7  phase warm  left 0 s",
    ]
    assert "\x1b" not in pipe.getvalue()


def test_time_left_of_a_resumed_job_counts_its_own_steps_only(pipe: io.StringIO, clock: SimpleNamespace) -> None:
    with JobProgress(100, "pretrain", done=50) as progress:
        clock.now += 10
        progress.update(60, {})
    assert pipe.getvalue() == "pretrain 60/100  left 40 s\n"


def test_long_lines_of_a_pipe_are_not_broken(capsys: pytest.CaptureFixture[str]) -> None:
    figures = {f"figure{i}": "x" * 10 for i in range(30)}
    with JobProgress(1, "job") as progress:
        progress.update(1, figures)
        progress.note("y" * 300)
    out, err = capsys.readouterr()
    assert out == ""  # standard output is for results
    line, note = err.splitlines()
    assert all(f"{name} xxxxxxxxxx" in line for name in figures)
    assert note == "y" * 300


def test_a_note_is_printed_as_it_is(pipe: io.StringIO) -> None:
    with JobProgress(2, "job") as progress:
        progress.note("levels [2, 3] and [red] of [/a]")
    assert pipe.getvalue() == "levels [2, 3] and [red] of [/a]\n"


def test_a_terminal_gets_a_live_bar_and_no_plain_lines(terminal: io.StringIO, clock: SimpleNamespace) -> None:
    with JobProgress(10, "pretrain", done=3) as progress:
        assert " 3/10" in terminal.getvalue()  # what an earlier session did is on the bar
        for step in (4, 5):
            clock.now += 2 * PLAIN_SECONDS
            progress.update(step, {"loss": 0.123456})
        progress.note("a note with [brackets]")
    shown = terminal.getvalue()
    assert " 5/10" in shown
    assert "loss 0.1235 left 1 min 40 s" in shown
    assert "a note with [brackets]" in shown
    assert "pretrain 5/10" not in shown
    assert shown.index(HIDE) < shown.rindex(SHOW)


@pytest.mark.parametrize("width", [60, 80, 200])
def test_a_narrow_terminal_cuts_the_figures_and_nothing_else(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.StringIO()
    monkeypatch.setattr("codo.runs.console.stderr", Console(file=file, force_terminal=True, width=width))
    with JobProgress(936, "pretrain") as progress:
        progress.update(120, {f"figure{i}": 1.5 for i in range(9)})
    last = Text.from_ansi(file.getvalue().split("\x1b[2K")[-1]).plain
    assert "pretrain " in last
    assert " 120/936 figure0 " in last
    assert " left " in last
    assert ("figure8" in last) == (width == 200)


def test_a_failure_gives_the_terminal_its_cursor_back(terminal: io.StringIO) -> None:
    def fail() -> None:
        with JobProgress(10, "job"):
            assert SHOW not in terminal.getvalue()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert terminal.getvalue().count(HIDE) == terminal.getvalue().count(SHOW) == 1


def test_short_work_is_one_line_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    with counter("images decoded") as show:
        for done in range(5):
            show(done, 5)
        assert capsys.readouterr() == ("", "")
        show(5, 5)
    assert capsys.readouterr() == ("", "images decoded: 5\n")


def test_short_work_is_one_bar_on_a_terminal(terminal: io.StringIO, capsys: pytest.CaptureFixture[str]) -> None:
    with counter("images decoded") as show:
        for done in range(1, 6):
            show(done, 5)
        assert SHOW not in terminal.getvalue()
    shown = terminal.getvalue()
    assert "images decoded" in shown
    assert "5/5" in shown
    assert shown.count(HIDE) == shown.count(SHOW) == 1
    assert capsys.readouterr() == ("", "")


def test_short_work_that_is_stopped_gives_the_terminal_its_cursor_back(terminal: io.StringIO) -> None:
    def fail() -> None:
        with counter("images decoded") as show:
            show(1, 5)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert terminal.getvalue().count(HIDE) == terminal.getvalue().count(SHOW) == 1


def test_warnings_keep_their_brackets_and_go_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    warn("levels [2, 3] and [red] of [/a]")
    out, err = capsys.readouterr()
    assert out == ""
    assert "levels [2, 3] and [red] of [/a]\n" in err
    assert "warning:" in err


def test_results_go_to_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    module.console.print("x" * 300)
    assert capsys.readouterr() == ("x" * 300 + "\n", "")


def test_long_work_says_how_far_it_is_in_a_pipe(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("codo.runs.console.PLAIN_SECONDS", 0.0)
    with counter("images decoded") as show:
        show(3, 5)
        show(5, 5)
    assert capsys.readouterr() == ("", "images decoded: 3 of 5\nimages decoded: 5\n")
