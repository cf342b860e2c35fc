"""Run folders: never over another run, readable after a kill, and honest about what ran on what."""

from __future__ import annotations

import json
import math
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from codo import __version__
from codo.config.sections import RunSection
from codo.errors import CodoError, Interrupted
from codo.jobs.pretrain import pretrain
from codo.runs import record as module
from codo.runs.hardware import Hardware
from codo.runs.lock import Held, held
from codo.runs.record import RunFolder, environment, git_state

CONFIG = RunSection(device="cpu", precision="fp32", workers=0, threads=1, log_every=7)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "run", "pretrain")


@pytest.fixture
def hardware() -> Hardware:
    return Hardware.resolve(CONFIG, heavy_loading=False)


def strict(line: str) -> Any:
    """Read JSON as other tools do: NaN is none."""
    return json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_free_numbers_are_taken_in_turn_and_by_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "pretrain-2").mkdir(parents=True)
    made = [RunFolder.create(None, kind).path for kind in ("pretrain", "pretrain", "pretrain", "transfer")]
    assert made == [Path("runs") / name for name in ("pretrain-1", "pretrain-3", "pretrain-4", "transfer-1")]
    assert all(path.is_dir() for path in made)


def test_a_named_folder_is_made_with_its_parents_or_taken_when_empty(tmp_path: Path) -> None:
    for _ in range(2):
        assert RunFolder.create(tmp_path / "a" / "b", "pretrain").path == tmp_path / "a" / "b"
        assert list((tmp_path / "a" / "b").iterdir()) == []


def fail(folder: RunFolder, hardware: Hardware, error: Exception, also: str | None = None) -> None:
    """Begin a run that fails before its first step."""
    with folder.begun():
        folder.write_start(CONFIG, "0", {}, hardware)
        if also is not None:
            (folder.path / also).touch()
        raise error


@pytest.mark.parametrize("place", ["new", "empty", "link", "numbered"])
def test_a_run_that_fails_before_its_first_record_leaves_nothing(tmp_path, monkeypatch, place, hardware):
    monkeypatch.chdir(tmp_path)
    for name in ("empty", "target"):
        (tmp_path / name).mkdir()
    (tmp_path / "link").symlink_to("target")
    folder = RunFolder.create(None if place == "numbered" else place, "pretrain")
    there = place in ("empty", "link")
    with pytest.raises(CodoError, match="the dog"):
        fail(folder, hardware, CodoError("the dog ate it"))
    assert folder.path.exists() == there
    assert not there or list(folder.path.iterdir()) == []
    RunFolder.check_free(folder.path)


@pytest.mark.parametrize("kept", ["metrics.jsonl", "checkpoint.pt", "notes.txt"])
def test_what_has_logged_saved_or_holds_anything_else_stays(folder, hardware, kept):
    with pytest.raises(ZeroDivisionError):
        fail(folder, hardware, ZeroDivisionError(), kept)
    assert {file.name for file in folder.path.iterdir()} == {"config.yaml", "environment.json", kept}


def test_what_was_interrupted_and_what_another_holds_stay(folder, hardware):
    with pytest.raises(Interrupted):
        fail(folder, hardware, Interrupted(15, "stopped"))
    before = {file.name for file in folder.path.iterdir()}
    assert before == {"config.yaml", "environment.json"}
    with held(folder.path), pytest.raises(Held), folder.begun():
        pytest.fail("two hold it")
    assert {file.name for file in folder.path.iterdir()} == before


def test_the_error_is_told_though_the_folder_is_gone(folder, hardware, monkeypatch):
    monkeypatch.setattr(folder, "sweep", lambda: folder.path.rename(folder.path.with_name("elsewhere")))
    with pytest.raises(CodoError, match="the dog"):
        fail(folder, hardware, CodoError("the dog ate it"))


