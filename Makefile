# For a fresh machine: `make demo`, `make test` and `make bench`. Each sets itself up in .venv first.
PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/.installed
BENCH_STAMP := $(VENV)/.installed-bench

.PHONY: help setup demo test lint bench clean

help:
	@echo "make demo   sample data -> preview -> pretraining -> transfer with and without it -> a table"
	@echo "make test   ruff, mypy and the tests"
	@echo "make lint   ruff and mypy alone"
	@echo "make bench  every benchmark beside its peers, half an hour; the table with a pass or a miss a row"
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

bench: $(BENCH_STAMP)
	$(VENV)/bin/python -m benchmarks

$(BENCH_STAMP): $(STAMP)
	@echo "== set-up: the benchmarks' peers"
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,bench]'
	@touch $(BENCH_STAMP)

clean:
	rm -rf $(VENV) demo
