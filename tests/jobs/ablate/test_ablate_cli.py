"""`codo ablate` on the command line."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from codo.cli.ablate import ablate_command
from codo.errors import CodoError
from codo.jobs.ablate.estimate import Estimate


def run(*arguments: object):
    return CliRunner().invoke(ablate_command, list(map(str, arguments)), catch_exceptions=False)


@pytest.fixture
def dry(write_grid, tmp_path, capsys):
    def show(*arguments: object, **keys) -> str:
        found = run(write_grid(include_none=True, **keys), "--dry-run", "--out", tmp_path / "out", *arguments)
        assert found.exit_code == 0
        return found.output + capsys.readouterr().out

    return show


def test_dry_run_shows_the_table_to_be_and_the_jobs_and_makes_nothing(dry, tmp_path):
    shown = dry("--no-timing", "--seeds", "4,5,6")
    for words in (
        "full (reference)",
        "not pretrained",
        "hierarchy=false",
        "3 seeds",
        "4 x n",
        "pretrain: 6 jobs for 6 uses, 6 to run",
        "transfer: 9 jobs for 9 uses, 9 to run",
    ):
        assert words in shown, words
    assert "time:" not in shown
    assert not (tmp_path / "out").exists()


def test_dry_run_times_each_config_once(dry, monkeypatch):
    timed = []

    def seconds(job) -> float:
        timed.append((job.kind, job.seed))
        return {"pretrain": 100.0, "transfer": 10.0}[job.kind]

    monkeypatch.setattr("codo.jobs.ablate.estimate._seconds", seconds)
    shown = dry("--jobs", 2)
    assert timed.count(("pretrain", 0)) == 2
    assert len(timed) <= 5
    assert "time: about 7 min 40 s one after the other (6 min 40 s pretraining, 1 min 00 s transfer)" in shown
    assert "3 min 50 s with --jobs 2" in shown


def test_the_estimate_is_of_real_steps(write_grid, tmp_path):
    from codo.jobs.ablate.estimate import estimate
    from codo.jobs.ablate.run import plan_grid

    grid = write_grid(design="rows", axes=None, rows={"a": {}}, reference="a", seeds=[0, 1])
    found = estimate(plan_grid(grid, tmp_path / "out"))
    assert isinstance(found, Estimate)
    assert found.timed == 2
    assert found.pretrain > 0
    assert found.transfer > 0
    assert found.total == found.pretrain + found.transfer


def test_mistakes_are_told(write_grid, tmp_path):
    with pytest.raises(CodoError, match="cannot read"):
        run(tmp_path / "absent.yaml", "--dry-run")
    for seeds in ("a", "1,1", "-1", "", "²", "0,00"):
        with pytest.raises(CodoError, match=r"--seeds .*: whole numbers"):
            run(write_grid(), "--dry-run", "--seeds", seeds)
    assert "goes with --dry-run" in run(write_grid(), "--no-timing").output
