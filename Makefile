.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# `make` prints every target with the text behind its ##, under the headings ##@.
.PHONY: help
help:
	@awk 'BEGIN {FS = ":.*## "} /^##@/ {printf "\n%s\n", substr($$0, 5)} \
	  /^[a-z][a-z0-9-]*:.*## / {printf "  %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

##@ Start here
.PHONY: demo
demo: $(READY) ## train and judge a recognizer on synthetic speech with the real pipeline, here, in minutes
	@$(BIN)/python -m pipeline demo

.PHONY: setup
setup: $(READY) ## make the virtual environment .venv from uv.lock (the other targets do it by themselves)

$(READY): pyproject.toml uv.lock
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) must be installed, or named: make PYTHON=/path/to/python3.11"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet --disable-pip-version-check uv==0.13.9
	@UV_PROJECT_ENVIRONMENT=$(VENV) $(BIN)/uv sync --frozen --quiet --inexact --python $(BIN)/python
	@touch $@

##@ Develop
.PHONY: lint
lint: $(READY) ## ruff, mypy --strict, import-linter
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

.PHONY: format
format: $(READY) ## let ruff mend what it can
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

.PHONY: test
test: $(READY) ## every test that is quick, on real parts
	@$(BIN)/python -m pytest

.PHONY: clean
clean: ## delete what the targets made, but for .venv
	rm -rf var .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
