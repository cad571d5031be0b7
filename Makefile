# `make` alone lists the targets. Everything runs in .venv, which scripts/install.py makes once.
SHELL := /bin/bash
BIN := .venv/bin
PYTHON ?= $(shell for name in python3.11 python3.12 python3.13 python3 python; do \
	$$name -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$name && break; done)

# Two torch processes of two threads each are many times slower than one thread each; no test may reach a hub.
TEST_ENV := OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1

.PHONY: help install demo test test-all test-engines static check docs bench lock clean
.DEFAULT_GOAL := help

help:  ## Print this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | \
		while IFS=$$'\t' read -r name text; do printf '  make %-13s %s\n' "$$name" "$$text"; done

install:  ## Make .venv with the locked versions; done once, and again when they change
	@if [ -z "$(PYTHON)" ]; then \
		echo "no Python of at least 3.11 was found"; \
		echo "  Expected: python3.11, python3.12, python3.13, python3 or python on the PATH"; \
		echo "  Try:      make PYTHON=/path/to/python3 $(or $(MAKECMDGOALS),install)"; exit 1; fi >&2
	@$(PYTHON) scripts/install.py

demo: install  ## Teach the packaged model three domains with and without constraint; write the report
	$(BIN)/crma run examples/demo/crma.yaml

test: install  ## The fast tests and the doctests
	$(TEST_ENV) $(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"

test-all: install  ## All tests, those on the packaged model included
	$(TEST_ENV) $(BIN)/python -m pytest

test-engines: install  ## Load exports in PEFT, vLLM, llama.cpp and SGLang's own checks; installs them first (an hour)
	$(PYTHON) scripts/engines.py
	$(TEST_ENV) $(BIN)/python -m pytest -m engines tests/engines

static: install  ## What `make check` does besides the tests: lint, format, types, layers, documentation
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

check: static test  ## Everything that CI checks

docs: install  ## Build the documentation into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: install  ## Measure what adapters cost against PEFT and the base; JSON into benchmarks/results/
	$(BIN)/python benchmarks/speed.py

lock: ## Renew constraints.txt from a clean install
	$(PYTHON) scripts/lock.py

clean:  ## Remove caches and built files (not .venv)
	rm -rf site dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find src tests scripts examples -name __pycache__ -type d -prune -exec rm -rf {} +
