"""The command line: quick, plain in a pipe, one line and exit code 2 for a user's mistake."""

from __future__ import annotations

import json
import os
import pty
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from codo.runs.weights_file import read_weights
from tests.parts import TINY
from tests.parts import codo as in_process

REPOSITORY = Path(__file__).parents[2]


def codo(*arguments: str, cwd: Path | None = None, **more) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(REPOSITORY / "cli.py"), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=250, **more)


SETS = [word for key, value in TINY.items() for word in ("--set", f"{key}={value}")]


def test_help_answers_at_once():
    """Processor time, of which a busy machine takes nothing away; idle, it is the time one waits."""
    times = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = codo("--help")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert done.returncode == 0
    for command in ("pretrain", "preview", "transfer", "evaluate", "predict", "sample-data", "demo"):
        assert command in done.stdout
    assert min(times) < 0.4, times


@pytest.mark.parametrize("command", ["pretrain", "preview", "transfer", "evaluate", "predict", "sample-data", "demo"])
def test_no_command_imports_torch_before_it_runs(command):
    code = f"import sys; from codo.cli import cli\ntry: cli(['{command}', '--help'])\nexcept SystemExit: pass\n"
    done = subprocess.run(
        [sys.executable, "-c", code + "print('torch' in sys.modules)"], capture_output=True, text=True, cwd=REPOSITORY
    )
    assert done.stdout.rstrip().endswith("False")


@pytest.mark.parametrize(("encoding", "shown"), [("ascii", "?"), ("utf-8", "\\udce9")])
def test_names_that_the_terminal_cannot_show_are_escaped(tmp_path, monkeypatch, encoding, shown):
    monkeypatch.setenv("PYTHONIOENCODING", encoding)
    monkeypatch.setenv("CODO_CACHE", os.fsdecode(bytes(tmp_path) + b"/caf\xe9"))
    done = codo("cache", "list")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip().endswith(f"caf{shown}")


def test_a_pipe_that_is_closed_ends_the_command_quietly():
    command = [sys.executable, str(REPOSITORY / "cli.py"), "diff", "insloc", "codo"]  # rich writes its table
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert (process.wait(60), process.stderr.read()) == (141, b"")


