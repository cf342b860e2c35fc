"""Where jobs run: a process of this machine, submitit's local executor in place of Slurm; the table that is shown."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from rich.console import Console

from codo.errors import CodoError
from codo.jobs.ablate.display import Display
from codo.jobs.ablate.executors import LocalExecutor, Task
from codo.jobs.ablate.executors.local import Lock, core_shares
from codo.jobs.ablate.failure import exit_code, last_line, note_failure
from codo.jobs.ablate.jobs import Store
from codo.jobs.ablate.plan import make_plan
from codo.jobs.ablate.resolve import load_grid
from codo.jobs.ablate.run import make_executor, threads_of
from codo.jobs.ablate.scheduler import Scheduler
from codo.runs import console
from tests.jobs.ablate.conftest import BASE


class Pretend:
    """An executor whose tasks end at once, with the exit codes given."""

    queues = False

    def __init__(self, jobs: int, codes: dict[str, list[int]] | None = None) -> None:
        self.jobs, self.codes, self.order = jobs, codes or {}, []
        self.running: list[Task] = []

    @property
    def free(self) -> int:
        return self.jobs - len(self.running)

    def submit(self, tasks) -> None:
        assert len(tasks) <= self.free
        self.running += tasks
        self.order += [task.name for task in tasks]

    def ended(self):
        found = []
        for task in self.running:
            code = self.codes.get(task.folder.kind, [0]).pop(0) if self.codes.get(task.folder.kind) else 0
            task.folder.run.mkdir(parents=True, exist_ok=True)
            if code == 0:
                task.folder.result.write_text('{"metrics": {"AP": 1.5}}')
            found.append((task.name, code))
        self.running = []
        return found

    def stop(self) -> None:
        pass


@pytest.fixture
def plan(write_grid, tmp_path):
    plan = make_plan(load_grid(write_grid(include_none=True)), Store(tmp_path / "jobs"))
    for name, job in plan.jobs.items():
        plan.store.folder(name).write(job)
    return plan


@pytest.fixture(autouse=True)
def _fast(monkeypatch):
    monkeypatch.setattr("codo.jobs.ablate.scheduler.POLL_SECONDS", 0.0)


def test_each_job_runs_once_after_what_it_needs_and_seed_by_seed(plan):
    executor = Pretend(2)
    Scheduler(plan, executor).run()
    assert sorted(executor.order) == sorted(plan.jobs)
    for name, job in plan.jobs.items():
        assert job.needs is None or executor.order.index(job.needs) < executor.order.index(name)
    seeds = [plan.jobs[name].seed for name in executor.order]
    assert seeds.index(1) >= 4, "rows of one seed are done together, but for a free core"


def test_random_weights_take_no_place_from_a_pretraining(plan):
    executor = Pretend(1)
    Scheduler(plan, executor).run()
    first = [plan.jobs[name] for name in executor.order if plan.jobs[name].seed == 0]
    assert [(job.kind, job.needs is None) for job in first] == [
        ("pretrain", True), ("transfer", False), ("pretrain", True), ("transfer", False), ("transfer", True),
    ], "a row's own detector comes before the next pretraining"  # fmt: skip


def test_code_that_is_edited_while_a_grid_runs_ends_it(write_grid, tmp_path):
    part = tmp_path / "own.py"
    part.write_text("class Same:\n    def __call__(self, rng, image, box, others):\n        return image, box\n")
    grid = load_grid(write_grid(base=BASE | {"augment": [f"{part}:Same"]}))

    class Editing(Pretend):
        def ended(self):
            part.write_text(part.read_text().replace("image, box\n", "image / 2, box\n"))
            return super().ended()

    plan = make_plan(grid, Store(tmp_path / "jobs"))
    for name, job in plan.jobs.items():
        plan.store.folder(name).write(job)
    executor = Editing(1)
    with pytest.raises(CodoError, match=r"codo/ changed since the plan \(.*own.py\); the same command goes on"):
        Scheduler(plan, executor).run()
    assert len(executor.order) == 1
    again = make_plan(grid, plan.store)
    assert again.jobs.keys().isdisjoint(plan.jobs.keys())
    Scheduler(again, Pretend(1)).run()
    assert again.remaining() == []


def test_a_job_that_was_stopped_from_outside_goes_on(plan, capsys):
    executor = Pretend(1, {"pretrain": [143, 0]})
    scheduler = Scheduler(plan, executor)
    scheduler.run()
    assert set(scheduler.states.values()) == {"done"}
    assert executor.order.count(executor.order[1]) == 2
    assert "was stopped from outside; it goes on" in capsys.readouterr().err


@pytest.mark.parametrize(("seconds", "calls"), [(0.0, 10), (1e9, 0)])
def test_what_is_done_can_be_told_meanwhile(plan, monkeypatch, seconds, calls):
    monkeypatch.setattr("codo.jobs.ablate.scheduler.WRITE_SECONDS", seconds)
    seen = []
    scheduler = Scheduler(plan, Pretend(1))
    scheduler.run(lambda: seen.append(sum(state == "done" for state in scheduler.states.values())))
    assert len(plan.jobs) == 10
    assert seen == list(range(1, calls + 1))


def test_what_needs_a_failed_job_is_not_run(plan, capsys):
    executor = Pretend(1, {"pretrain": [2]})
    scheduler = Scheduler(plan, executor)
    scheduler.run()
    assert sorted(scheduler.states.values()) == ["blocked", "done", *["done"] * 7, "failed"]
    assert "FAILED: exit code 2, no message" in capsys.readouterr().err
    assert Scheduler(plan, Pretend(1)).states == scheduler.states, "it is remembered"


def test_a_job_killed_by_a_signal_is_run_again_next_time(plan):
    scheduler = Scheduler(plan, Pretend(1, {"pretrain": [-9]}))
    scheduler.run()
    assert "killed by signal 9 (out of memory?)" in next(iter(scheduler.failures.values()))
    again = Scheduler(plan, Pretend(1))
    again.run()
    assert set(again.states.values()) == {"done"}


def test_the_last_line_says_why(plan, tmp_path):
    folder = plan.store.folder(next(iter(plan.jobs)))
    (folder.path / "log.txt").write_text("codo pretrain\nmore\nError: data.foregrounds: gone\n\n")
    assert note_failure(folder, 2) == "data.foregrounds: gone"
    assert folder.failure["message"] == "data.foregrounds: gone"
    assert last_line(tmp_path / "absent") == ""


STARTED = "2026-11-24 23:22:40 codo pretrain\nError: an earlier session's\n\n2026-11-24 23:22:50 codo pretrain\n"
SENDING = (
    "W1124 23:22:51.636000 14471 torch/distributed/elastic/multiprocessing/api.py:1028] "
    "Sending process 14573 closing signal SIGTERM\n"
)
FAILED = (
    "E1124 23:22:51.638000 14471 torch/distributed/elastic/multiprocessing/api.py:1002] "
    "failed (exitcode: {}) local_rank: 0 (pid: 14570) of binary: /usr/bin/python\nTraceback (most recent call last):\n"
    '  File "/site-packages/torch/distributed/launcher/api.py", line 386, in launch_agent\n'
    "    raise ChildFailedError(\n"
    "torch.distributed.elastic.multiprocessing.errors.ChildFailedError: \n"
    "============================================================\ncodo.cli FAILED\n"
    "------------------------------------------------------------\nFailures:\n[1]:\n"
    "  rank      : 1 (local_rank: 1)\n  exitcode  : -15 (pid: 14573)  (SIGTERM)\n"
    "============================================================\n"
)
TOLD_TO_STOP = (
    "W1124 23:23:18.943000 14759 torch/distributed/elastic/agent/server/api.py:753] "
    "Received 15 death signal, shutting down workers\n" + SENDING + "stopped; go on with: codo pretrain --resume x\n"
    "Traceback (most recent call last):\n    raise SignalException(...)\n"
    "torch.distributed.elastic.multiprocessing.api.SignalException: Process 14759 got signal: 15\n"
)
"""As torch 2.x logs them, but for most of the traceback."""


@pytest.mark.parametrize(
    ("log", "code", "line"),
    [
        (
            "process 0: Error: image folder /x does not exist\n"
            "process 1: Error: another process failed; its own message says why\n" + SENDING + FAILED.format(2),
            2,
            "image folder /x does not exist",
        ),
        (
            "[rank0]: Traceback (most recent call last):\n[rank0]: RuntimeError: the loss is NaN\nepoch 1\n"
            + SENDING
            + FAILED.format(1),
            1,
            "RuntimeError: the loss is NaN",
        ),
        ("epoch 1\n" + SENDING + FAILED.format(-9), -9, "epoch 1"),
        ("stopped; go on\n" + FAILED.format(143), 143, "stopped; go on"),
        ("epoch 1\n" + TOLD_TO_STOP, 143, "epoch 1"),
        ("KeyError: 'x'\n", 1, "KeyError: 'x'"),
    ],
    ids=["mistake", "traceback", "out of memory", "stopped", "torchrun stopped", "one process"],
)
def test_of_several_processes_the_job_says_why_not_torchrun(plan, log, code, line):
    folder = plan.store.folder(next(iter(plan.jobs)))
    (folder.path / "log.txt").write_text(STARTED + log)
    assert (exit_code(folder, 1), last_line(folder.path / "log.txt")) == (code, line)
    assert exit_code(folder, 0) == 0


def test_a_job_of_several_processes_that_was_stopped_goes_on(plan, capsys):
    for name in plan.jobs:
        (plan.store.folder(name).path / "log.txt").write_text(STARTED + TOLD_TO_STOP)
    scheduler = Scheduler(plan, Pretend(1, {"pretrain": [1, 0]}))
    scheduler.run()
    assert set(scheduler.states.values()) == {"done"}
    assert "was stopped from outside; it goes on" in capsys.readouterr().err


def test_the_table_shows_every_cell(plan, monkeypatch):
    text = io.StringIO()
    monkeypatch.setattr(
        "codo.jobs.ablate.display.stderr", Console(file=text, force_terminal=True, highlight=False, width=100)
    )
    states = dict.fromkeys(plan.jobs, "waiting")
    cells = list(plan.cells.values())
    states[cells[0].transfers[0]], states[cells[1].transfers[0]] = "running", "failed"
    states[cells[2].pretrain], states[cells[3].pretrain] = "running", "failed"
    done = plan.store.folder(cells[4].transfers[0])
    done.run.mkdir()
    done.result.write_text('{"metrics": {"AP": 12.34}}')
    states[cells[4].transfers[0]] = states[cells[5].pretrain] = "done"
    with Display(plan, states) as display:
        display.say("a [line] of its own")
    shown = text.getvalue()
    for words in ("random", "full", "no hierarchy", "train ...", "failed", "pre ...", "pre failed", "12.3", "ready"):
        assert words in shown, words
    assert "a [line] of its own" in shown


def run_on(executor, task: Task, ended: float = 100) -> int:
    """Submit a task and wait for its exit code."""
    executor.submit([task])
    until = time.monotonic() + ended
    while not (found := executor.ended()):
        assert time.monotonic() < until
        time.sleep(0.05)
    assert found[0][0] == task.name
    return found[0][1]


def short_task(write_grid, tmp_path) -> Task:
    base = BASE | {"optim": {"epochs": 1, "batch_size": 8}}
    plan = make_plan(load_grid(write_grid(base=base, seeds=[0])), Store(tmp_path / "jobs"))
    job = next(job for job in plan.jobs.values() if job.kind == "pretrain")
    folder = plan.store.folder(job.name)
    folder.write(job)
    return Task(folder)


def test_a_process_of_this_machine(write_grid, tmp_path):
    task = short_task(write_grid, tmp_path)
    assert run_on(LocalExecutor(1, 1), task) == 0
    assert task.folder.done
    assert task.folder.summary()["steps"] == 1


def test_a_job_that_an_orphan_finished_before_it_starts_is_not_done_again(plan, monkeypatch):
    def start(*given: object) -> None:
        raise AssertionError("it is started")

    monkeypatch.setattr("codo.jobs.ablate.executors.local.start", start)
    task = Task(plan.store.folder(next(name for name in plan.jobs if name.startswith("pretrain"))))
    task.folder.run.mkdir()
    task.folder.result.write_text("{}")
    assert run_on(LocalExecutor(1, 1), task) == 0
    assert task.folder.result.read_text() == "{}"
    Lock(task.folder.path).leave()  # it is free again


class Sleeper:
    """A process that does nothing."""

    returncode = None

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def poll(self) -> int | None:
        return self.returncode


@pytest.mark.parametrize("full", ["open", "Popen"])
def test_a_full_disk_is_one_line_and_the_job_is_let_go(plan, monkeypatch, full):
    def refuse(*given, **more):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(f"codo.jobs.ablate.work.{full}", refuse, raising=False)
    job = next(iter(plan.jobs))
    with pytest.raises(CodoError, match=rf"cannot write .*{job}/log.txt: No space left on device; free some"):
        LocalExecutor(1, 1).submit([Task(plan.store.folder(job))])
    Lock(plan.store.folder(job).path).leave()


def test_the_cores_are_divided_among_the_jobs(plan, monkeypatch):
    held: dict[int, set[int]] = {}
    pids = iter(range(1000, 1010))
    where = "codo.jobs.ablate.executors.local"
    monkeypatch.setattr(f"{where}.available_cores", lambda: 7)
    monkeypatch.setattr(f"{where}._gpus", list)
    monkeypatch.setattr(f"{where}.Lock", lambda folder: None)
    monkeypatch.setattr(f"{where}.start", lambda *given: Sleeper(next(pids)))
    monkeypatch.setattr(f"{where}.os.sched_getaffinity", lambda pid: set(range(8, 16)), raising=False)
    monkeypatch.setattr(f"{where}.os.sched_setaffinity", held.__setitem__, raising=False)
    tasks = [Task(plan.store.folder(name)) for name in plan.jobs]
    executor = LocalExecutor(3, 1)
    executor.submit(tasks[:3])
    assert held == {1000: {8, 9}, 1001: {10, 11}, 1002: {12, 13, 14}}, "of seven, none is left over"
    executor._running[tasks[1].name].returncode = 0
    assert executor.ended() == [(tasks[1].name, 0)]
    executor.submit(tasks[3:4])
    assert held[1003] == held[1001], "the share that became free"
    assert core_shares(2, 99) == [{8, 9, 10, 11}, {12, 13, 14, 15}]
    assert core_shares(9, 7) == [{8 + job % 8} for job in range(9)]
    monkeypatch.delattr(f"{where}.os.sched_setaffinity")
    assert core_shares(3, 7) == []


def test_a_job_sees_its_share_of_the_cores(plan, monkeypatch):
    if not hasattr(os, "sched_setaffinity") or len(os.sched_getaffinity(0)) < 2:
        pytest.skip("there is nothing to divide")
    look = [sys.executable, "-c", "import os; input(); print(os.sched_getaffinity(0))"]
    tasks = [Task(plan.store.folder(name)) for name in list(plan.jobs)[:2]]
    started = [subprocess.Popen(look, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in tasks]
    waiting = iter(started)
    monkeypatch.setattr("codo.jobs.ablate.executors.local.start", lambda *given: next(waiting))
    monkeypatch.setattr("codo.jobs.ablate.executors.local._gpus", list)
    monkeypatch.setattr("codo.jobs.ablate.executors.local.available_cores", lambda: 2)
    LocalExecutor(2, 1).submit(tasks)
    seen = [process.communicate("\n")[0] for process in started]
    assert len(set(seen)) == 2, "each has another core"


def test_loader_processes_take_cores_too(write_grid, tmp_path):
    base = BASE | {"run": BASE["run"] | {"workers": 3}}
    assert threads_of(make_plan(load_grid(write_grid(base=base)), Store(tmp_path / "jobs"))) == 4


@pytest.mark.parametrize(
    ("gpus", "threads", "processes", "said"),
    [
        ([], 3, 1, r"^3 threads a job .* exceed the 2 cores of this machine; lower them in the grid$"),
        ([], 1, 4, "^4 threads a job"),
        (["0"], 1, 2, "^processes 2: each has a GPU of its own, and this machine has 1; lower it in the grid$"),
    ],
)
def test_a_job_that_the_machine_cannot_bear_is_refused_but_can_be_timed(
    plan, monkeypatch, gpus, threads, processes, said
):
    where = "codo.jobs.ablate.executors.local"
    monkeypatch.setattr(f"{where}.available_cores", lambda: 2)
    monkeypatch.setattr(f"{where}._gpus", lambda: gpus)
    make_executor("local", None, plan, [])
    monkeypatch.setattr("codo.jobs.ablate.run.threads_of", lambda plan: threads)
    file = plan.grid.file.model_copy(update={"processes": processes})
    with pytest.raises(CodoError, match=said):
        make_executor("local", None, replace(plan, grid=replace(plan.grid, file=file)), [])
    assert LocalExecutor(None, threads, processes).jobs == 1, "a dry run on one GPU is of a grid for eight, too"


def test_submitit_in_a_process_in_place_of_slurm(write_grid, tmp_path, monkeypatch):
    pytest.importorskip("submitit")
    from codo.jobs.ablate.executors.slurm import RequeuedWork, SlurmExecutor
    from tests.jobs.ablate.forks import ForkedPopen

    monkeypatch.setattr("codo.jobs.ablate.work.Popen", ForkedPopen)
    task = short_task(write_grid, tmp_path)
    executor = SlurmExecutor(tmp_path / "slurm", None, {"cluster": "debug"})
    assert run_on(executor, task) == 0
    assert task.folder.done
    work = RequeuedWork(task.folder.path, {"A": "b"}, 2, tmp_path)
    again = work.checkpoint()
    assert type(again.function) is RequeuedWork
    assert vars(again.function) == vars(work)


def test_a_refused_submission_is_one_line(write_grid, tmp_path, monkeypatch):
    pytest.importorskip("submitit")
    from submitit.core.utils import FailedJobError

    from codo.jobs.ablate.executors.slurm import SlurmExecutor

    def refuse(_: object) -> None:
        raise FailedJobError("sbatch: error:\ninvalid partition specified")

    executor = SlurmExecutor(tmp_path / "slurm", None, {"cluster": "debug"})
    monkeypatch.setattr(executor.executor, "submit", refuse)
    with pytest.raises(CodoError, match="--executor slurm: refused: sbatch: error: invalid partition specified"):
        executor.submit([short_task(write_grid, tmp_path)])


def test_executors_refuse_what_they_cannot_do(plan, monkeypatch, tmp_path):
    with pytest.raises(CodoError, match="the local executor has none"):
        make_executor("local", None, plan, ["partition=gpu"])
    with pytest.raises(CodoError, match="write name=value"):
        make_executor("slurm", None, plan, ["partition"])
    with pytest.raises(CodoError, match="--executor-option a=2024-99-99: the value is not YAML"):
        make_executor("ray", None, plan, ["a=2024-99-99"])
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CodoError, match=r"--executor slurm: .*slurm"):
        make_executor("slurm", None, plan, [])
    with pytest.raises(CodoError, match=r"--executor slurm: invalid literal for int"):
        make_executor("slurm", None, plan, ["cluster=debug", "slurm_max_num_timeout=often"])
    with pytest.raises(CodoError, match=r"--executor slurm: .*wrong_option"):
        make_executor("slurm", None, plan, ["cluster=debug", "wrong_option=1"])


def test_plain_lines_in_a_pipe(plan):
    assert not console.stderr.is_terminal
    with Display(plan, dict.fromkeys(plan.jobs, "waiting")) as display:
        assert display._live is None
