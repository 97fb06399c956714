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
demo: $(READY) ## train and evaluate a recognizer on synthetic speech with the whole pipeline, on this machine, in minutes
	@$(BIN)/python -m pipeline demo

.PHONY: setup
setup: $(READY) ## create .venv from uv.lock (the other targets do so when it is missing)

$(READY): pyproject.toml uv.lock
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) must be installed, got none; name another: make PYTHON=/path/to/python3.12"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip >/dev/null
	@test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet --disable-pip-version-check uv==0.13.9
	@UV_PROJECT_ENVIRONMENT=$(VENV) $(BIN)/uv sync --frozen --quiet --inexact --all-extras --python $(BIN)/python
	@touch $@

##@ Develop
.PHONY: lint
lint: $(READY) ## ruff, mypy --strict, import-linter
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

.PHONY: format
format: $(READY) ## let ruff fix what it can
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

.PHONY: test
test: $(READY) ## run all quick tests
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses=2 --dist=loadfile --no-loadscope-reorder

.PHONY: study
study: $(READY) ## measure what each ingredient of the recipe is worth (hours; resumes after a stop): SOURCE=ARCHIVE ARGS=
	@$(BIN)/python -m benchmarks.study --source '$(SOURCE)' $(ARGS)

.PHONY: few-clips
few-clips: $(READY) ## measure how many clips of new words suffice with INIT and without (hours; resumes): SOURCE=ARCHIVE WORDS= ARGS=
	@$(BIN)/python -m benchmarks.few_clips --source '$(SOURCE)' --words '$(WORDS)' $(ARGS)

.PHONY: bench
bench: $(READY) ## measure speed against alternatives (3 minutes; a table and var/bench.json): ARGS="--rows … --quick"
	@$(BIN)/python -m benchmarks $(ARGS)

.PHONY: e2e
e2e: $(READY) ## test training and whole runs that are killed, stopped, shrunk and grown (10 minutes)
	$(E2E) tests/e2e/test_survival.py tests/e2e/test_killed_pipeline.py

.PHONY: e2e-page
e2e-page: $(READY) ## test teaching the page two words, until the champion hears them (10 minutes; needs Chromium and ../shared/data)
	@test -f var/demo/data/models/champion.json || $(MAKE) demo
	$(E2E) -s tests/e2e/test_page_to_champion.py

DATA_ROOT = var/demo/data
.PHONY: serve
serve: $(READY) ## serve the champion of DATA_ROOT (default: that of make demo) at http://127.0.0.1:8080
	@$(BIN)/kws serve --data-root '$(DATA_ROOT)' $(ARGS)

.PHONY: torture
torture: $(READY) ## test with kills, full disks, runs in a row and fuzzers (minutes to an hour; resumes after a stop): ARGS=
	@$(BIN)/python -m benchmarks.torture $(ARGS)

.PHONY: clean
clean: ## delete what the targets made, except .venv, pulled models and the volume of the local cluster
	rm -rf var/demo var/bench var/bench.json var/pipeline.yaml var/study var/curve var/few-clips var/torture var/notebook .mypy_cache .ruff_cache .pytest_cache .import_linter_cache

##@ Cluster (images and kind-… need Docker; kind-… also kind and kubectl)
# Settings of the targets below, as in: make pipeline EPOCHS=5 WORKERS=3 ARGS="--batch-size 64"
DEVICE = cpu
TORCH =
REGISTRY =
HOST =
NAMESPACE = kubeflow
TOKEN_FILE =
SOURCE =
WORDS =
PRESET =
INIT =
EPOCHS =
WORKERS =
PROCESSES =
CPUS =
MEMORY =
RUN =
CRON =
TZ =
VERSION = champion
REASON =
TO = var/models
ARGS =
# $(call flag,--name,VALUE): the flag, unless the value is empty.
flag = $(if $(strip $(2)),$(1) '$(strip $(2))')
WHERE = $(call flag,--host,$(HOST)) $(call flag,--namespace,$(NAMESPACE)) $(call flag,--token-file,$(TOKEN_FILE))
IMAGES = $(call flag,--registry,$(REGISTRY)) --device $(DEVICE)
PODS = $(call flag,--cpu,$(CPUS)) $(call flag,--memory,$(MEMORY))
PARAMETERS = $(call flag,--source,$(SOURCE)) $(call flag,--words,$(WORDS)) $(call flag,--preset,$(PRESET)) \
  $(call flag,--init,$(INIT)) $(call flag,--epochs,$(EPOCHS)) $(call flag,--num-nodes,$(WORKERS)) $(call flag,--processes-per-node,$(PROCESSES)) $(ARGS)
COMMAND = @$(BIN)/python -m pipeline
E2E = @$(BIN)/python -m pytest -o addopts= -v --durations=3

.PHONY: preflight images kind-up kind-down kind-load kind-status
preflight: $(READY) ## check what this machine needs for a local cluster
	$(COMMAND) preflight

images: $(READY) ## build the container images: DEVICE=cpu|cuda TORCH=cpu|locked REGISTRY=
	$(COMMAND) images $(IMAGES) $(call flag,--torch,$(TORCH)) $(if $(REGISTRY),--push) $(ARGS)

kind-up: images ## create a local cluster with Kubeflow (10 to 20 minutes the first time)
	$(COMMAND) kind-up --device $(DEVICE)

