"""Write the table of `spine.sh` from the run folders: AP on cards val by epoch, with and without codo."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

RUNS = Path("runs/spine")


def curves(name: str) -> dict[int, dict[float, float]]:
    """Read seed -> epoch -> AP of the finished transfers."""
    found = {}
    for file in sorted(RUNS.glob(f"{name}-*/summary.json")):
        summary = json.loads(file.read_text())
        found[summary["seed"]] = {point["epoch"]: point["AP"] for point in summary["curve"]}
    return found


def spread(values: list[float]) -> str:
    """Write mean and standard deviation."""
    deviation = f" +- {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.1f}{deviation}"


def main() -> None:
    """Print Markdown: one row a start, one column an evaluation; then the paired differences."""
    none, codo = curves("none"), curves("codo")
    epochs = sorted(next(iter(none.values())))
    print("| weights | seeds | " + " | ".join(f"AP, epoch {epoch:g}" for epoch in epochs) + " |")
    print("|---" * (len(epochs) + 2) + "|")
    for name, runs in {"none": none, "codo": codo}.items():
        cells = [
            f"{spread([run[e] for run in runs.values()])} ({', '.join(f'{run[e]:.1f}' for run in runs.values())})"
            for e in epochs
        ]
        print(f"| {name} | {', '.join(map(str, runs))} | " + " | ".join(cells) + " |")
    both = sorted(none.keys() & codo.keys())
    cells = [spread([codo[s][e] - none[s][e] for s in both]) for e in epochs]
    print(f"| codo - none, paired | {', '.join(map(str, both))} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