def test_import_codo_is_light_and_names_its_api():
    code = "import codo, sys; print('torch' in sys.modules, all(hasattr(codo, n) for n in codo.__all__))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY)
    assert done.stdout.split() == ["False", "True"]
    code = "import codo, codo.jobs.pretrain.run, codo.jobs.transfer.run; assert callable(codo.pretrain)"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["pretrian"], "Did you mean 'pretrain'"),
        (["pretrain", "--epoch", "x"], "--epoch"),
        (["pretrain", "--set", "optim.epoch=3"], "did you mean optim.epochs"),
        (["pretrain", "--config", "absent.yaml"], "cannot read absent.yaml"),
        (["pretrain", "--preset", "large"], "there are codo, insloc"),
        (["presets", ""], "no preset ''; there are codo, insloc"),
        (["pretrain", "--foregrounds", "absent", "--no-background"], "absent"),
        (["pretrain", "--resume", "absent"], "absent is not a run folder"),
        (["pretrain", "--resume", "absent", "--out", "x"], "--resume takes its config from the run"),
        (["transfer", "--weights", "absent"], "absent"),
        (["transfer", "--data", "absent"], "absent"),
        (["transfer", "--resume", "absent"], "absent is not a run folder"),
        (["pretrain", "--resume", "absent", "--jitter"], "a resumed run keeps its config; leave --jitter out"),
        (["pretrain", "--resume", "a" * 300], "File name too long"),
        (["pretrain", "--foregrounds", "a" * 300, "--no-background"], "File name too long"),
        (["transfer", "--data", "a" * 300], "File name too long"),
        (["transfer", "--weights", "a" * 300], "File name too long"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(tmp_path, monkeypatch, capfd, arguments, said):
    monkeypatch.chdir(tmp_path)
    assert in_process(*arguments) == 2
    printed = capfd.readouterr()
    assert said in printed.err
    assert "Traceback" not in printed.err
    assert printed.out == ""
    assert list(tmp_path.iterdir()) == []


def test_a_process_ends_with_the_same_line_and_code(tmp_path):
    done = codo("transfer", "--data", "absent", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "absent" in done.stderr
    assert "Traceback" not in done.stderr


def test_pretrain_from_flags_file_and_set(images, tmp_path):
    (tmp_path / "c.yaml").write_text("optim: {epochs: 9}\nseed: 4\n")
    sources = ["--foregrounds", str(images / "foregrounds"), "--backgrounds", str(images / "backgrounds")]
    done = codo(
        "pretrain", *sources, "--config", "c.yaml", "--epochs", "1", "--no-hierarchy", "--no-jitter", "--cache", "off",
        *SETS, "--set", "optim.epochs=1", "--out", "run", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout + done.stderr
    assert "next: codo transfer --weights run" in done.stdout
    assert "pretrain 3/3" in done.stderr
    import yaml

    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert config["seed"] == 4
    assert config["hierarchy"] is False
    assert config["jitter"]["mode"] == "none"
    assert config["optim"]["epochs"] == 1
    assert config["run"]["cache"] == "off"
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["steps"] == 3
    assert codo("pretrain", "--resume", "run", "--seed", "5", cwd=tmp_path).returncode == 2


def test_dry_run_prints_the_config_and_the_facts(images, tmp_path):
    sources = ["--foregrounds", str(images / "foregrounds"), "--backgrounds", str(images / "backgrounds")]
    done = codo("pretrain", *sources, *SETS, "--dry-run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    import yaml

    assert yaml.safe_load(done.stdout)["model"]["backbone"] == "resnet10t"
    for fact in (
        "# parameters: backbone",
        "# time: about",
        "# memory:",
        "# steps: 6 in 2 epochs",
        "# losses: 1 x level",
    ):
        assert fact in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_sigterm_to_a_whole_process_group_resumes_to_the_same_end(images, tmp_path):
    sources = ["--foregrounds", str(images / "foregrounds"), "--backgrounds", str(images / "backgrounds")]
    command = ["pretrain", *sources, *SETS, "--set", "optim.epochs=12", "--set", "run.workers=1"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    process = subprocess.Popen(
        [sys.executable, str(REPOSITORY / "cli.py"), *command, "--out", "run"],
        cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    metrics = tmp_path / "run" / "metrics.jsonl"
    until = time.monotonic() + 120
    while time.monotonic() < until and not (metrics.is_file() and metrics.read_text().count("\n") >= 3):
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGTERM)  # as Slurm and systemd do: the loader worker gets it as well
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143, err
    assert "codo pretrain --resume run" in err
    assert "Traceback" not in err
    assert not (tmp_path / "run" / "summary.json").exists()
    assert codo("pretrain", "--resume", "run", cwd=tmp_path).returncode == 0
    assert codo(*command, "--out", "whole", cwd=tmp_path).returncode == 0
    ours, theirs = (read_weights(tmp_path / name / "weights.safetensors") for name in ("run", "whole"))
    assert ours[1] == theirs[1]
    assert ours[0].keys() == theirs[0].keys()
    assert all(torch.equal(ours[0][key], theirs[0][key]) for key in theirs[0])


def test_on_a_terminal_progress_is_live(images, tmp_path):
    master, slave = pty.openpty()
    sources = ["--foregrounds", str(images / "foregrounds"), "--backgrounds", str(images / "backgrounds")]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "TERM": "xterm", "COLUMNS": "160"}
    process = subprocess.Popen(
        [sys.executable, str(REPOSITORY / "cli.py"), "pretrain", *sources, *SETS, "--out", "run"],
        cwd=tmp_path, env=environment, stdout=slave, stderr=slave, stdin=slave,
    )  # fmt: skip
    os.close(slave)
    shown = b""
    while True:
        try:
            piece = os.read(master, 65536)
        except OSError:
            break
        if not piece:
            break
        shown += piece
    assert process.wait(timeout=60) == 0
    text = shown.decode()
    assert "\x1b[" in text
    for figure in ("loss", "level", "images/s", "data wait", "left"):
        assert figure in text
