"""How long one waits: for `codo --help`, for `import codo`, and for the first step of the small preset.

    python -m benchmarks.startup            # some minutes
    python -m benchmarks.startup --small    # fewer processes, and no first step; writes nothing

Each measurement is a process of its own, from its start to its end; the files are in the page cache (a warm disk), and
the sample data is rendered and decoded beforehand. Sides in turns, medians.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from benchmarks.results_file import Row, facts, table, versions, write

COMMANDS = {
    "codo --help": ["-m", "codo.cli", "--help"],
    "import codo": ["-c", "import codo"],
    "python itself": ["-c", "pass"],
}
FIRST_STEP = ["-m", "benchmarks.startup", "--first-step"]
LIMITS = {"codo --help": 0.4, "import codo": 0.4}
"""Seconds."""
FIRST_STEP_LIMIT = 10.0
FIRST_STEP_NOTE = (
    "of what a step does not need, torch._dynamo takes longest; torchvision's RoIAlign imports it, torch's optimizers "
    "do too, so leaving it out means patching both"
)


def run_process(arguments: list[str]) -> tuple[float, float, str]:
    """Run python; return wall seconds, processor seconds, and what it printed."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=True)
    wall = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stdout


def first_step() -> dict[str, float]:
    """Take the first step of the small preset in this process; say what each part of the way took, in seconds."""
    phases: dict[str, float] = {}
    last = time.perf_counter()

    def phase(name: str) -> None:
        nonlocal last
        now = time.perf_counter()
        phases[name], last = now - last, now

    import torch

    phase("import torch")
    import torch._dynamo  # noqa: F401  # torchvision's RoIAlign and torch's optimizers import it in any case

    phase("import torch._dynamo")
    import torchvision  # noqa: F401  # what is timed is the import

    phase("import torchvision")
    import timm  # noqa: F401  # likewise

    phase("import timm")
    from codo.config import load_pretrain_config
    from codo.jobs.pretrain.build import build_dataset, find_sources
    from codo.jobs.pretrain.run import check_parts
    from codo.jobs.pretrain.training import Run
    from codo.parts import Parts
    from codo.runs.world import World

    phase("import codo's jobs")
    config = load_pretrain_config()
    check_parts(config, Parts(), World())
    phase("config, and its check")
    sources = find_sources(config)
    phase("listing the images")
    dataset = build_dataset(config, sources)
    phase("opening the cache")
    run = Run(config, dataset)
    phase("building the model")
    batch = next(run.batches(1))
    phase("first batch")
    run.advance(batch)
    phase("first step")
    return phases


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--small", action="store_true", help="fewer processes, no first step; write nothing")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--first-step", action="store_true", help=argparse.SUPPRESS)  # what a process of ours does
    arguments = parser.parse_args()
    if arguments.first_step:
        print(json.dumps(first_step()))
        return
    from codo.jobs.bench.machine import machine, peaks
    from codo.jobs.bench.timing import in_turns

    rounds = 1 if arguments.small else arguments.rounds
    about = machine() | peaks(rounds=1 if arguments.small else 5) | versions("torch", "torchvision", "timm")
    print(about, flush=True)
    used: dict[str, list[float]] = {name: [] for name in COMMANDS}

    def side(name: str) -> Callable[[], None]:
        return lambda: used[name].append(run_process(COMMANDS[name])[1])

    times = in_turns({name: side(name) for name in COMMANDS}, rounds=rounds)
    processor = {name: statistics.median(found[1:]) for name, found in used.items()}  # without the warm-up
    rows = [
        Row(
            name,
            f"{times.median(name):.2f} s, {processor[name]:.2f} s of processor time; python itself "
            f"{times.median('python itself'):.2f} s",
            times.median(name),
            limit,
            at_most=True,
            unit="s",
        )
        for name, limit in LIMITS.items()
    ]
    more: dict[str, Any] = {"seconds": dict(times.seconds), "processor_seconds": processor}
    lines = [f"Medians of {rounds} rounds in turns, each in a process of its own."]
    if not arguments.small:
        run_process(FIRST_STEP)  # renders and decodes the sample data, and warms the disk
        walls, processors, found = [], [], []
        for _ in range(3):
            wall, spent, printed = run_process(FIRST_STEP)
            walls.append(wall)
            processors.append(spent)
            found.append(json.loads(printed.splitlines()[-1]))
        phases = {name: statistics.median(one[name] for one in found) for name in found[0]}
        wall = statistics.median(walls)
        work = "first step of the small preset, from the start of the process"
        said = f"{wall:.1f} s, {statistics.median(processors):.1f} s of processor time"
        rows.append(Row(work, said, wall, FIRST_STEP_LIMIT, at_most=True, unit="s", note=FIRST_STEP_NOTE))
        more["first_step"] = {"seconds": walls, "phases": phases}
        lines += [
            "",
            f"Where the first step's time goes (medians of {len(walls)} processes):",
            "",
            "| | s |",
            "|---|---:|",
        ]
        lines += [f"| {name} | {seconds:.2f} |" for name, seconds in phases.items()]
        lines += [f"| starting and ending python | {wall - sum(phases.values()):.2f} |"]
    if arguments.small:
        print("\n".join([*table(facts(rows)), "", *lines]))
        return
    print(
        write(
            "startup",
            "How long one waits at the start",
            "python -m benchmarks.startup",
            about,
            rows,
            lines=lines,
            **more,
        )
    )


if __name__ == "__main__":
    main()
