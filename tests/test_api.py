"""The library's API: light to import, complete, and each name with an example."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import codo


def test_importing_codo_imports_no_torch():
    code = "import sys, codo; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1]).returncode == 0


def test_the_api_is_what_dir_shows():
    assert dir(codo) == sorted(codo.__all__)
    with pytest.raises(AttributeError, match="no attribute 'pretend'"):
        codo.pretend  # noqa: B018


@pytest.mark.parametrize("name", [name for name in codo.__all__ if name != "__version__"])
def test_every_name_of_the_api_has_an_example(name):
    documented = getattr(codo, name).__doc__ or ""
    assert "Example:\n" in documented, "tests/test_docs.py runs them"
    assert ">>> " in documented


@pytest.mark.parametrize("name", codo.__all__)
def test_whatever_takes_a_path_takes_its_text_too(name):
    function = getattr(codo, name)
    if inspect.isfunction(function):
        for parameter in inspect.signature(function).parameters.values():
            words = re.findall(r"\w+", str(parameter.annotation))
            assert "Path" not in words or "str" in words, f"{name}({parameter})"


def test_paths_are_given_as_text(tiny, tmp_path, capsys):
    file, nowhere = str(tmp_path / "some.yaml"), str(tmp_path / "nowhere")
    Path(file).write_text("seed: 7\n")
    assert codo.load_pretrain_config(file=file).seed == 7
    assert codo.load_transfer_config(file=file).seed == 7
    config = tiny(**{"optim.epochs": 1, "data.limit": 4})
    run = str(codo.pretrain(config, str(tmp_path / "run")).path)
    assert codo.resume_pretrain(run, {"optim.epochs": 2}).summary["epochs"] == 2
    sheet = str(tmp_path / "sheet.png")
    codo.probe(run, foregrounds=config.data.foregrounds, backgrounds=config.data.backgrounds, instances=4, sheet=sheet)
    assert Path(sheet).is_file()
    for refused in (
        lambda: codo.resume_transfer(nowhere),
        lambda: codo.compare_transfers([nowhere, nowhere]),
        lambda: codo.transfer(codo.load_transfer_config(), file),
        lambda: codo.transfer_seeds(codo.load_transfer_config(), [0], file),
    ):
        with pytest.raises(codo.CodoError):
            refused()
