# make demo: the main job on real pictures.   make test: the tests.   Both set up .venv by themselves.
PYTHON ?= python3
BIN := .venv/bin
DEMO := runs/demo

.PHONY: help demo test test-all check docs bench clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

demo: .venv/.core  ## search, look, extract, retrain, use: about 5 minutes on 2 cores
	$(BIN)/nas search --out $(DEMO) --force
	$(BIN)/nas front $(DEMO)
	$(BIN)/nas show $(DEMO)
	$(BIN)/nas extract $(DEMO)
	$(BIN)/nas retrain $(DEMO)
	$(BIN)/nas denoise $(DEMO) $(DEMO)/pictures/camera-noisy.png -o $(DEMO)/camera-cleaned.png --force
	$(BIN)/nas report $(DEMO)

# A process for each core, and each computes on one: two programs that both use all cores slow each other many times over.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

test: .venv/.dev  ## the tests, without the slow ones
	$(PYTEST)

test-all: .venv/.dev  ## the tests, with the slow ones
	$(PYTEST) -m "slow or not slow"

check: .venv/.dev  ## formatting, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# Material announces MkDocs 2 at every build unless it is told not to.
docs: .venv/.dev  ## the documentation, as build/site/index.html; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

bench: .venv/.dev  ## speed, side by side, as ratios
	$(BIN)/python -m benchmarks.optimizers
	$(BIN)/python -m benchmarks.alive
	$(BIN)/python -m benchmarks.inference
	$(BIN)/python -m benchmarks.overhead

.venv/.core: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; make PYTHON=...")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

.venv/.dev: .venv/.core
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:  ## remove what the targets made, except runs
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
