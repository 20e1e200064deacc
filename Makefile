# Everything a person or CI does with this checkout. `make` alone lists the targets.
PYTHON ?= python3.11
PY := .venv/bin/python
STUDY ?= rayjobs/configs/demo.toml
LOCK_FLAGS := --python-version 3.11 --python-platform x86_64-manylinux_2_28 --generate-hashes \
              --no-emit-index-url --no-emit-find-links --no-annotate --no-header --quiet

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow drills lint types check format lock docs dashboards clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

setup:  ## make .venv from the locks (does nothing when it is current)
	@$(PYTHON) requirements/install.py

demo: setup  ## run the demo study and say where its report is
	$(PY) -m rayjobs.run_study --config $(STUDY)

test: setup  ## run the quick tests, with coverage
	OMP_NUM_THREADS=1 $(PY) -m pytest -m "not slow and not drill" -n auto --maxprocesses 4 --dist loadfile --cov --cov-report=term:skip-covered

test-slow: setup  ## run the end-to-end tests: real Ray, vLLM, DeepSpeed, kills
	$(PY) -m pytest -m slow

drills: setup  ## run the long fault drills (most of an hour)
	$(PY) -m pytest -m drill

lint: setup  ## check formatting and lint
	$(PY) -m ruff format --check . && $(PY) -m ruff check .

types: setup  ## check types
	$(PY) -m mypy

check: lint types test  ## lint, types and quick tests

format: setup  ## format the code
	$(PY) -m ruff check --fix-only . && $(PY) -m ruff format .

lock: setup  ## compile the locks again from pyproject.toml
	.tools/bin/uv pip compile $(LOCK_FLAGS) pyproject.toml --extra cpu --overrides requirements/overrides-cpu.txt --find-links .tools/wheels -o requirements/cpu.lock
	.tools/bin/uv pip compile $(LOCK_FLAGS) pyproject.toml --extra gpu -o requirements/gpu.lock
	.tools/bin/uv pip compile $(LOCK_FLAGS) --group test --group dev -c requirements/cpu.lock --find-links .tools/wheels -o requirements/dev.lock

dashboards:  ## start Prometheus and Grafana for the Ray cluster of this machine, where they are installed
	@$(PYTHON) deploy/dashboards.py

docs: setup  ## build the documentation into site/ (uv fetches mkdocs)
	.tools/bin/uv tool run --from mkdocs==1.6.1 mkdocs build

clean:  ## remove the environment and caches, never a study
	rm -rf .venv .tools .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage
