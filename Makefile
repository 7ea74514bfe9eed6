# What a developer runs. Needs python3 (3.11 or newer), pip and make; everything else is installed into .venv.

PYTHON    ?= python3
VENV      := .venv
BIN       := $(VENV)/bin
DEPS      := $(VENV)/.deps-stamp
INSTALLED := $(VENV)/.install-stamp
PIP       := $(BIN)/python -m pip --disable-pip-version-check --no-input --quiet
PROTOS    := $(shell find proto -name '*.proto' 2>/dev/null)

# Extras that requirements.txt locks beside the core.
LOCK_EXTRAS := dev
# The contract of the last release, as `buf build` prints it.
BASELINE    := proto/baseline.json
DEMO_ARGS   ?=
TEST_ARGS   ?=
FAULT_ROUNDS ?= 500
BENCH_ARGS  ?=

.DEFAULT_GOAL := help
.PHONY: help setup proto proto-baseline demo test test-all faults check format bench lock clean
.DELETE_ON_ERROR:

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(INSTALLED) ## create .venv with the locked dependencies and the project itself (skipped when up to date)

$(DEPS): requirements.txt
	@echo "setup: installing the locked dependencies into $(VENV) (about a minute the first time)"
	@test -x $(BIN)/python || $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make setup PYTHON=python3.12")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) install --require-hashes -r requirements.txt
	@touch $@

$(INSTALLED): $(DEPS) pyproject.toml hatch_build.py clients/python/hatch_build.py $(PROTOS)
	@echo "setup: installing featurestore (editable) and compiling proto/"
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

proto: $(DEPS) ## compile proto/ for the Python client (and by it, for the server), and for the sidecar
	@$(BIN)/python hatch_build.py
	@echo "proto: clients/python/src/featurestore_client/_pb and serving/inference/_pb are up to date"

demo: $(INSTALLED) ## run the example of the README (DEMO_ARGS=... is passed on)
	@$(BIN)/featurestore demo $(DEMO_ARGS)

# Two cores halve the time; a file's tests stay together, since they share what was costly to prepare, and the files that
# start processes come first (tests/conftest.py), so that none of them is left for one core at the end.
WORKERS := --numprocesses auto --dist loadfile --no-loadscope-reorder

test: $(INSTALLED) ## run the quick tests, as CI does (TEST_ARGS=... is passed on)
	@$(BIN)/python -m pytest $(WORKERS) $(TEST_ARGS)

test-all: $(INSTALLED) ## run every test, the slow ones too
	@HYPOTHESIS_PROFILE=all $(BIN)/python -m pytest $(WORKERS) -m "slow or not slow" $(TEST_ARGS)

faults: $(INSTALLED) ## kill jobs in 500 rounds (FAULT_ROUNDS=...) and print where they were killed
	@FEATURESTORE_FAULT_ROUNDS=$(FAULT_ROUNDS) $(BIN)/python -m pytest -q tests/faults/test_rounds.py

check: $(INSTALLED) ## format, lint, types, import fences, proto/ against its last release, tidiness
	@$(BIN)/ruff format --check --quiet . || { echo "check: run make format"; exit 1; }
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy --no-error-summary
	@$(BIN)/lint-imports --no-cache --no-logo > $(VENV)/.lint-imports.log 2>&1 || { cat $(VENV)/.lint-imports.log; exit 1; }
	@$(BIN)/buf lint
	@$(BIN)/buf breaking --against $(BASELINE)
	@$(BIN)/python -m pytest -q --no-header --durations=0 -p no:randomly tests/test_tidy.py
	@echo "check: format, lint, types, imports, proto and tidiness are fine"

proto-baseline: $(INSTALLED) ## at a release: proto/ as it is becomes what later versions must stay compatible with
	@$(BIN)/buf build --exclude-source-info -o -#format=json | $(BIN)/python -m json.tool --indent 1 > $(BASELINE)
	@echo "proto-baseline: $(BASELINE) holds proto/ as it is; commit it with the release"

format: $(DEPS) ## format the code and apply ruff's safe fixes
	@$(BIN)/ruff check --quiet --fix-only .
	@$(BIN)/ruff format .

bench: $(INSTALLED) ## run the benchmarks (BENCH_ARGS=... is passed on)
	@$(BIN)/python -m benchmarks $(BENCH_ARGS)

lock: ## renew requirements.txt from pyproject.toml (needs a package index)
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@test -x $(BIN)/uv || $(PIP) install uv
	@$(BIN)/uv pip compile pyproject.toml $(addprefix --extra ,$(LOCK_EXTRAS)) --upgrade --universal --python-version 3.11 \
		--generate-hashes --no-header --no-emit-index-url --no-emit-find-links --quiet --output-file requirements.txt
	@echo "lock: requirements.txt holds $$(grep -c '^[a-z]' requirements.txt) packages"

clean: ## remove caches and everything built, .venv too
	@rm -rf $(VENV) build dist clients/python/dist clients/python/src/featurestore_client/_pb serving/inference/_pb .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
