"""Examples in docstrings run, and the README names what exists."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re

import codo
from codo.cli import COMMANDS
from tests.conftest import REPOSITORY


def test_docstring_examples():
    attempted = 0
    for module in pkgutil.walk_packages(codo.__path__, "codo."):
        if module.name.endswith("__main__"):
            continue
        flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
        result = doctest.testmod(importlib.import_module(module.name), optionflags=flags)
        assert result.failed == 0, module.name
        attempted += result.attempted
    assert attempted >= 10


def test_the_readme_names_every_command_and_no_other():
    text = (REPOSITORY / "README.md").read_text()
    named = set(re.findall(r"\bcodo ([a-z-]+)", "\n".join(re.findall(r"```bash\n(.*?)```", text, re.DOTALL))))
    assert named == set(COMMANDS)


def test_links_in_the_documents_lead_somewhere():
    patterns = ("*.md", "docs/*.md", "experiments/**/*.md", "benchmarks/**/*.md")
    pages = [page for pattern in patterns for page in REPOSITORY.glob(pattern)]
    assert REPOSITORY / "experiments/results/README.md" in pages
    for page in pages:
        for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)#?([^)\s]*)\)", page.read_text()):
            file = page.parent / target if target else page
            assert file.exists(), f"{page.name}: {target}"
            assert not anchor or anchor in _anchors(file), f"{page.name}: {target}#{anchor}"


def _anchors(page):
    """Name the headings of a page as GitHub does."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
