# The environment is made once and reused: `make test VENV=/path` uses another one.
VENV ?= .venv
PYTHON ?= python3.11
OUTPUT ?= output
MINUTES ?= 20
BIN := $(VENV)/bin
export PYTHON

.DEFAULT_GOAL := help
.PHONY: help setup demo check test lint format docs bench gpu clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup:  ## make .venv with everything that is needed; a second run installs nothing
	@.ci/setup $(VENV)

demo: setup  ## train baseline and SuperLoss on the toy set with 40 % wrong labels and compare
	$(BIN)/python tools/demo.py --report --output $(OUTPUT)/demo

check: lint  ## lint, type check and the fast tests: what to run before each commit
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"

test: lint  ## lint, type check and all tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

lint: setup  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup  ## format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: setup  ## build the site of the documentation in site/, without network
	$(BIN)/python docs/make_reference.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

bench: setup  ## measure what the SuperLoss costs and how fast evaluation is
	OMP_NUM_THREADS=1 $(BIN)/python tools/benchmark_superloss.py
	OMP_NUM_THREADS=1 $(BIN)/python tools/benchmark_superloss.py --training-step
	OMP_NUM_THREADS=1 $(BIN)/python tools/benchmark_evaluation.py

gpu: setup  ## test and measure on a GPU, then train a short real job; MINUTES=20
	OMP_NUM_THREADS=1 $(BIN)/python tools/gpu_report.py --minutes $(MINUTES) --work $(OUTPUT)/gpu $(ARGS)

clean:  ## remove what builds and tests leave behind; .venv and output/ stay
	rm -rf build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find sl_detectron tools tests -name __pycache__ -prune -exec rm -rf {} +
