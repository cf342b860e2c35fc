"""The library's API: light to import, complete, and each name with an example."""

from __future__ import annotations

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
