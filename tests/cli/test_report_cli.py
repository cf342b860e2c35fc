"""`codo report`."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from codo.cli import main
from codo.cli.report import report_command
from tests.jobs.ablate.synthetic import make_factorial


def test_a_report_is_written_anew(tmp_path):
    results = make_factorial({(a,): [10.0 + 2 * a, 11.1 + 2 * a, 12.5 + 2.3 * a] for a in (False, True)}, ["A"])
    results.write(tmp_path / "results.json")
    done = CliRunner().invoke(report_command, [str(tmp_path)], catch_exceptions=False)
    assert done.exit_code == 0
    assert (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "Error: {} is not there: the folder of a grid"),
        ("{}", "Error: cannot read {}"),
        ("no json", "Error: cannot read {}"),
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
