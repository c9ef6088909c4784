# Two commands for a user: `make demo` and `make test`. Both build .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# sevenn needs another e3nn than mace-torch: an environment of its own.
SEVENNET := .venv-sevennet
SEVENNET_STAMP := $(SEVENNET)/.installed

.PHONY: help demo test test-sevennet test-slow lint env clean

help:
	@echo "make demo       heat a molecule until its potential breaks, and see it caught (leaves demo/)"
	@echo "make test       the default test suite (under 8 minutes on two cores)"
	@echo "make test-sevennet  of these, the tests of SevenNet, in .venv-sevennet"
	@echo "make test-slow  the slow tests too"
	@echo "make lint       ruff and mypy --strict"

demo: $(STAMP)
	rm -rf demo
	$(BIN)/uqcalc demo --output demo

# Backbones whose tests were all skipped, for want of their package, fail the run.
REQUIRED := mace orb aimnet2 torchani matgl metatomic
test: $(STAMP)
	$(BIN)/python -m pytest $(REQUIRED:%=--require-run test_%)
	$(MAKE) test-sevennet

test-sevennet: $(SEVENNET_STAMP)
	$(SEVENNET)/bin/python -m pytest --require-run test_sevennet tests/backbones/test_sevennet.py

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
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[all,xtb,dev]"
	touch $(STAMP)

$(SEVENNET_STAMP): pyproject.toml constraints.txt
	test -x $(SEVENNET)/bin/python || $(PYTHON) -m venv $(SEVENNET)
	$(SEVENNET)/bin/python -m pip install --quiet --constraint constraints.txt torch
	$(SEVENNET)/bin/python -m pip install --quiet --constraint constraints.txt --editable ".[sevenn,dev]"
	touch $(SEVENNET_STAMP)

clean:
	rm -rf $(VENV) $(SEVENNET) demo