kind-down: $(READY) ## delete the local cluster; its volume stays in var/kind
	$(COMMAND) kind-down

kind-load: images ## build the images and copy them into the local cluster
	$(COMMAND) kind-load --device $(DEVICE)

kind-status: $(READY) ## show which parts of the local cluster are healthy
	$(COMMAND) kind-status

.PHONY: pipeline runs follow cancel retry
pipeline: $(READY) ## run the pipeline on a cluster and follow it: EPOCHS= WORKERS= CPUS= MEMORY= PRESET= WORDS= SOURCE= INIT= ARGS=
	$(COMMAND) submit $(WHERE) $(IMAGES) $(PODS) $(PARAMETERS)

runs: $(READY) ## list the latest runs
	$(COMMAND) runs $(WHERE) $(ARGS)

follow: $(READY) ## show a run until it ends: RUN=
	$(COMMAND) follow '$(RUN)' $(WHERE) $(ARGS)

cancel: $(READY) ## cancel a run: RUN=
	$(COMMAND) cancel '$(RUN)' $(WHERE)

retry: $(READY) ## resume a failed or cancelled run where it stopped: RUN=
	$(COMMAND) retry '$(RUN)' $(WHERE) $(ARGS)

.PHONY: schedule schedules unschedule
schedule: $(READY) ## retrain at fixed times: CRON='0 3 * * 1' TZ=Europe/Berlin
	$(COMMAND) schedule --cron '$(CRON)' $(call flag,--time-zone,$(TZ)) $(WHERE) $(IMAGES) $(PODS) $(PARAMETERS)

schedules: $(READY) ## list the schedules
	$(COMMAND) schedules $(WHERE)

unschedule: $(READY) ## delete the schedule
	$(COMMAND) unschedule $(WHERE)

.PHONY: ui tensorboard pull-model graph page-pictures e2e-docker e2e-registry test-cluster e2e-cluster e2e-retries
ui: $(READY) ## open the UI of Kubeflow Pipelines
	$(COMMAND) ui $(WHERE)

tensorboard: $(READY) ## open TensorBoard over all runs of the cluster
	$(COMMAND) tensorboard $(WHERE)

pull-model: $(READY) ## copy a version to this machine and verify it: VERSION=champion TO=var/models
	$(COMMAND) pull --version '$(VERSION)' --to '$(TO)' $(WHERE) $(call flag,--registry,$(REGISTRY)) $(ARGS)

.PHONY: deploy models rollback
deploy: $(READY) ## serve the champion on the cluster (after make images)
	$(COMMAND) deploy $(WHERE) $(IMAGES) $(ARGS)

models: $(READY) ## list versions, metrics and champion: ARGS="--data-root var/demo/data" for those of this machine
	$(COMMAND) models $(WHERE) $(call flag,--registry,$(REGISTRY)) $(ARGS)

rollback: $(READY) ## make an earlier version champion: VERSION= REASON= ARGS="--data-root …"
	$(COMMAND) rollback $(call flag,--version,$(filter-out champion,$(VERSION))) $(call flag,--reason,$(REASON)) $(WHERE) \
	  $(call flag,--registry,$(REGISTRY)) $(ARGS)

graph: $(READY) ## draw the pictures of pipeline and code for the documentation
	$(COMMAND) graph
	@$(BIN)/python docs/draw_architecture.py

page-pictures: $(READY) ## draw the pictures of the page, with the champion of DATA_ROOT (needs Chromium): ARGS="--recordings DIR"
	@$(BIN)/python docs/draw_page.py --data-root '$(DATA_ROOT)' $(ARGS)

e2e-docker: images ## compare the whole pipeline in containers with the same in processes (needs ../shared/data)
	$(E2E) tests/e2e/test_docker.py

e2e-registry: $(READY) ## test registration in a Model Registry that is running (seconds; leaves a model kws-e2e-…): KWS_MODEL_REGISTRY=ADDRESS
	@test -n "$${KWS_MODEL_REGISTRY:-}" || { echo "these tests need a Model Registry: make e2e-registry KWS_MODEL_REGISTRY=http://HOST:PORT (docs/serving.md)"; exit 2; }
	$(E2E) tests/e2e/test_model_registry.py

test-cluster: $(READY) ## test on a cluster with the training operator, without our images (a minute): KUBECONFIG=FILE
	@test -n "$${KUBECONFIG:-}" || { echo "these tests need a cluster with the training operator: make test-cluster KUBECONFIG=FILE"; exit 2; }
	$(E2E) tests/e2e/test_cluster_without_pipelines.py

e2e-cluster: $(READY) ## test everything on a real cluster (half an hour; creates runs and jobs there): KUBECONFIG=FILE
	@test -n "$${KUBECONFIG:-}" || { echo "these tests need a cluster with Kubeflow Pipelines: make e2e-cluster KUBECONFIG=FILE (docs/cluster.md)"; exit 2; }
	$(E2E) tests/e2e/test_live_cluster.py

e2e-retries: $(READY) ## test pipeline retry after each disturbance of a real cluster (an hour): KUBECONFIG=FILE KWS_E2E_VOLUME=FOLDER
	@test -n "$${KUBECONFIG:-}" || { echo "these tests need a cluster with Kubeflow Pipelines: make e2e-retries KUBECONFIG=FILE (docs/cluster.md)"; exit 2; }
	$(E2E) tests/e2e/test_retry_after_disturbances.py
