# Two commands for a user: `make demo` and `make test`. Both build .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help demo test test-slow lint env clean

help:
	@echo "make demo       heat a molecule until its potential breaks, and see it caught (leaves demo/)"
	@echo "make test       the default test suite (under 8 minutes on two cores)"
	@echo "make test-slow  the slow tests too"
	@echo "make lint       ruff and mypy --strict"

demo: $(STAMP)
	rm -rf demo
	$(BIN)/uqcalc demo --output demo

test: $(STAMP)
	$(BIN)/python -m pytest

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m "not gpu and not network"

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

env: $(STAMP)

# torch goes in first and alone: packages that depend on it then leave it as it is.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[mace,chgnet,xtb,dev]"
	touch $(STAMP)

clean:
	rm -rf $(VENV) demo