def test_a_folder_that_holds_something_is_refused_with_the_way_to_resume(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.touch()
    for refuse in (RunFolder.check_free, lambda out: RunFolder.create(out, "pretrain")):
        with pytest.raises(CodoError, match=r"exists already; name another folder, or .* --resume "):
            refuse(tmp_path)
        for below in (file, file / "run" / "a"):
            with pytest.raises(CodoError, match=rf"^--out {below}: {file} is a file; name another folder$"):
                refuse(below)
    assert [*tmp_path.iterdir()] == [file]


def test_a_place_that_cannot_be_written_is_refused_before_the_work(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    def fail(*_: Any) -> None:
        pytest.fail("the work was begun")

    monkeypatch.setattr("tempfile.NamedTemporaryFile", refuse)
    monkeypatch.setattr("codo.jobs.pretrain.run.find_sources", fail)
    out = tmp_path / "a" / "run"
    with pytest.raises(CodoError, match=rf"^--out {out}: cannot write {out / 'config.yaml'}: Permission denied"):
        pretrain(tiny(), out)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(("name", "resumable"), [("mine.txt", True), ("config.yaml", False)])
def test_only_a_run_is_resumed_and_only_by_what_trains(tmp_path: Path, name: str, resumable: bool) -> None:
    (tmp_path / name).touch()
    with pytest.raises(CodoError, match=r"exists already; name another folder$"):
        RunFolder.check_free(tmp_path, resumable=resumable)


def test_a_complete_run_is_said_to_be(tmp_path: Path) -> None:
    for name in ("config.yaml", "summary.json"):
        (tmp_path / name).touch()
    with pytest.raises(CodoError, match=r"name another folder \(its run is complete\)$"):
        RunFolder.check_free(tmp_path)
    (tmp_path / "checkpoint.pt").touch()
    with pytest.raises(
        CodoError, match=r"name another folder \(its run is complete; --resume .* with more epochs makes"
    ):
        RunFolder.check_free(tmp_path)


def test_the_lock_file_of_a_process_killed_at_its_start_is_nothing(tmp_path: Path) -> None:
    (tmp_path / "lock").touch()
    assert RunFolder.create(tmp_path, "pretrain").path == tmp_path


def test_checking_makes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    RunFolder.check_free(None)
    assert list(tmp_path.iterdir()) == []
    RunFolder.check_free(tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CodoError, match=r"cannot make the run folder .*File name too long"):
        RunFolder.create(tmp_path / ("x" * 300), "pretrain")
    (tmp_path / "runs").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CodoError, match="cannot make the run folder runs: runs is a file"):
        RunFolder.create(None, "pretrain")
    with pytest.raises(CodoError, match=r"^cannot write runs.config.yaml: runs is a file; choose another"):
        RunFolder.check_free(None)


def test_only_a_run_folder_is_opened(folder: RunFolder, hardware: Hardware) -> None:
    for path in (folder.path, folder.path / "absent"):
        with pytest.raises(CodoError, match=r"is not a run folder \(no config\.yaml in it\)"):
            RunFolder.open(path)
    folder.write_start(CONFIG, "f", {}, hardware)
    assert RunFolder.open(folder.path).path == folder.path


def test_the_start_records_config_and_environment(
    folder: RunFolder, hardware: Hardware, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/codo", "pretrain", "--out", "x"])
    folder.write_start(CONFIG, "abc123", {"images": 12}, hardware)
    assert "log_every: 7" in (folder.path / "config.yaml").read_text()
    found = folder.environment()
    assert found["fingerprint"] == "abc123"
    assert found["data"] == {"images": 12}
    assert found["command"] == ["codo", "pretrain", "--out", "x"]
    assert found["codo"] == __version__
    assert found["packages"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert found["hardware"] == hardware.describe()
    assert "earlier" not in found


def test_each_resumption_keeps_the_earlier_environments_in_order(folder: RunFolder, hardware: Hardware) -> None:
    for fingerprint in "abc":
        folder.write_start(CONFIG, fingerprint, {}, hardware)
    found = folder.environment()
    assert found["fingerprint"] == "c"
    assert [before["fingerprint"] for before in found["earlier"]] == ["a", "b"]
    assert all("earlier" not in before for before in found["earlier"])


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (None, "No such file"),
        ("", "Expecting value"),
        ('{"fingerprint": "a', "Unterminated string"),
        ("[]", "it is no JSON object"),
        ("[" * 100_000, "recursion"),
        ("{}", 'it lacks "fingerprint"'),
        ('{"fingerprint": "a", "data": {}}', 'it lacks "data.fingerprint"'),
        ('{"fingerprint": "a", "data": "b"}', 'it lacks "data.fingerprint"'),
    ],
)
def test_an_unreadable_environment_is_named(folder: RunFolder, damage: str | None, said: str) -> None:
    file = folder.path / "environment.json"
    if damage is not None:
        file.write_text(damage)
    with pytest.raises(CodoError, match=rf"^cannot read {file}: .*{said}") as raised:
        folder.environment("data.fingerprint")
    assert "\n" not in str(raised.value)


def test_metrics_come_back_in_order(folder: RunFolder) -> None:
    assert folder.metrics() == []  # before the first
    records = [{"step": step, "loss": step / 3, "text": "größe\n", "none": None} for step in range(3)]
    for record in records:
        folder.log(record)
    assert folder.metrics() == records
    assert len((folder.path / "metrics.jsonl").read_text().splitlines()) == 3


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_null(folder: RunFolder, value: float) -> None:
    folder.log({"step": 1, "loss": value, "lr": 0.5})
    assert strict((folder.path / "metrics.jsonl").read_text()) == {"step": 1, "loss": None, "lr": 0.5}


def test_a_line_is_on_the_disk_when_log_returns(folder: RunFolder) -> None:
    for step in (1, 2):
        folder.log({"step": step})
        assert RunFolder(folder.path).metrics()[-1] == {"step": step}


@pytest.mark.parametrize("cut", ['{"step": 3, "lo', '{"step": 3}', "{"])
def test_a_last_line_that_was_cut_off_is_left_out(folder: RunFolder, cut: str) -> None:
    for step in (1, 2):
        folder.log({"step": step})
    with open(folder.path / "metrics.jsonl", "a") as file:
        file.write(cut)
    assert folder.metrics() == [{"step": 1}, {"step": 2}]
    folder.rewind_metrics(2)
    folder.log({"step": 3})  # on a line of its own
    assert folder.metrics() == [{"step": 1}, {"step": 2}, {"step": 3}]


@pytest.mark.parametrize("damage", [b"", b"{", b"\0\0", b'{"step": 2, "text": "\xff"}', b"2", b'{"loss": 1}'])
def test_a_damaged_line_is_named(folder: RunFolder, damage: bytes) -> None:
    folder.log({"step": 1})
    file = folder.path / "metrics.jsonl"
    whole = file.read_bytes() + damage + b'\n{"step": 3}\n'
    file.write_bytes(whole)
    for read in (folder.metrics, lambda: folder.rewind_metrics(1)):
        with pytest.raises(CodoError, match=rf"^{file}, line 2 is damaged; remove that line$"):
            read()
    assert file.read_bytes() == whole


def test_rewinding_keeps_the_step_itself_and_the_values(folder: RunFolder) -> None:
    records = [{"step": step, "loss": None if step == 2 else 0.1 * step} for step in range(1, 6)]
    for record in records:
        folder.log(record)
    folder.rewind_metrics(3)
    assert folder.metrics() == records[:3]
    folder.rewind_metrics(9)
    assert folder.metrics() == records[:3]
    folder.rewind_metrics(0)
    assert folder.metrics() == []


def test_a_full_disk_while_rewinding_loses_no_metrics(folder: RunFolder, full_disk: Any) -> None:
    for step in range(100):
        folder.log({"step": step})
    with full_disk(500), pytest.raises(CodoError, match=r"cannot write .*metrics\.jsonl"):
        folder.rewind_metrics(90)
    assert len(folder.metrics()) == 100


def test_a_full_disk_while_logging_is_an_error_and_spares_the_lines_before(folder: RunFolder, full_disk: Any) -> None:
    folder.log({"step": 1})
    with full_disk(30), pytest.raises(CodoError, match=r"cannot write .*metrics\.jsonl: File too large"):
        folder.log({"step": 2, "text": "x" * 100})
    assert folder.metrics() == [{"step": 1}]


def test_the_summary_says_that_the_run_is_complete(folder: RunFolder, hardware: Hardware) -> None:
    folder.write_start(CONFIG, "f", {}, hardware)
    folder.log({"step": 1})
    assert not folder.complete
    folder.write_summary({"loss": 0.5, "name": "é"})
    assert folder.complete
    assert strict((folder.path / "summary.json").read_text(encoding="utf-8")) == {"loss": 0.5, "name": "é"}


def test_a_summary_that_could_not_be_written_leaves_the_run_incomplete(folder: RunFolder, full_disk: Any) -> None:
    with full_disk(10), pytest.raises(CodoError, match=r"cannot write .*summary\.json"):
        folder.write_summary({"text": "x" * 100})
    assert not folder.complete
    assert list(folder.path.iterdir()) == []


def test_the_environment_is_json(hardware: Hardware) -> None:
    found = environment("f", {}, hardware)
    assert strict(json.dumps(found)) == found
    assert set(found["packages"]) == set(module.PACKAGES)
    assert found["cores"] == os.cpu_count()


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout of codo, and a `git` that answers from the files `commit` and `status`."""
    (tmp_path / "codo" / "runs").mkdir(parents=True)
    (tmp_path / ".git").mkdir()
    (tmp_path / "bin").mkdir()
    git = tmp_path / "bin" / "git"
    git.write_text(
        f'#!/bin/sh\n[ "$2" = "{tmp_path}" ] || exit 1\n'
        'case "$3" in rev-parse) cat "$2/commit";; status) cat "$2/status";; esac\n'
    )
    git.chmod(0o755)
    (tmp_path / "commit").write_text("0123abc\n")
    (tmp_path / "status").touch()
    monkeypatch.setattr(module, "__file__", str(tmp_path / "codo" / "runs" / "record.py"))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    return tmp_path


def test_git_state_names_the_commit_and_whether_it_was_changed(checkout: Path) -> None:
    assert git_state() == {"commit": "0123abc", "dirty": False}
    (checkout / "status").write_text(" M codo/errors.py\n")
    assert git_state() == {"commit": "0123abc", "dirty": True}


def test_an_installed_package_has_no_git_state(checkout: Path) -> None:
    (checkout / ".git").rmdir()
    assert git_state() is None


def test_a_machine_without_git_has_no_git_state(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(checkout / "codo"))
    assert git_state() is None


def test_numbers_that_json_lacks_become_null_at_any_depth(tmp_path):
    folder = RunFolder.create(tmp_path / "run", "pretrain")
    folder.log({"step": 1, "inner": {"a": [float("nan"), 1.0]}})
    assert folder.metrics() == [{"step": 1, "inner": {"a": [None, 1.0]}}]
    folder.write_summary({"loss": float("inf")})
    assert json.loads((tmp_path / "run/summary.json").read_text()) == {"loss": None}


def test_what_a_killed_process_left_half_written_is_swept_away(tmp_path):
    folder = RunFolder.create(tmp_path / "run", "pretrain")
    (folder.path / ".checkpoint.pt.x1.tmp").write_bytes(b"half")
    (folder.path / "checkpoint.pt").write_bytes(b"whole")
    folder.sweep()
    assert [file.name for file in folder.path.iterdir()] == ["checkpoint.pt"]
