"""Real jobs of tiny networks: a grid to its end, killed and gone on with, failures, and who holds the folder."""

from __future__ import annotations

import errno
import json
import os
import signal
from pathlib import Path

import pytest

from codo.errors import CodoError
from codo.jobs.ablate.jobs import Store
from codo.jobs.ablate.results import Results
from codo.jobs.ablate.run import ablate
from codo.runs.lock import Held, Lock, is_held
from tests.jobs.ablate.conftest import BASE, TRANSFER
from tests.jobs.ablate.forks import Driver, ForkedPopen, wait_for


@pytest.fixture(autouse=True)
def _forked(monkeypatch, tmp_path):
    monkeypatch.setattr("codo.jobs.ablate.work.Popen", ForkedPopen)
    monkeypatch.setattr("codo.jobs.ablate.work.POLL_SECONDS", 0.02)
    monkeypatch.setattr("codo.jobs.ablate.scheduler.POLL_SECONDS", 0.02)
    monkeypatch.setattr("codo.jobs.ablate.executors.local.POLL_SECONDS", 0.02)
    monkeypatch.setattr("codo.jobs.ablate.run.draw_samples", lambda plan, folder: {})
    monkeypatch.chdir(tmp_path)


BROKEN = """\
import os
from codo.augment import NoJitter

class Jitter(NoJitter):
    def __call__(self, *given):
        assert os.path.exists("mended"), "it is broken"
        return super().__call__(*given)
"""


def numbers(results: Results) -> list:
    """What must not depend on how a grid was run."""
    return [(*cell.metrics.items(), *cell.loss, *[p.AP for p in cell.curve]) for cell in results.cells]


def steps(folder: Path) -> int:
    file = folder / "metrics.jsonl"
    return file.read_text().count("\n") if file.is_file() else 0


def test_killed_in_the_middle_and_gone_on_with_it_ends_with_the_same_results(write_grid, tmp_path, monkeypatch, capsys):
    base = BASE | {"run": BASE["run"] | {"checkpoint_every": 1}}
    grid = write_grid(base=base, axes={"no paste": {"background": False, "alignment": False}})
    written, write = [], Results.write

    def note(results: Results, path: Path) -> None:
        written.append(sum(cell.status == "done" for cell in results.cells))
        if len(written) == 2:
            raise CodoError("cannot write results.json: the disk is full")
        write(results, path)

    monkeypatch.setattr("codo.jobs.ablate.scheduler.WRITE_SECONDS", 0.0)
    monkeypatch.setattr(Results, "write", note)
    whole = ablate(grid, tmp_path / "whole", jobs=1, keep_checkpoints=True)
    assert written == sorted(written)
    assert set(written) == {0, 1, 2, 3, 4}, "results are there while it runs"
    assert "the disk is full; the grid goes on" in capsys.readouterr().err
    assert len(list((tmp_path / "whole" / "jobs").glob("*/run/checkpoint.pt"))) == 8, "of all jobs"
    assert [cell.status for cell in whole.results.cells] == ["done"] * 4
    assert all(cell.metrics["AP"] is not None and len(cell.loss) == 6 for cell in whole.results.cells)
    out, log = tmp_path / "killed", tmp_path / "log.txt"
    jobs = Store(out / "jobs")
    (out / "grid" / "figures").mkdir(parents=True)
    earlier = [out / "grid" / name for name in ("figures/earlier.png", "table.md", "report.html")]
    for file in earlier:
        file.write_text("of --seeds 0")

    def drive() -> Driver:
        return Driver(lambda: ablate(grid, out, jobs=1), log)

    def running(kind: str, least: int):
        return lambda: any(
            steps(f / "run") >= least and (f / "run" / "checkpoint.pt").is_file() and not jobs.folder(f.name).done
            for f in jobs.path.glob(f"{kind}-*")
        )

    assert drive().kill_when(running("pretrain", 3), signal.SIGTERM) == 143
    assert "go on with: codo ablate" in log.read_text()
    assert "0 of 8 jobs are done" in log.read_text()
    assert {cell.status for cell in Results.read(out / "grid" / "results.json").cells} == {"missing"}
    assert not earlier[0].exists()
    assert "0 of 4 cells done" in earlier[2].read_text()
    assert "of --seeds 0" not in earlier[1].read_text()
    second = drive()
    assert second.kill_when(running("transfer", 2), signal.SIGKILL) == -signal.SIGKILL
    left = next(f for f in jobs.path.glob("transfer-*") if (f / "run").is_dir() and not jobs.folder(f.name).done)
    pid = json.loads((left / "lock").read_text())["pid"]
    os.kill(pid, signal.SIGKILL)  # the job that outlived `codo ablate`
    killed = ablate(grid, out, jobs=1)
    assert "goes on" in log.read_text()
    assert numbers(killed.results) == numbers(whole.results)
    assert json.loads((out / "grid" / "results.json").read_text()) == killed.results.model_dump(mode="json")
    assert Results.read(out / "grid" / "results.json") == killed.results
    assert not list(out.rglob("checkpoint.pt")), "finished jobs do not keep theirs"
    before = {file: file.stat().st_mtime_ns for file in out.rglob("summary.json")}
    ablate(grid, out, jobs=1)
    assert before == {file: file.stat().st_mtime_ns for file in out.rglob("summary.json")}, "nothing runs twice"


