"""Every benchmark in turn, and the table of all results: what `make bench` calls.

    python -m benchmarks                     # all; half an hour
    python -m benchmarks views step          # some
    python -m benchmarks --table-only        # the table of results/*.json, and results/README.md

Each runs in a process of its own; one that fails is reported and does not stop the others.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.results_file import RESULTS, table
from codo.runs.console import duration
from codo.runs.files import write_text

NAMES = ("evaluation", "views", "step", "finetune", "data", "memory", "scaling", "startup")
"""The modules, in the order in which they run."""


def run(names: Sequence[str]) -> list[str]:
    """Run benchmarks; list what failed."""
    failed = []
    for name in names:
        print(f"== benchmarks.{name}", flush=True)
        start = time.monotonic()
        code = subprocess.run([sys.executable, "-m", f"benchmarks.{name}"]).returncode
        if code:
            failed.append(name)
        ended = "took" if code == 0 else f"FAILED (exit code {code}) after"
        print(f"== benchmarks.{name} {ended} {duration(time.monotonic() - start)}", flush=True)
    return failed


def read_results(folder: Path) -> dict[str, dict[str, Any]]:
    """Read every results file that has rows: name -> content, in the order of `NAMES`."""
    found = {}
    for file in folder.glob("*.json"):
        content = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(content, dict) and "rows" in content:
            found[file.stem] = content
    return {
        name: found[name] for name in sorted(found, key=lambda n: (NAMES.index(n) if n in NAMES else len(NAMES), n))
    }


def joined(results: dict[str, dict[str, Any]], *, links: bool) -> list[str]:
    """Write the rows of all results as one Markdown table, and how many met their targets."""
    rows = []
    for name, content in results.items():
        link = f" ([{name}]({name}.md))" if links else ""
        rows += [{**row, "work": row["work"] + link} for row in content["rows"]]
    met = sum(row["met"] for row in rows)
    return [*table(rows), "", f"{met} of {len(rows)} targets met, {len(rows) - met} missed."]


def page(results: dict[str, dict[str, Any]]) -> str:
    """Write results/README.md."""
    sources = []
    for name, content in results.items():
        about = content["machine"]
        facts = f"{about.get('processor', '?')}, {about.get('cores', '?')} cores, load {about.get('load', '?')}"
        sources.append(f"- [{name}]({name}.md): `{content['command']}`; {facts}")
    head = [
        "# Results",
        "",
        "`make bench`, which writes this page. A miss stays in the table, with what was tried and why it stopped. What",
        "the table leaves out is in the pages, the raw times in the JSON files beside them.",
        "",
    ]
    return "\n".join([*head, *joined(results, links=True), "", *sources]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; all if left out")
    parser.add_argument("--table-only", action="store_true", help="run nothing; join what is there")
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.names) - set(NAMES))
    if unknown:
        parser.error(f"no benchmark {', '.join(unknown)}; there are {', '.join(NAMES)}")
    start = time.monotonic()
    failed = [] if arguments.table_only else run(arguments.names or NAMES)
    results = {name: content for name, content in read_results(RESULTS).items() if name not in failed}  # no old rows
    write_text(RESULTS / "README.md", page(results))
    print("\n".join(["", *joined(results, links=False)]))
    if not arguments.table_only:
        print(f"{duration(time.monotonic() - start)} in all; written to {RESULTS / 'README.md'}")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
