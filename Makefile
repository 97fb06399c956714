.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Set, it makes every process compile what it imports: torch then takes twice as long, and kfp three times.
export PYTHONDONTWRITEBYTECODE :=

# A variable given to make is a flag of the command that the target calls, under the same name: make pipeline NUM_NODES=2 calls
# python -m pipeline submit --num-nodes 2. The command checks its value, and its --help explains it.
WHICH_CLUSTER := HOST NAMESPACE TOKEN_FILE CA_FILE CONTEXT
WHICH_IMAGES := REGISTRY DEVICE
PODS := CPU MEMORY LAUNCHER NOTIFY
PARAMETERS := SOURCE SHA256 DATA_ROOT WORDS UNKNOWN_WORDS PRESET SET SPLIT MAX_BAD_FRACTION EPOCHS BATCH_SIZE LEARNING_RATE INIT SEED \
  NUM_NODES PROCESSES_PER_NODE MIN_ACCURACY FORMATS FALSE_ALARMS_PER_HOUR LAYOUT APPROVAL KEEP_RUNS MODEL_REGISTRY
FLAGS := $(WHICH_CLUSTER) $(WHICH_IMAGES) $(PODS) $(PARAMETERS) TORCH BASE_IMAGE CRON TIME_ZONE VERSION TO IMAGE REASON MODEL PORT COLLECT SHADOW KEEP DAYS

# $(call flags,NAMES): the flags of those variables that have a value.
flags = $(foreach name,$(1),$(if $($(name)),--$(shell tr A-Z_ a-z- <<< $(name)) '$(subst ','\'',$($(name)))'))
$(foreach name,$(FLAGS) RUN ARGS,$(eval $(name) =))# the environment has no say in them
given := $(foreach name,$(.VARIABLES),$(if $(filter command,$(firstword $(origin $(name)))),$(name)))
# What commands read from the environment may be given, too.
unknown := $(filter-out $(FLAGS) RUN ARGS PYTHON DOCKER KUBECONFIG KWS_% -%,$(given))
$(if $(unknown),$(error $(unknown) must be a variable of this Makefile, got none of that name; it has $(FLAGS) RUN and ARGS, \
  which takes further flags: make pipeline ARGS="--batch-size 64"))

# `make` prints every target with the text behind its ##, under the headings ##@.
.PHONY: help
help:
	@awk 'BEGIN {FS = ":.*## "} /^##@/ {printf "\n%s\n", substr($$0, 5)} \
	  /^[a-z][a-z0-9-]*:.*## / {printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@printf '\nA variable is the flag of the same name (NUM_NODES=2 is --num-nodes 2); ARGS="…" takes any further flags.\n'
	@printf 'All commands: %s/kws --help, python -m pipeline --help, python -m benchmarks --help, python -m research.study --help\n' '$(BIN)'

##@ Start here
.PHONY: demo setup serve
demo: $(READY) ## train and evaluate a recognizer on synthetic speech with the whole pipeline, on this machine, in minutes
	@$(BIN)/python -m pipeline demo $(ARGS)

serve: DATA_ROOT = var/demo/data
serve: $(READY) ## serve a champion at http://127.0.0.1:8080: DATA_ROOT=var/demo/data PORT=
	@$(BIN)/kws serve $(call flags,$(if $(MODEL),MODEL,DATA_ROOT) HOST PORT) $(ARGS)

setup: $(READY) ## create .venv from uv.lock (the other targets do so when it is missing)

$(READY): pyproject.toml uv.lock
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) must be installed, got none; name another: make PYTHON=/path/to/python3.13"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip >/dev/null
	@test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet --disable-pip-version-check uv==0.13.9
	@UV_PROJECT_ENVIRONMENT=$(VENV) $(BIN)/uv sync --frozen --quiet --inexact --all-extras --python $(BIN)/python
	@touch $@

##@ Develop
.PHONY: lint test bench test-cluster
lint: $(READY) ## ruff, mypy --strict, import-linter
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

