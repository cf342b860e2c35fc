"""Kill a pretraining run at random moments, resume it each time, and compare it with one that was never stopped.

    python experiments/resume/kill_loop.py --kills 20 --out /tmp/kills

Real images if `../shared/data` (or $CODO_DATA) is there, else the built-in sample data. Prints one line a kill and, at
the end, whether losses and weights are the same bit for bit; exits with 1 if not.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

from codo.runs.record import RunFolder
from codo.runs.weights_file import read_weights

ROOT = Path(__file__).parents[2]


def main() -> None:
    """Run the loop."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    data = Path(os.environ.get("CODO_DATA") or ROOT.parent / "shared" / "data")
    fields = ["canvas=64", "views=1", "optim.epochs=8", "run.log_every=1", "run.checkpoint_every=5", "data.limit=320"]
    fields += ["run.workers=1", "run.threads=1", "loss.negatives=both"]
    start = [sys.executable, str(ROOT / "cli.py"), "pretrain", "--preset", "codo-small"]
    start += [part for field in fields for part in ("--set", field)]
    if data.is_dir():
        start += ["--foregrounds", str(data / "objects_open/images"), "--backgrounds", str(data / "cards")]
    whole, killed = given.out / "whole", given.out / "killed"
    began = time.monotonic()
    subprocess.run([*start, "--out", str(whole)], check=True, stderr=subprocess.DEVNULL)
    length = time.monotonic() - began
    print(f"never stopped: {length:.0f} s")
    rng = random.Random(given.seed)
    for kill in range(given.kills):
        resume = [sys.executable, str(ROOT / "cli.py"), "pretrain", "--resume", str(killed)]
        process = subprocess.Popen(
            resume if (killed / "config.yaml").exists() else [*start, "--out", str(killed)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        time.sleep(rng.uniform(0.5, 0.5 + length / 4))
        if process.poll() is not None and (killed / "summary.json").exists():
            print(f"kill {kill + 1}: too late, the run is complete")
            break
        os.killpg(process.pid, signal.SIGKILL)  # loader workers too, as a lost machine takes all
        process.wait()
        steps = [record["step"] for record in RunFolder(killed).metrics()]
        print(f"kill {kill + 1}: logged up to step {steps[-1] if steps else 0}", flush=True)
    if not (killed / "summary.json").exists():
        subprocess.run([*start[:2], "pretrain", "--resume", str(killed)], check=True, stderr=subprocess.DEVNULL)
    curves = [[(r["step"], r["loss"]) for r in RunFolder(path).metrics()] for path in (whole, killed)]
    weights = [read_weights(path / "weights.safetensors")[0] for path in (whole, killed)]
    same = curves[0] == curves[1] and all(torch.equal(weights[0][n], weights[1][n]) for n in weights[0])
    print(f"{len(curves[0])} losses and {len(weights[0])} tensors: {'the same, bit for bit' if same else 'DIFFERENT'}")
    sys.exit(not same)


if __name__ == "__main__":
    main()
