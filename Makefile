# `make` lists the targets. Everything happens in .venv; nothing outside this folder is touched but pip's and lmlab's caches.
VENV ?= .venv
PYTHON_FOR_VENV ?= python3
PYTHON := $(VENV)/bin/python
TORCH_INDEX ?=
STAMP := $(VENV)/.installed
PIP := $(PYTHON) -m pip install --quiet --quiet --disable-pip-version-check $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
ONE_THREAD := OMP_NUM_THREADS=1

.DEFAULT_GOAL := help
.PHONY: help setup demo check test test-all test-slow test-ranks test-gpu test-notebooks techniques bench clean format pins

help:  ## List the targets
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP)  ## Make .venv and install lmlab with everything its tests need

$(STAMP): pyproject.toml constraints.txt
	@echo "setting up $(VENV) (once; takes a few minutes)"
	@test -x $(PYTHON) || $(PYTHON_FOR_VENV) -m venv $(VENV)
	@$(PIP) -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(STAMP)  ## Train two small models on Jane Austen, see what they write (under 5 minutes)
	@$(PYTHON) -m lmlab demo

check: $(STAMP)  ## Format, lint, types, architecture
	@$(PYTHON) -m ruff format --check .
	@$(PYTHON) -m ruff check .
	@PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(PYTHON) -m pyright --pythonpath $(PYTHON)
	@$(ONE_THREAD) $(PYTHON) -m pytest tests/test_architecture.py

format: $(STAMP)  ## Format the code and mend what can be mended by itself
	@$(PYTHON) -m ruff check --fix-only --quiet .
	@$(PYTHON) -m ruff format .

test: $(STAMP)  ## The tests that take under five minutes on two cores
	@$(ONE_THREAD) $(PYTHON) -m pytest

test-all: $(STAMP)  ## All tests, the slow ones too (under 45 minutes)
	@$(ONE_THREAD) $(PYTHON) -m pytest -m ""

test-slow: $(STAMP)  ## Only the slow tests
	@$(ONE_THREAD) $(PYTHON) -m pytest -m slow

test-ranks: $(STAMP)  ## Every strategy on two and four ranks against one process, each going on from each (under 10 minutes)
	@$(ONE_THREAD) $(PYTHON) -m pytest -m "not compiler" tests/strategies

test-gpu: $(STAMP)  ## What only GPUs can show; skipped without CUDA
	@$(PYTHON) -m pytest -m gpu tests/gpu

techniques: $(STAMP)  ## Train every shipped config with three seeds, write docs/techniques.md (hours)
	@$(ONE_THREAD) $(PYTHON) -m lmlab techniques --train --write docs/techniques.md

test-notebooks: $(STAMP)  ## Execute the notebooks
	@$(PYTHON) -m pytest tests/test_notebooks.py -m ""

bench: $(STAMP)  ## Speed, side by side with transformers and with the machine's matrix-multiply peak
	@$(PYTHON) -m benchmarks.pretraining

pins: $(STAMP)  ## Write constraints.txt from what .venv holds (after an upgrade, in a fresh .venv)
	@$(PYTHON) .ci/pins.py > constraints.tmp && mv constraints.tmp constraints.txt && touch $(STAMP)

clean:  ## Remove caches and build files; runs and .venv stay
	@rm -rf .pytest_cache .ruff_cache .hypothesis build dist *.egg-info
	@find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
