"""The benchmarks run; what they write down is read back into one table with a pass or a miss a row."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import benchmarks.__main__ as all_of_them
from benchmarks import results_file
from benchmarks.evaluation import by_pycocotools, measure, rows_of, workload
from benchmarks.pictures import link_pictures, write_pictures
from benchmarks.results_file import Row, facts, table, write
from benchmarks.scaling import draw, exponent, work
from codo.data.images import list_images
from codo.jobs.transfer.coco_metrics import coco_figures
from tests.conftest import REPOSITORY

# benchmarks.memory starts processes that each import torch; test_step.py has its parts.
CHEAP = [name for name in ("startup", "evaluation", "scaling", "views", "step", "data", "finetune")
         if importlib.util.find_spec(f"benchmarks.{name}")]  # fmt: skip


@pytest.fixture
def results(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(results_file, "RESULTS", tmp_path)
    monkeypatch.setattr(all_of_them, "RESULTS", tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", CHEAP)
def test_a_small_run_ends_well_and_writes_nothing(name, monkeypatch, capsys):
    def state():
        return {path: path.stat().st_mtime_ns for path in (REPOSITORY / "benchmarks" / "results").rglob("*")}

    before = state()
    monkeypatch.setattr(sys, "argv", [name, "--small"])
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("CODO_CACHE", os.environ["CODO_CACHE"])  # back to what it was, afterwards
    monkeypatch.chdir(REPOSITORY)
    importlib.import_module(f"benchmarks.{name}").main()
    printed = capsys.readouterr().out
    assert re.search(r"\d (x|s|ms|MiB|%)\b", printed), "figures"
    assert state() == before


def test_what_torchrun_starts_times_its_step(tmp_path):
    write_pictures(tmp_path / "pictures", 4, 80)
    work(tmp_path / "found.json", tmp_path / "pictures", True, 2)
    assert len(json.loads((tmp_path / "found.json").read_text())) == 2


def test_a_row_passes_or_misses():
    rows = [
        Row("fast", "8 s against 2 s", 4.0, 3.0),
        Row("slow", "8 s against 4 s", 2.0, 3.0, note="tried x; it stopped at y"),
        Row("equal", "", 0.0, 0.0, at_most=True, unit=""),
        Row("share", "", 3.5, 3.0, at_most=True, unit="%"),
    ]
    assert [row.met for row in rows] == [True, False, True, False]
    lines = table(facts(rows))
    assert lines[2] == "| fast | 8 s against 2 s | 4 x | ≥ 3 x | pass |"
    assert lines[3].endswith("| 2 x | ≥ 3 x | **miss**: tried x; it stopped at y |")
    assert "| ≤ 0" in lines[4]
    assert lines[4].endswith("pass |")
    assert lines[5].endswith("| 3.5 % | ≤ 3 % | **miss** |")


def test_results_are_written_and_joined(results, capsys, monkeypatch):
    machine = {"processor": "P", "cores": 2, "load": 0.1, "fp32_gflops": 123.456}
    text = write("views", "Views", "python -m benchmarks.views", machine, [Row("a view", "", 4.0, 3.0)], lines=["more"])
    assert text == (results / "views.md").read_text()
    assert "fp32_gflops 123.5" in text
    assert text.endswith("more\n")
    write("own", "Own", "python -m own", machine, [Row("another", "", 1.0, 3.0)])
    write("evaluation", "E", "python -m benchmarks.evaluation", machine, [])
    (results / "other.json").write_text("[1]")
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--table-only"])
    all_of_them.main()
    printed, page = capsys.readouterr().out, (results / "README.md").read_text()
    assert "| a view |" in printed
    assert "| a view ([views](views.md)) |" in page
    assert "1 of 2 targets met, 1 missed." in printed
    assert page.index("- [evaluation]") < page.index("- [views]") < page.index("- [own]")
    assert "P, 2 cores, load 0.1" in page


def test_a_benchmark_that_fails_does_not_stop_the_others(results, monkeypatch, capfd):
    monkeypatch.setattr(all_of_them, "NAMES", ("absent", "startup"))
    ran = []

    def start(command):
        ran.append(command[-1])
        return subprocess.CompletedProcess(command, 1 if command[-1].endswith("absent") else 0)

    monkeypatch.setattr(all_of_them.subprocess, "run", start)
    for name in ("absent", "startup"):
        write(name, name, f"python -m benchmarks.{name}", {}, [Row(f"old row of {name}", "", 4.0, 3.0)])
    monkeypatch.setattr(sys, "argv", ["benchmarks"])
    with pytest.raises(SystemExit, match="failed: absent"):
        all_of_them.main()
    assert ran == ["benchmarks.absent", "benchmarks.startup"]
    assert "benchmarks.absent FAILED (exit code 1)" in capfd.readouterr().out
    page = (results / "README.md").read_text()
    assert "old row of startup" in page
    assert "old row of absent" not in page


def test_only_known_benchmarks_are_asked_for(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmarks", "speed"])
    with pytest.raises(SystemExit) as end:
        all_of_them.main()
    assert end.value.code == 2
    assert "no benchmark speed; there are evaluation" in capsys.readouterr().err


def test_the_two_sides_of_the_evaluation_agree():
    truth, found = workload("segm", 8)
    assert any(a["iscrowd"] for own in workload("bbox", 40)[0].annotations.values() for a in own)
    assert len(found) == 800
    ours = coco_figures(truth, found, kind="segm", engine="hotcoco", breakdown=False).stats
    assert np.abs(ours - by_pycocotools(truth, found, "segm")()).max() == 0
    assert 0.01 < ours[0] < 0.99
    rows = rows_of(measure("bbox", 8, 2))
    assert rows[0].value > 1
    assert (rows[1].value, rows[1].met) == (0, True)


def test_the_exponent_is_the_slope_of_the_logarithms():
    assert exponent([64, 96, 128], [64**1.5, 96**1.5, 128**1.5]) == pytest.approx(1.5)
    assert exponent([1, 10, 100], [2.0, 2.0, 2.0]) == pytest.approx(0, abs=1e-12)


def test_a_sweep_is_drawn(tmp_path):
    point = {"name": "batch", "axis": "samples", "values": [1, 2], "seconds": [0.1, 0.2], "exponent": 1.0,
             "rounds": {"1": [0.1, 0.11], "2": [0.2, 0.3]}}  # fmt: skip
    draw(point, tmp_path)
    assert (tmp_path / "batch.png").read_bytes().startswith(b"\x89PNG")


def test_linked_pictures_are_listed_as_so_many(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.pictures.LINKS", 700)
    link_pictures(tmp_path / "many", 2100, 16)
    assert len(list_images(tmp_path / "many")) == 2100
    write_pictures(tmp_path / "few", 3, 16)
    assert len(list_images(tmp_path / "few")) == 3
