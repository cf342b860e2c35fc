# Two commands for a fresh machine: `make demo` and `make test`. Each sets itself up in .venv first.
PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/.installed

.PHONY: help setup demo test lint clean

help:
	@echo "make demo   sample data -> preview -> pretraining -> transfer with and without it -> a table"
	@echo "make test   ruff, mypy and the tests"
	@echo "make lint   ruff and mypy alone"
	@echo "make clean  remove .venv and demo/"

setup: $(STAMP)

$(STAMP): pyproject.toml
	@echo "== set-up: a virtual environment in $(VENV) (once; some minutes, mostly torch)"
	$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "codo needs Python >= 3.11, this is " + sys.version.split()[0])'
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $(STAMP)

demo: $(STAMP)
	$(VENV)/bin/python -m codo.cli demo --out demo

lint: $(STAMP)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

test: lint
	$(VENV)/bin/python -m pytest -n auto --dist worksteal

clean:
	rm -rf $(VENV) demo