def test_a_job_that_outlives_a_killed_ablate_is_waited_for(write_grid, tmp_path, squares):
    rows = {"a": {"weights": "none"}}
    long = TRANSFER | {"epochs": 30, "optim": {"warmup_iterations": 2, "eval_every": 30}}
    grid = write_grid(design="rows", axes=None, rows=rows, reference="a", seeds=[0], transfer={"tuned": long})
    out = tmp_path / "out"
    first = Driver(lambda: ablate(grid, out), tmp_path / "log.txt")

    def started() -> bool:
        return any(steps(f) > 2 for f in (out / "jobs").glob("*/run"))

    assert first.kill_when(started, signal.SIGKILL) == -signal.SIGKILL
    (job,) = (out / "jobs").iterdir()
    with pytest.raises(Held, match="process"):
        Lock(job)
    done = ablate(grid, out)
    assert done.results.cells[0].status == "done"
    assert (job / "log.txt").read_text().count("codo transfer") == 1, "it was not started a second time"


def test_a_failed_job_is_told_does_not_stop_the_rest_and_is_retried_on_request(
    write_grid, tmp_path, capsys, monkeypatch
):
    written = []
    monkeypatch.setattr(
        "codo.jobs.ablate.run.draw_samples",
        lambda plan, folder: written.append((folder / "results.json").is_file()) or {},
    )
    broken = tmp_path / "broken.py"
    broken.write_text(BROKEN)
    grid = write_grid(axes={"own": {"jitter.custom": f"{broken}:Jitter"}}, seeds=[0])
    found = ablate(grid, tmp_path / "out")
    assert written == [True], "before a part that may be broken draws"
    assert [cell.status for cell in found.results.cells] == ["done", "failed"]
    assert found.results.cells[1].failure == "AssertionError: it is broken"
    told = capsys.readouterr().err
    assert "pretrain own, seed 0" in told
    assert "FAILED: AssertionError: it is broken (see" in told
    again = ablate(grid, tmp_path / "out")
    assert again.failures == found.failures, "left alone"
    assert "1 jobs failed before and are left alone; --retry-failed tries them again" in capsys.readouterr().err
    (tmp_path / "mended").touch()
    mended = ablate(grid, tmp_path / "out", retry_failed=True)
    assert [cell.status for cell in mended.results.cells] == ["done", "done"]


def test_fail_fast_ends_at_the_first_failure(write_grid, tmp_path):
    broken = tmp_path / "broken.py"
    broken.write_text("def jitter():\n    return lambda *given: 1 / 0\n")
    grid = write_grid(axes={"own": {"jitter.custom": f"{broken}:jitter"}}, seeds=[0, 1])
    found = ablate(grid, tmp_path / "out", jobs=1, fail_fast=True)
    statuses = [cell.status for cell in found.results.cells]
    assert statuses.count("failed") == 1
    assert "missing" in statuses


def test_another_grid_of_the_same_name_is_refused(write_grid, tmp_path):
    stored = tmp_path / "out" / "grid" / "grid.yaml"
    stored.parent.mkdir(parents=True)
    stored.write_text("title: Another\n")
    with pytest.raises(CodoError, match="has the results of another grid, titled 'Another', not 'Tiny'; rename grid"):
        ablate(write_grid(), tmp_path / "out")
    assert stored.read_text() == "title: Another\n"
    stored.write_text("title: Tiny\nquestion: as it was before it was edited\n")
    with pytest.raises(CodoError, match="--jobs 999"):
        ablate(write_grid(), tmp_path / "out", jobs=999)


def test_a_second_ablate_on_the_folder_is_refused_with_who_holds_it(write_grid, tmp_path):
    with Lock(tmp_path / "out"), pytest.raises(CodoError, match=rf"in use \(host .*, process {os.getpid()}, since 2"):
        ablate(write_grid(), tmp_path / "out")
    Lock(tmp_path / "out").leave()


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch):
    def none(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("codo.runs.lock.fcntl.flock", none)
    with pytest.raises(CodoError, match=r"cannot lock .*: No locks available; choose an --out on another disk"):
        Lock(tmp_path)


def test_a_killed_holder_frees_the_folder(tmp_path):
    def hold() -> None:
        lock = Lock(tmp_path)
        (tmp_path / "held").touch()  # to ask `is_held` before would take the lock from under it
        wait_for(lambda: lock is None)

    holder = Driver(hold, tmp_path / "log")
    held = tmp_path / "held"
    assert holder.kill_when(lambda: held.exists() and is_held(tmp_path), signal.SIGKILL) == -signal.SIGKILL
    Lock(tmp_path).leave()


def test_more_threads_than_cores_are_refused(write_grid, tmp_path):
    with pytest.raises(CodoError, match="--jobs 999: of 1 threads each exceed"):
        ablate(write_grid(), tmp_path / "out", jobs=999)
