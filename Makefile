# Two commands for a user: `make demo` and `make test`. Both build .venv first.
PYTHON ?= python3
# An interpreter of Python 3.12 for `make test-py312`; pyenv's, where there is one.
PYTHON312 ?= $(firstword $(wildcard $(HOME)/.pyenv/versions/3.12.*/bin/python) python3.12)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# sevenn needs another e3nn than mace-torch: an environment of its own.
SEVENNET := $(VENV)-sevennet
SEVENNET_STAMP := $(SEVENNET)/.installed
# Environments of tests that are not a part of `make test`: LAMMPS, i-PI, OpenMM and
# jobflow; fairchem-core and mattersim, which need another e3nn than mace-torch, too.
ENGINES := $(VENV)-engines
ENGINES_STAMP := $(ENGINES)/.installed
FAIRCHEM := $(VENV)-fairchem
FAIRCHEM_STAMP := $(FAIRCHEM)/.installed
# torch_sim needs Python 3.12.
TORCHSIM := $(VENV)-torchsim
TORCHSIM_STAMP := $(TORCHSIM)/.installed
FURTHER := $(ENGINES) $(FAIRCHEM) $(TORCHSIM)

.PHONY: help demo test test-browser test-sevennet test-engines test-fairchem test-torchsim \
  test-py312 test-portable test-slow test-all test-gpu lint docs env lock clean

help:
	@echo "make demo       heat a molecule until its potential breaks, and see it caught (leaves demo/)"
	@echo "make test       the default test suite (under 8 minutes on two cores)"
	@echo "make test-sevennet  of these, the tests of SevenNet, in .venv-sevennet"
	@echo "make test-engines   LAMMPS, i-PI, OpenMM and jobflow, in .venv-engines"
	@echo "make test-fairchem  the tests of fairchem and MatterSim, in .venv-fairchem (not in make test)"
	@echo "make test-torchsim  the tests of TorchSim, with Python 3.12, in .venv-torchsim (several GB)"
	@echo "make test-py312 the same with Python 3.12, in .venv-py312 (downloads several GB at first)"
	@echo "make test-portable  the numerical tests as on other processors and with two threads"
	@echo "make test-browser  the pages in a browser (installs Debian's chromium where it is missing)"
	@echo "make test-slow  the slow tests, which the default suite leaves out"
	@echo "make test-all   test, docs, test-portable, test-py312, test-slow, one after the other"
	@echo "make test-gpu   the tests that need CUDA (and a CUDA build of torch)"
	@echo "make lint       ruff and mypy --strict"
	@echo "make docs       the documentation as a site, in site/ (needs no network)"
	@echo "make lock       write constraints/ anew from what is installed"

demo: $(STAMP)
	rm -rf demo
	$(BIN)/uqcalc demo --output demo

# Backbones whose tests were all skipped, for want of their package, fail the run: the
# row of the table in tests/backbones/table.py, and the file of the backbone.
REQUIRED := mace chgnet orb aimnet2 torchani matgl metatomic
REQUIRE = --require-run test_$(1) --require-run "test_contract[$(1)]"
# Two processes of one thread each: small tensors gain nothing from a second thread.
# A file stays in one process, whose fixtures its tests share.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile
test: $(STAMP)
	$(PYTEST) $(foreach name,$(REQUIRED),$(call REQUIRE,$(name)))
	$(MAKE) test-sevennet

test-sevennet: $(SEVENNET_STAMP)
	$(SEVENNET)/bin/python -m pytest $(call REQUIRE,sevennet) -k sevennet \
	  tests/backbones/test_sevennet.py tests/backbones/test_contract.py

# The programs that other people's runs are made with; not part of `make test`.
test-engines: $(ENGINES_STAMP)
	OMP_NUM_THREADS=1 $(ENGINES)/bin/python -m pytest $(foreach name,lammps ipi openmm,--require-run test_$(name)) \
	  -k "lammps or ipi or openmm or workflows or feature" \
	  tests/engines tests/annotating/test_featurefile.py tests/test_examples.py tests/test_docs.py

# Not a part of `test`: the environment alone takes minutes and 3 GB.
test-fairchem: $(FAIRCHEM_STAMP)
	OMP_NUM_THREADS=1 $(FAIRCHEM)/bin/python -m pytest \
	  $(foreach name,fairchem mattersim,$(call REQUIRE,$(name))) -k "fairchem or mattersim" \
	  tests/backbones/test_fairchem.py tests/backbones/test_mattersim.py \
	  tests/backbones/test_contract.py

# Not a part of `make test`: with Python 3.12 torch is a download of several GB.
test-torchsim: $(TORCHSIM_STAMP)
	OMP_NUM_THREADS=1 $(TORCHSIM)/bin/python -m pytest \
	  $(foreach name,model orb guard,--require-run test_torchsim_$(name)) \
	  tests/torchsim tests/test_examples.py tests/test_docs.py -k "torchsim or many_systems"

