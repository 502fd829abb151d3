# `make demo` and `make test` do all of their set-up. They need Python 3.10 or newer with venv (Debian: python3-venv).

PYTHON ?= python3
BIN := .venv/bin
# The files of tests are shared between processes, each with clusters of its own. `make test SHARED=` does one at a time.
SHARED ?= --numprocesses auto --dist loadfile --no-loadscope-reorder

# A release of torch and its build, for `make torch`: the build for CUDA is several gigabytes, and only taken where asked.
VERSION ?= 2.13.0
BUILD ?= cpu

.PHONY: help venv demo test lint machine unit torch soak clean

help:
	@echo "make demo   train the example, on the Slurm that answers here or on this machine alone"
	@echo "make test   run the linters and all tests; the tests on Slurm need root and start clusters of their own"
	@echo "make lint   run the linters"
	@echo "make unit   run the tests that need neither Slurm nor workers; 80 seconds on two cores"
	@echo "make torch  run the tests without Slurm with another torch: VERSION=2.4.1 PYTHON=python3.12 BUILD=cpu|cuda"
	@echo "make soak   repeat what could be a race"
	@echo "make venv   make .venv for development"
	@echo "make clean  remove what these have made"

# An environment is as new as its stamp. make_venv.sh updates it in place, so the two can share it.
.venv/.demo: pyproject.toml
	@tools/make_venv.sh $(PYTHON) examples
	@touch $@

.venv/.dev: pyproject.toml
	@tools/make_venv.sh $(PYTHON) dev,examples
	@touch $@ .venv/.demo

venv: .venv/.dev

demo: .venv/.demo
	@tools/demo.sh

# The linters need one CPU, and the installations mostly wait.
test:
	@$(MAKE) --no-print-directory --jobs=2 --output-sync=line lint machine
	$(BIN)/pytest -m "not soak" $(SHARED)

machine:
	@tools/install_slurm.sh
	@tools/install_browser.sh

lint: venv
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

unit: venv
	$(BIN)/pytest -m "not soak" --numprocesses 4 --dist worksteal tests/unit

# By hand, not in continuous integration. An environment for each release, build and Python, below .venvs.
torch:
	@tools/test_torch.sh $(PYTHON) $(VERSION) $(BUILD) $(ARGS)

soak: venv machine
	@$(BIN)/pip install --quiet --editable ".[fuzz]" || echo "make: without atheris nothing is fuzzed" >&2
	$(BIN)/pytest -m soak

clean:
	rm -rf .venv .venvs build dist logs checkpoints .mypy_cache .pytest_cache .ruff_cache .hypothesis
