"""SIGKILL at the worst moments: the run, resumed each time, ends as if it had never been stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import torch

from codo.config.load import dump_yaml
from codo.jobs.pretrain import pretrain
from codo.runs.record import RunFolder
from codo.runs.weights_file import read_weights

KILLER = """
import os, signal, sys
from pathlib import Path
import torch
import codo.jobs.pretrain.method as method
import codo.jobs.pretrain.training as training
from codo.config import load_pretrain_config
from codo.jobs.pretrain import pretrain, resume

config, out, moment = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
torch.set_num_threads(1)

def die():
    os.kill(os.getpid(), signal.SIGKILL)

if moment == "in a step":
    class Dying(method.FusedSGD):
        steps = 0
        def step(self, closure=None):
            Dying.steps += 1
            if Dying.steps == 3:
                half = self.param_groups[0]["params"][0]
                half.data += 1.0  # a step half done
                die()
            return super().step(closure)
    method.FusedSGD = Dying
elif moment == "in a checkpoint's writing":
    def half(state, path):
        Path(path).write_bytes(b"PK half a checkpoint")
        die()
    torch.save = half
elif moment == "after an epoch":
    save = training.Run.save
    def saved(self, folder):
        save(self, folder)
        die()
    training.Run.save = saved
elif moment == "before the summary":
    RunFolder = training.RunFolder
    RunFolder.write_summary = lambda self, summary: die()

if (out / "config.yaml").exists():
    resume(out)
else:
    pretrain(load_pretrain_config(file=Path(config)), out)
"""

MOMENTS = ["in a step", "in a checkpoint's writing", "after an epoch", "in a step", "before the summary"]


def test_killed_at_any_moment_and_resumed_it_equals_the_run_that_was_never_stopped(tiny, tmp_path):
    config = tiny(**{"optim.epochs": 3, "run.checkpoint_every": 2})
    whole = pretrain(config, tmp_path / "whole").path
    file, out = tmp_path / "config.yaml", tmp_path / "killed"
    file.write_text(dump_yaml(config))

    def start(moment: str) -> int:
        arguments = [sys.executable, "-c", KILLER, str(file), str(out), moment]
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3]), "OMP_NUM_THREADS": "1"}
        return subprocess.run(arguments, env=environment, timeout=120, stderr=subprocess.DEVNULL).returncode

    for moment in MOMENTS:
        assert start(moment) == -signal.SIGKILL, moment
        assert not (out / "summary.json").exists()
    assert start("never") == 0
    figures = [
        [(record["step"], record["loss"], record["gradient_norm"]) for record in RunFolder(path).metrics()]
        for path in (whole, out)
    ]
    assert figures[0] == figures[1]
    assert len(figures[0]) == 9
    states = [read_weights(path / "weights.safetensors")[0] for path in (whole, out)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    checkpoints = [torch.load(path / "checkpoint.pt", weights_only=True) for path in (whole, out)]
    for name, tensor in checkpoints[0]["method"].items():
        assert torch.equal(tensor, checkpoints[1]["method"][name]), name
    assert not list(out.glob(".*")), "what was half-written is swept away"