test: $(READY) ## run all quick tests
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses=2 --dist=loadfile --no-loadscope-reorder $(ARGS)

bench: $(READY) ## measure speed against alternatives (3 to 10 minutes; a table and var/bench.json): ARGS="--rows … --quick"
	@$(BIN)/python -m benchmarks $(ARGS)

test-cluster: $(READY) ## test on a cluster with the training operator, without our images (some minutes): KUBECONFIG=FILE
	@test -n "$${KUBECONFIG:-}" || { echo "these tests need a cluster with the training operator: make test-cluster KUBECONFIG=FILE"; exit 2; }
	@$(BIN)/python -m pytest -v tests/e2e/test_cluster_without_pipelines.py $(ARGS)

##@ Cluster (images and kind-… need Docker; kind-… also kind and kubectl)
COMMAND = @$(BIN)/python -m pipeline

.PHONY: images kind-up kind-down
images: $(READY) ## build the container images, and push them where there is a registry: DEVICE=cpu|cuda REGISTRY= TORCH=cpu|locked
	$(COMMAND) images $(call flags,$(WHICH_IMAGES) TORCH BASE_IMAGE) $(if $(REGISTRY),--push) $(ARGS)

kind-up: images ## create a local cluster with Kubeflow (10 to 20 minutes the first time)
	$(COMMAND) kind-up $(call flags,DEVICE)

kind-down: $(READY) ## delete the local cluster; its volume stays in var/kind
	$(COMMAND) kind-down

.PHONY: pipeline follow retry schedule ui
pipeline: $(READY) ## run the pipeline on a cluster and follow it: EPOCHS= NUM_NODES= CPU= MEMORY= PRESET= WORDS= SOURCE= INIT= …
	$(COMMAND) submit $(call flags,$(WHICH_CLUSTER) $(WHICH_IMAGES) $(PODS) $(PARAMETERS)) $(ARGS)

follow: $(READY) ## show a run until it ends: RUN=
	$(COMMAND) follow '$(RUN)' $(call flags,$(WHICH_CLUSTER)) $(ARGS)

retry: $(READY) ## resume a failed or cancelled run where it stopped: RUN=
	$(COMMAND) retry '$(RUN)' $(call flags,$(WHICH_CLUSTER)) $(ARGS)

schedule: $(READY) ## retrain at fixed times: CRON='0 3 * * 1' TIME_ZONE=Europe/Berlin, and the variables of make pipeline
	$(COMMAND) schedule $(call flags,CRON TIME_ZONE $(WHICH_CLUSTER) $(WHICH_IMAGES) $(PODS) $(PARAMETERS)) $(ARGS)

ui: $(READY) ## open the UI of Kubeflow Pipelines
	$(COMMAND) ui $(call flags,$(WHICH_CLUSTER))

.PHONY: pull-model deploy rollback clean-volume
pull-model: $(READY) ## copy a version to this machine and verify it: VERSION=champion TO=var/models
	$(COMMAND) pull $(call flags,VERSION TO DATA_ROOT IMAGE REGISTRY $(WHICH_CLUSTER)) $(ARGS)

deploy: $(READY) ## serve the champion on the cluster (after make images): COLLECT=yes keeps what it hears, for review; SHADOW=candidate
	$(COMMAND) deploy $(call flags,IMAGE COLLECT SHADOW $(WHICH_CLUSTER) $(WHICH_IMAGES)) $(ARGS)

rollback: $(READY) ## make an earlier version champion, on the cluster or in DATA_ROOT=: VERSION= REASON=
	$(COMMAND) rollback $(call flags,VERSION REASON DATA_ROOT IMAGE REGISTRY MODEL_REGISTRY $(WHICH_CLUSTER)) $(ARGS)

clean-volume: $(READY) ## delete what no version, run or schedule needs, on the cluster or in DATA_ROOT=: KEEP=10 ARGS=--dry-run
	$(COMMAND) clean $(call flags,KEEP DAYS DATA_ROOT IMAGE REGISTRY MODEL_REGISTRY $(WHICH_CLUSTER)) $(ARGS)
