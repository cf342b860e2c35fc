"""Runs of a job: kept, resumed, or begun again where they had come to nothing."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from codo.errors import CodoError, Interrupted
from codo.runs.files import write_json
from codo.runs.lock import Held, held
from codo.runs.repeat import BEGUN, bring_to_end
from tests.parts import codo


def run(folder: Path) -> tuple[str, dict[str, int]]:
    done: list[str] = []

    def work(name: str) -> None:
        done.append(name)
        if name == "start":
            assert not folder.exists() or [f.name for f in folder.iterdir()] in ([], ["mine.txt"])
        write_json(folder / "summary.json", {"loss": 1})

    found = bring_to_end(folder, lambda: work("start"), lambda: work("resume"), lambda text: done.append(text))
    return done[-1], found


@pytest.mark.parametrize("more", ["", ".checkpoint.pt.k1j2.tmp", ".metrics.jsonl.x.tmp"])
def test_what_was_killed_before_its_first_checkpoint_or_in_it_begins_again(tmp_path: Path, more: str) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    for name in {*BEGUN, more} - {""}:
        (folder / name).touch()
    assert run(folder) == ("start", {"loss": 1})


@pytest.mark.parametrize("names", [["config.yaml", "metrics.jsonl"], ["checkpoint.pt"]])
def test_a_run_that_another_process_is_at_is_refused_and_left_alone(tmp_path: Path, names: list[str]) -> None:
    def never(*given: str) -> None:
        raise AssertionError(given)

    for name in names:
        (tmp_path / name).touch()
    with held(tmp_path), pytest.raises(Held, match="is in use"):
        bring_to_end(tmp_path, never, never, never)
    assert sorted(file.name for file in tmp_path.iterdir()) == names


def test_what_is_stopped_goes_on_with_the_command_that_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not with one of the runs that it is made of."""
    command = "codo transfer --resume runs/seed-0"

    def stop(*_: object, **__: object) -> None:
        raise Interrupted(signal.SIGINT, "stopped after step 3 of 6", command)

    with pytest.raises(Interrupted, match=rf"^stopped after step 3 of 6; go on with: {command}$"):
        stop()
    for name in ("a", "checkpoint.pt"):
        (tmp_path / name).touch()
        with pytest.raises(Interrupted, match=rf"^{tmp_path}: stopped after step 3 of 6$"):
            bring_to_end(tmp_path, stop, stop, lambda text: None)
    monkeypatch.setattr("codo.jobs.demo.demo", lambda *_: bring_to_end(tmp_path, stop, stop, lambda text: None))
    assert codo("demo", "--out", tmp_path / "my demo") == 130
    said = capsys.readouterr().err
    assert said == f"{tmp_path}: stopped after step 3 of 6; go on with: codo demo --out '{tmp_path / 'my demo'}'\n"


def test_what_is_not_a_runs_stays(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("x")
    assert run(tmp_path) == ("start", {"loss": 1})  # which refuses such a folder
    assert (tmp_path / "mine.txt").read_text() == "x"


def test_a_checkpoint_is_resumed_and_a_summary_kept(tmp_path: Path) -> None:
    (tmp_path / "checkpoint.pt").touch()
    assert run(tmp_path)[0] == "resume"
    assert run(tmp_path)[0] == "finished before, kept"
    (tmp_path / "summary.json").write_text(json.dumps([1]))
    with pytest.raises(CodoError, match=r"summary\.json: it is no JSON object"):
        run(tmp_path)
