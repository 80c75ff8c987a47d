# SPDX-License-Identifier: GPL-3.0-only
# What can be done here; rule: a person and CI type the same targets. `make` alone lists them.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
SHELL := /bin/sh

BIN := .venv/bin
REPORTS := reports
UNIT_WORKERS ?= 2
SIM_WORKERS ?= 2
EVENTS ?= 1500000
SEQUENCES ?= 1000
TEST_TIMEOUT ?= 60
E2E_TIMEOUT ?= 120
COVERAGE_FLOOR := 90
ARGS ?=

# The model that the tests run on, fetched once; your own copy is used when MODELD_TEST_STARTER names it.
STARTER := .run/models/SmolLM2-135M-Instruct.Q4_1.gguf
MODELD_TEST_STARTER ?= $(CURDIR)/$(STARTER)
ifeq ($(MODELD_TEST_STARTER),$(CURDIR)/$(STARTER))
NEEDS_STARTER := $(STARTER)
endif

# PYTHON=... chooses the Python of .venv; without it, the newest of 3.14 to 3.11 that runs.
export PYTHON
# Neither a foreign module path nor the user's own settings may decide whether a test passes.
unexport PYTHONPATH PYTHONHOME MODELD_TEST_STARTER
PYTEST = env -u PYTEST_ADDOPTS MODELD_TEST_STARTER='$(MODELD_TEST_STARTER)' $(BIN)/python -m pytest --cov --cov-report= -o junit_logging=all

##@ Use
.PHONY: run install
run: install ## Serve on :8080; fetches a small starter model when ~/models/llm holds none (ARGS="--addr :9090 ...")
	$(BIN)/modeld serve --fetch-starter $(ARGS)

install: ## Make .venv and a working .venv/bin/modeld
	@sh scripts/venv.sh run

##@ Check
.PHONY: test lint unit sim squeeze mutants sim-table e2e-py coverage bench bench-relay bench-start bench-core bench-fairness bench-headers
.PHONY: memory-grid chaos dev
test: lint unit sim squeeze e2e-py coverage ## Everything CI runs: lint, unit, sim, squeeze, e2e-py and the coverage floor

lint: dev ## ruff, mypy --strict, the import layers and the house rules
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/python -m pytest -q tests/test_tidy.py

unit: dev $(NEEDS_STARTER) ## All tests below the whole daemon
	@mkdir -p $(REPORTS)
	COVERAGE_FILE=$(REPORTS)/coverage.unit $(PYTEST) -m "not e2e" -n $(UNIT_WORKERS) --timeout $(TEST_TIMEOUT) --junitxml $(REPORTS)/unit.xml

sim: dev ## The real scheduler through 1.5 million events and every fault (EVENTS=100000 for fewer)
	$(BIN)/python -m modeld.simulation.campaign --events $(EVENTS) --workers $(SIM_WORKERS) --out $(REPORTS) $(ARGS)

squeeze: dev ## 1,000 random load sequences at the edge of the budget, with figures that are wrong by half (SEQUENCES=100 for fewer)
	$(BIN)/python -m modeld.simulation.squeeze --sequences $(SEQUENCES) --workers $(SIM_WORKERS) $(ARGS)

mutants: dev ## Plant bugs in the scheduler, each must be caught by the simulation; minutes
	$(BIN)/python -m modeld.simulation.planted --workers $(SIM_WORKERS) $(ARGS)

sim-table: dev ## Swap seconds of the shipped workloads beside strict FIFO and a clairvoyant, and how good expected waits are; minutes
	$(BIN)/modeld simulate --workload all
	$(BIN)/python -m modeld.simulation.estimates

e2e-py: dev $(NEEDS_STARTER) ## The real daemon over real sockets with the starter model, one test at a time
	@mkdir -p $(REPORTS)
	COVERAGE_FILE=$(REPORTS)/coverage.e2e $(PYTEST) -m e2e --timeout $(E2E_TIMEOUT) --junitxml $(REPORTS)/e2e.xml

coverage: dev # of the last unit and e2e-py together
	@cd $(REPORTS) && ../$(BIN)/coverage combine --rcfile ../pyproject.toml --data-file .coverage --keep -q coverage.unit coverage.e2e
	$(BIN)/coverage xml --data-file $(REPORTS)/.coverage -q -o $(REPORTS)/coverage.xml
	$(BIN)/coverage report --data-file $(REPORTS)/.coverage --fail-under $(COVERAGE_FLOOR)

bench: dev $(NEEDS_STARTER) ## What the hop costs beside direct, a bare relay and peers: table, reports/bench.json and .png; minutes (ARGS="--peer NAME=URL")
	$(BIN)/python bench/bench.py --model '$(MODELD_TEST_STARTER)' --out $(REPORTS) $(ARGS)

bench-relay: dev ## The half of it that needs no model (ARGS="--quick --rounds 3")
	$(BIN)/python bench/bench.py --only hop --out $(REPORTS) $(ARGS)

bench-start: install $(NEEDS_STARTER) ## Measure start, first answers, a switch of models and memory on this machine
	$(BIN)/python bench/service.py --model '$(MODELD_TEST_STARTER)' $(ARGS)

bench-core: install ## Microseconds of Scheduler.handle with 200 models and 5,000 requests waiting
	$(BIN)/python bench/handle.py $(ARGS)

bench-fairness: install $(NEEDS_STARTER) ## Nobody starves, nothing thrashes: real daemon, real models (ARGS="--router LLAMA_SERVER" to compare)
	$(BIN)/python bench/fairness.py --model '$(MODELD_TEST_STARTER)' $(ARGS)

memory-grid: dev ## Predicted memory against llama.cpp's dry pass, 100 models: table, reports/memory-grid.json; minutes (ARGS="--only gemma")
	PYTHONPATH=tests $(BIN)/python tests/memorygrid.py --out $(REPORTS) $(ARGS)

bench-headers: dev ## Milliseconds to read a header of 262k tokens, and 200 files with and without the cache
	PYTHONPATH=tests $(BIN)/python bench/headers.py $(ARGS)

chaos: install $(NEEDS_STARTER) ## Kill 200 model servers under load and 25 daemons; minutes (ARGS="--kills 20 --daemons 3")
	$(BIN)/python bench/chaos.py --model '$(MODELD_TEST_STARTER)' $(ARGS)

dev:
	@sh scripts/venv.sh dev

# Order-only: a new .venv is no reason to fetch the model again.
$(STARTER): | install
	@mkdir -p $(@D)
	$(BIN)/modeld pull starter --models-dir $(@D)

##@ Change
.PHONY: tidy lock build clean help
tidy: dev ## Format the sources and repair what can be repaired
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

lock: dev ## Renew the hash-pinned requirement files (needs uv; UPGRADE=--upgrade for newer versions)
	@UV="$(UV)" sh scripts/lock.sh $(UPGRADE)

build: install ## Make the wheel and the sdist in dist/
	rm -rf dist
	$(BIN)/python -m hatchling build -t sdist -t wheel

clean: ## Remove all that make made, .venv too; models in ~/models stay
	rm -rf .venv .run dist build $(REPORTS) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find src tests scripts -name __pycache__ -type d -exec rm -rf {} +

help: ## This list
	@awk 'BEGIN { FS = ":.*## " } /^##@/ { printf "\n%s\n", substr($$0, 5) } /^[a-z0-9-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
