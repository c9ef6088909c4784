# Two commands for a user: `make demo` and `make test`. Both build .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# sevenn needs another e3nn than mace-torch: an environment of its own.
SEVENNET := .venv-sevennet
SEVENNET_STAMP := $(SEVENNET)/.installed

.PHONY: help demo test test-sevennet test-slow test-gpu lint env clean

help:
	@echo "make demo       heat a molecule until its potential breaks, and see it caught (leaves demo/)"
	@echo "make test       the default test suite (under 8 minutes on two cores)"
	@echo "make test-sevennet  of these, the tests of SevenNet, in .venv-sevennet"
	@echo "make test-slow  the slow tests too"
	@echo "make test-gpu   the tests that need CUDA (and a CUDA build of torch)"
	@echo "make lint       ruff and mypy --strict"

demo: $(STAMP)
	rm -rf demo
	$(BIN)/uqcalc demo --output demo

# Backbones whose tests were all skipped, for want of their package, fail the run.
REQUIRED := mace orb aimnet2 torchani matgl metatomic
# Two processes of one thread each: small tensors gain nothing from a second thread.
# A file stays in one process, whose fixtures its tests share.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile
test: $(STAMP)
	$(PYTEST) $(REQUIRED:%=--require-run test_%)
	$(MAKE) test-sevennet

test-sevennet: $(SEVENNET_STAMP)
	$(SEVENNET)/bin/python -m pytest --require-run test_sevennet tests/backbones/test_sevennet.py

test-slow: $(STAMP)
	$(PYTEST) -m "not gpu and not network"

test-gpu: $(STAMP)
	$(BIN)/python -m pytest -m gpu

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