test-py312:
	$(MAKE) test PYTHON=$(PYTHON312) VENV=.venv-py312

# See tests/portable.py for the settings and for the files that are left out.
test-portable: $(STAMP)
	$(BIN)/python tests/portable.py

test-slow: $(STAMP)
	$(PYTEST) -m "slow and not gpu and not network"

# One leg at a time, since each uses all cores. The first leg that fails ends the run.
ALL := test docs test-portable test-py312 test-slow
test-all:
	@for leg in $(ALL); do echo "== make $$leg"; $(MAKE) $$leg || exit 1; done
	@echo "passed: $(ALL)"

# Debian's browser and driver; the tests block the network.
test-browser: $(STAMP)
	command -v chromedriver > /dev/null || apt-get install --yes chromium chromium-driver
	$(BIN)/python -m pytest -m browser --require-run test_browser tests/viewing

test-gpu: $(STAMP)
	$(BIN)/python -m pytest -m gpu

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Every warning is an error. The notice of the theme's authors is about its next release.
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

env: $(STAMP)

# What is installed is locked as it is. For newer releases, begin without the old
# files: `make clean; rm constraints/*.txt; make lock`. With Python 3.12:
# `make lock PYTHON=python3.12 VENV=.venv-py312`.
lock: $(STAMP) $(SEVENNET_STAMP)
	$(BIN)/python constraints/lock.py
	$(SEVENNET)/bin/python constraints/lock.py
	touch $(STAMP) $(SEVENNET_STAMP)
	@for folder in $(FURTHER); do test -f $$folder/.installed || continue; \
	   $$folder/bin/python constraints/lock.py && touch $$folder/.installed || exit 1; done

# An interpreter that the user names must be the environment's.
RELEASE := -c 'import sys; print("py%d%d" % sys.version_info[:2])'
.PHONY: same-python
same-python:
ifneq ($(origin PYTHON),file)
	@wanted=$$($(PYTHON) $(RELEASE)) && for folder in $(VENV) $(SEVENNET) $(ENGINES) $(FAIRCHEM); do \
	   test -x $$folder/bin/python || continue; found=$$($$folder/bin/python $(RELEASE)); \
	   test $$found = $$wanted || { echo "$$folder has $$found, $(PYTHON) is $$wanted:" \
	     "remove $$folder or name another folder, VENV=.venv-$$wanted"; exit 1; }; done
endif

# $(call install,FOLDER,SUFFIX,EXTRAS): build an environment held to its lock, where
# this Python has one. torch goes in first and alone: packages that depend on it then
# leave it as it is. The stamp names the lock and the extras; constraints/lock.py reads
# it, and a test there says what differs.
define install
	test -x $(1)/bin/python || $(PYTHON) -m venv $(1)
	@lock=$$($(1)/bin/python $(RELEASE))$(2).txt; held=; \
	 if [ -f constraints/$$lock ]; then held="--constraint constraints/$$lock"; \
	 else echo "constraints/$$lock does not exist: the newest releases are installed"; fi; \
	 set -ex; \
	 $(1)/bin/python -m pip install --quiet $$held torch; \
	 $(1)/bin/python -m pip install --quiet $$held --editable ".[$(3)]"; \
	 echo "$$lock $(3)" > $(1)/.installed
endef

$(STAMP): pyproject.toml $(wildcard constraints/*.txt) | same-python
	$(call install,$(VENV),,all$(comma)xtb$(comma)table$(comma)ray$(comma)report$(comma)browser$(comma)dev$(comma)docs)

$(SEVENNET_STAMP): pyproject.toml $(wildcard constraints/*.txt) | same-python
	$(call install,$(SEVENNET),-sevennet,sevenn$(comma)dev)

$(ENGINES_STAMP): pyproject.toml $(wildcard constraints/*.txt) | same-python
	$(call install,$(ENGINES),-engines,mace$(comma)lammps$(comma)ipi$(comma)openmm$(comma)hdf5$(comma)jobflow$(comma)dev)

$(FAIRCHEM_STAMP): pyproject.toml $(wildcard constraints/*.txt) | same-python
	$(call install,$(FAIRCHEM),-fairchem,fairchem$(comma)mattersim$(comma)dev)
	# mattersim names torchvision and does not import it; a build for another torch than
	# the installed one (CPU beside CUDA) breaks the import of torchmetrics
	$(FAIRCHEM)/bin/python -c "import torchvision" 2> /dev/null || \
	  $(FAIRCHEM)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio

$(TORCHSIM_STAMP): PYTHON = $(PYTHON312)
$(TORCHSIM_STAMP): pyproject.toml $(wildcard constraints/*.txt)
	$(call install,$(TORCHSIM),-torchsim,torchsim$(comma)mace$(comma)orb$(comma)dev)

comma := ,

clean:
	rm -rf .venv .venv-sevennet .venv-engines .venv-fairchem .venv-torchsim \
	  .venv-py312 .venv-py312-sevennet .venv-py312-engines .venv-py312-fairchem demo site
