"""Peak memory of every preset: what `codo pretrain --dry-run` says, and what a run then takes; what kept memory gives.

    python -m benchmarks.memory            # every preset on the built-in sample data; some minutes
    python -m benchmarks.memory --small    # one preset, two small batches; writes nothing

Each side is a process of its own, and its figure the peak of what was resident (`ru_maxrss`), as the operating system
has it. The presets for two cores run as they are, those of full scale at a batch that this machine holds. A run takes
`--steps` steps, one checkpoint and its weights file.

Kept memory (`keep_freed_memory`): processor seconds (of program and kernel) of a run with and without, in turns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.results_file import Row, versions, write
from codo.config.presets import PRESETS

FULL_SCALE_BATCH = 16
"""Of presets that ask for 256 and more."""

WITHIN = 10
"""Percent that the prediction may be off."""

PREDICT = """
import json, sys, codo
from codo.jobs.pretrain import dry_run
print(dry_run(codo.load_pretrain_config(preset=sys.argv[1], flags=json.loads(sys.argv[2])))["peak_memory"] / 2**20)
"""

RUN = """
import json, resource, sys, codo
from pathlib import Path
if sys.argv[4:] != ["freed"]:
    from codo.runs.hardware import keep_freed_memory
    keep_freed_memory()
codo.pretrain(codo.load_pretrain_config(preset=sys.argv[1], flags=json.loads(sys.argv[2])), Path(sys.argv[3]))
unit, used = 1 if sys.platform == "darwin" else 1024, resource.getrusage(resource.RUSAGE_SELF)
print(used.ru_utime + used.ru_stime, used.ru_stime, used.ru_maxrss * unit / 2**20)
"""


def fields_of(name: str, steps: int, small: bool) -> dict[str, Any]:
    """Settings of a run of so many steps."""
    full = not name.endswith("-small")
    batch = 4 if small else FULL_SCALE_BATCH if full else 32
    fields: dict[str, Any] = {"optim.epochs": 1, "optim.batch_size": batch, "data.limit": batch * steps}
    fields |= {"run.workers": 0, "run.threads": 1, "optim.warmup_epochs": 0.0}
    return fields | ({"canvas": 64, "model.backbone": "resnet10t"} if small else {})


def figures(code: str, *arguments: str) -> list[float]:
    """Run code in a process of its own; return the figures in its last line, of which the last is a peak in MiB."""
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{arguments[:2]}: {done.stderr.strip().splitlines()[-1]}")
    return [float(word) for word in done.stdout.strip().splitlines()[-1].split()]


def measure(name: str, steps: int, small: bool = False) -> dict[str, Any]:
    """Predict and run one preset."""
    fields = fields_of(name, steps, small)
    told = json.dumps(fields)
    predicted = figures(PREDICT, name, told)[-1]
    with tempfile.TemporaryDirectory() as folder:
        taken = figures(RUN, name, told, str(Path(folder) / "run"))[-1]
    found = {"preset": name, "batch": fields["optim.batch_size"], "predicted_mib": predicted, "taken_mib": taken}
    found["ratio"] = taken / predicted
    print(f"{name}, batch {found['batch']}: predicted {predicted:.0f} MiB, taken {taken:.0f}", flush=True)
    return found


def kept_memory(steps: int, rounds: int) -> dict[str, list[list[float]]]:
    """Run `codo-small` with freed memory kept and given back, in turns: each round's figures as RUN prints them.

    Start-up, which is what a run of a single step takes, is taken away.
    """
    found: dict[str, list[list[float]]] = {"kept": [], "freed": []}
    for _ in range(rounds):
        for side, rows in found.items():
            with tempfile.TemporaryDirectory() as folder:
                short, long = (
                    figures(RUN, "codo-small", json.dumps(fields_of("codo-small", n, False)), f"{folder}/{n}", side)
                    for n in (1, steps + 1)
                )
            rows.append([long[0] - short[0], long[1] - short[1], long[2]])
    return found


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--small", action="store_true", help="one small run; write nothing")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3, help="of the comparison of kept and given-back memory")
    parser.add_argument("--presets", nargs="*", default=list(PRESETS), choices=list(PRESETS))
    options = parser.parse_args(arguments)
    if options.small:
        measure("codo-small", 3, small=True)
        return
    from codo.jobs.bench.machine import machine  # its torch would be counted in the processes' load

    about = machine() | versions("torch", "timm")
    found = [measure(name, options.steps) for name in options.presets]
    kept = kept_memory(options.steps, options.rounds)
    worst = max(found, key=lambda each: abs(each["ratio"] - 1))
    row = Row(
        f"peak memory of {len(found)} presets against --dry-run",
        f"worst: {worst['preset']}, predicted {worst['predicted_mib']:.0f} MiB, taken {worst['taken_mib']:.0f}",
        100 * abs(worst["ratio"] - 1),
        WITHIN,
        at_most=True,
        unit="%",
    )
    lines = ["| preset | batch | predicted, MiB | taken, MiB | ratio |", "|---|---:|---:|---:|---:|"]
    lines += [
        f"| {f['preset']} | {f['batch']} | {f['predicted_mib']:.0f} | {f['taken_mib']:.0f} | {f['ratio']:.3f} |"
        for f in found
    ]
    medians = {side: [statistics.median(column) for column in zip(*rows, strict=True)] for side, rows in kept.items()}
    told = [
        f"{side}: {total / options.steps:.3f} s of processor time a step, {system / options.steps:.3f} of them the "
        f"kernel's, peak {peak:.0f} MiB"
        for side, (total, system, peak) in medians.items()
    ]
    lines += ["", f"{options.steps} steps each, one thread. Presets of full scale at a batch of {FULL_SCALE_BATCH}."]
    lines += ["", f"Freed memory, codo-small: {'; '.join(told)}."]
    more = {"presets": found, "kept_memory": kept}
    print(write("memory", "Peak memory", "python -m benchmarks.memory", about, [row], lines=lines, **more))


if __name__ == "__main__":
    main()
