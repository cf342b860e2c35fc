"""`codo report`."""

from __future__ import annotations

import csv
import json
import math

import pytest
from click.testing import CliRunner

from codo.cli import main
from codo.cli.report import report_command
from codo.jobs.ablate.results import Results
from tests.jobs.ablate.synthetic import make_factorial, make_results


def test_a_report_is_written_anew(tmp_path):
    results = make_factorial({(a,): [10.0 + 2 * a, 11.1 + 2 * a, 12.5 + 2.3 * a] for a in (False, True)}, ["A"])
    results.write(tmp_path / "results.json")
    done = CliRunner().invoke(report_command, [str(tmp_path)], catch_exceptions=False)
    assert done.exit_code == 0
    assert (tmp_path / "report.html").exists()


def test_another_question_of_the_same_cells_is_marked_as_such(tmp_path):
    results = make_results()
    results.write(tmp_path / "results.json")
    for given in ([], ["--reference", "no jitter", "--metric", "AP75"], ["--reference", results.reference]):
        done = CliRunner().invoke(report_command, [str(tmp_path), *given], catch_exceptions=False)
        assert done.exit_code == 0
        mark = f"asked after the fact: the grid's own comparison is to {results.reference} by {results.metric}"
        asked = len(given) == 4
        assert (mark in " ".join(done.output.split())) == asked
        for name in ("report.html", "table.md", "table.tex"):
            assert ("asked after the fact" in (tmp_path / name).read_text()) == asked, name
        with (tmp_path / "differences.csv").open() as file:
            assert {line["against"] for line in csv.DictReader(file)} == {given[1] if given else results.reference}
        assert f"| {'AP75' if asked else results.metric} | n |" in (tmp_path / "table.md").read_text()
    assert Results.read(tmp_path / "results.json") == results


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            ["--reference", "no jiter"],
            "--reference no jiter: the results have none of this name; did you mean 'no jitter'?",
        ),
        (
            ["--metric", "loss"],
            "--metric loss: the results have none of this name; there are AP, AP50, AP75, APs, curve_area",
        ),
        (["--metric", "probe/rank"], "--metric probe/rank: the results have none of this name; there are AP"),
    ],
)
def test_a_row_or_number_that_is_not_there_is_one_line_and_writes_nothing(tmp_path, capfd, given, said):
    make_results().write(tmp_path / "results.json")
    with pytest.raises(SystemExit) as stopped:
        main(["report", str(tmp_path), *given])
    assert stopped.value.code == 2
    assert said in capfd.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def edited(change):
    results = make_results().model_dump()
    change(results)
    return json.dumps(results)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "Error: {} is not there: the folder of a grid"),
        ("{}", "Error: cannot read {}"),
        ("no json", "Error: cannot read {}"),
        (edited(lambda r: r["rows"][1].update(name="other")), "Error: cannot read {} as results: cells: "),
        (edited(lambda r: r["cells"].pop()), "Error: cannot read {} as results: cells: none of row "),
        (
            edited(lambda r: r["cells"].append(r["cells"][0])),
            "Error: cannot read {} as results: cells: one too many of",
        ),
        (edited(lambda r: r.update(reference="other")), "Error: cannot read {} as results: reference: no row"),
        (
            edited(lambda r: r["cells"][0].update(seconds={"transfer": math.nan})),
            "Error: cannot read {} as results: cells.0.seconds.transfer: ",
        ),
    ],
)
def test_what_is_not_a_grid_is_one_line_and_exit_code_2(tmp_path, capfd, content, said):
    if content is not None:
        (tmp_path / "results.json").write_text(content)
    with pytest.raises(SystemExit) as stopped:
        main(["report", str(tmp_path)])
    assert stopped.value.code == 2
    error = capfd.readouterr().err
    assert error.startswith(said.format(tmp_path / "results.json"))
    assert error.count("\n") == 1
