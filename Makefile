# Every verb works alone on a fresh machine that has Python >= 3.11 and make: each one sets up first.
# PYTHON=/path/to/python picks another interpreter; the first suitable one is taken otherwise.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.made
EXTRAS := demo,audio,image,tensorboard,dev
# One thread per process: two test processes share two cores, and results do not depend on the number of cores.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
CODE := $(wildcard src tests examples benchmarks .ci)

.PHONY: setup demo test test-slow test-oldest test-newest test-backends fmt lint types bench tables docs clean help

help: ## show these verbs
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## make .venv and install from the pinned constraints

# Ends in $$found, the first Python >= 3.11 that can make a virtual environment.
define FIND_PYTHON
python="$(PYTHON)"; \
for candidate in $${python:-python3 python3.13 python3.12 python3.11 python}; do \
    if "$$candidate" -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then found="$$candidate"; break; fi; \
done; \
if [ -z "$${found:-}" ]; then \
    echo "setup: no Python >= 3.11 with the venv module found. Install one (Debian: apt install python3 python3-venv) or say make $@ PYTHON=/path/to/python." >&2; exit 1; \
fi
endef

# torch goes in alone and first, so that the rest is resolved around that very build.
$(STAMP): pyproject.toml constraints.txt
	@$(FIND_PYTHON); \
	if ! $(BIN)/python -m pip --version >/dev/null 2>&1; then echo "setup: making $(VENV) with $$found"; "$$found" -m venv --clear $(VENV); fi
	@echo "setup: installing torch 2.13.0 and what else constraints.txt pins into $(VENV); some minutes on a slow line"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 -c constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[$(EXTRAS)]' -c constraints.txt
	@touch $@

demo: $(STAMP) ## train the demo's students and print the table (runs/demo)
	$(BIN)/python -m crossdistill compare av-digits --preset demo --out runs/demo --resume

test: $(STAMP) ## the fast tests, two processes
	$(ONE_THREAD) $(BIN)/python -m pytest -n 2 -m "not slow"

test-slow: $(STAMP) ## the slow tests
	$(ONE_THREAD) $(BIN)/python -m pytest -n 2 -m slow --timeout 900

# The two ends of what pyproject.toml promises, each in a virtual environment of its own, made anew each time.
# What passed is noted in .ci/tested; .ci/run runs them where the dependencies are others than noted there.
test-oldest: ## the fast tests with the oldest versions that pyproject.toml admits
test-newest: ## the fast tests with the newest versions that there are
test-oldest: CONSTRAINTS := -c constraints-oldest.txt
test-oldest test-newest: test-%:
	@$(FIND_PYTHON); echo "test-$*: making .venv-$* with $$found"; "$$found" -m venv --clear .venv-$*
	.venv-$*/bin/python -m pip install --quiet --disable-pip-version-check -e '.[$(EXTRAS)]' $(CONSTRAINTS)
	$(ONE_THREAD) .venv-$*/bin/python -m pytest -n 2 -m "not slow" --timeout 600
	.venv-$*/bin/python .ci/dependencies.py passed $*

# timm and open_clip need the torchvision of their torch: pip picks both together, in an environment of their own.
test-backends: ## the tests of timm, open_clip, ONNX and LoRA, with the real packages
	@$(FIND_PYTHON); echo "test-backends: making .venv-backends with $$found"; "$$found" -m venv --clear .venv-backends
	.venv-backends/bin/python -m pip install --quiet --disable-pip-version-check -e '.[transformers,timm,clip,onnx,lora,image,audio,demo,dev]' onnx
	$(ONE_THREAD) .venv-backends/bin/python -m pytest -n 2 tests/backends --timeout 600

fmt: $(STAMP) ## format, and repair what ruff can repair
	$(BIN)/ruff format $(CODE)
	$(BIN)/ruff check --fix $(CODE)

lint: $(STAMP) ## formatting and lint, changes nothing
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/ruff check $(CODE)

types: $(STAMP) ## mypy --strict
	$(BIN)/mypy

bench: $(STAMP) ## measure every claim about cost: benchmarks/results.json and the table in docs/results/cost.md
	$(BIN)/python benchmarks/run.py

tables: $(STAMP) ## make the tables of the pages from the code and the results
	$(BIN)/python .ci/tables.py

docs: $(STAMP) ## check what the pages link to and quote
	$(BIN)/python -m pytest -q tests/test_docs.py

clean: ## remove .venv, caches and build products (runs/ stays)
	rm -rf $(VENV) .venv-oldest .venv-newest .venv-backends build dist src/*.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find $(CODE) -name __pycache__ -type d -prune -exec rm -rf {} +
