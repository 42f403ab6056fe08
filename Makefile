# `make demo` and `make test` work on a fresh checkout: each makes the virtual environment when it is missing.
PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=
DEMO_ARGS ?=
DEMO_DIR ?= outputs/demo/latest
TEST_ARGS ?=
CAMPAIGN_ARGS ?=
CHECK_ARGS ?=
NEWEST_PYTHON ?= python3.13
NEWEST_VENV ?= .venv-newest
BIN := $(VENV)/bin
READY := $(VENV)/.latentrobust-ready

.DEFAULT_GOAL := help
.PHONY: help setup demo test coverage newest campaign lint format notebooks docs docs-check gallery clean

help:  ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 12
	@echo "variables: VENV=folder of an existing environment, PIP_ARGS=options for pip, DEMO_DIR=folder of the demo, DEMO_ARGS / TEST_ARGS / CAMPAIGN_ARGS / CHECK_ARGS=passed on"

setup: $(READY)  ## create the virtual environment and install what is missing
	@echo "ready: . $(BIN)/activate makes python the one with latentrobust; make demo shows what it does"

# torch is pinned only where there is none yet, so that an environment with a CUDA build keeps it.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "latentrobust needs Python 3.11 or newer; name one with PYTHON=" >&2; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@if $(BIN)/python -c 'import torch' 2>/dev/null; then grep -v '^torch==' constraints.txt; else cat constraints.txt; fi > $(VENV)/latentrobust-constraints.txt
	$(BIN)/python -m pip install -q $(PIP_ARGS) -c $(VENV)/latentrobust-constraints.txt -e '.[dev]'
	@touch $@

demo: $(READY)  ## learn a set from real digits; train, attack, certify classifiers over it (4 to 9 minutes on two cores; interrupted, it goes on)
	$(BIN)/python -m latentrobust.train experiment=demo paths.output_dir=$(DEMO_DIR) $(DEMO_ARGS)

test: $(READY)  ## run the test suite, a process a core
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadgroup $(TEST_ARGS)

coverage: $(READY)  ## the test suite, and which lines it never runs (in outputs/coverage)
	$(BIN)/python -m pip install -q $(PIP_ARGS) -c $(VENV)/latentrobust-constraints.txt -e '.[contribute]'
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadgroup --cov=latentrobust --cov-report=term --cov-report=html:outputs/coverage $(TEST_ARGS)

# Failures are shown and are no error: they say what the next versions of others will break.
newest: pyproject.toml  ## the suite on NEWEST_PYTHON (3.13) with the newest of all dependencies; may fail
	test -x $(NEWEST_VENV)/bin/python || $(NEWEST_PYTHON) -m venv $(NEWEST_VENV)
	$(NEWEST_VENV)/bin/python -m pip install -q --upgrade $(PIP_ARGS) -e '.[dev]'
	-OMP_NUM_THREADS=1 $(NEWEST_VENV)/bin/python -m pytest -n auto --dist loadgroup $(TEST_ARGS)

campaign: $(READY)  ## kill, starve and mislead runs for an hour, and count which promises hold (docs/reliability.md)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.campaign $(CAMPAIGN_ARGS)

docs: $(READY)  ## the pages as a site, in outputs/site (docs/configuration.md is made from conf/)
	$(BIN)/python -m pip install -q $(PIP_ARGS) -c $(VENV)/latentrobust-constraints.txt -e '.[docs]'
	$(BIN)/python docs/generate.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build -q

docs-check: $(READY)  ## run the commands of README and the guides, shortened (about an hour; CHECK_ARGS names pages)
	OMP_NUM_THREADS=1 $(BIN)/python docs/check.py $(CHECK_ARGS)

gallery: $(READY)  ## run what docs/gallery.md shows, and renew its pictures (about an hour)
	OMP_NUM_THREADS=1 $(BIN)/python docs/gallery.py

lint: $(READY)  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)  ## let ruff rewrite the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

notebooks: $(READY)  ## run the notebooks and save them with their pictures
	$(BIN)/python notebooks/execute.py

clean:  ## remove .venv and caches (run folders and an environment named with VENV stay)
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
