# `make` lists the targets from the comments beside them. Each target sets up what it needs: a .venv
# with pinned dependencies, which include a nats-server.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
WORKERS := $(shell expr $$(nproc) \* 2) # tests wait half of the time
PYTEST := $(BIN)/pytest -n $(WORKERS) --maxprocesses 4
PYTEST_ARGS :=
SOAK := kills sim
BENCH_ARGS :=
BENCH_READY := .bench-venv/.ready
DOCS_READY := $(VENV)/.docs
TOOLS_READY := .venv-tools/.ready
LOCK_ARGS :=
SIM_ARGS := --seeds 9990 --full 10

# Without it each program that a test starts compiles its modules again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo test test-all lint check soak bench docs audit sbom lock clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

demo: $(READY) ## the main job on real input; exits 0 only if every step held
	@$(BIN)/box-bridge demo

test: $(READY) ## the quick tests, after each change: under two minutes (PYTEST_ARGS=...)
	$(PYTEST) --dist worksteal -m "not slow" $(PYTEST_ARGS)

test-all: $(READY) ## all tests, with asyncio's debug mode and more random examples: 20 minutes
	$(PYTEST) -o asyncio_debug=true --hypothesis-profile=full $(PYTEST_ARGS)

lint: $(READY) ## ruff, mypy and the import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

check: lint test ## lint and test

soak: $(READY) ## kills at random, then simulated fleets (SOAK=kills, SOAK=sim, SOAK_ARGS=..., SIM_ARGS=...)
	$(if $(filter kills,$(SOAK)),$(BIN)/python -m tests.faults.soak $(SOAK_ARGS))
	$(if $(filter sim,$(SOAK)),$(BIN)/python -m tests.sim $(SIM_ARGS))

bench: $(READY) $(BENCH_READY) ## how fast it is, beside its peers; writes bench-results/ (BENCH_ARGS=--help)
	$(BIN)/python -m tests.bench $(BENCH_ARGS)

docs: $(DOCS_READY) ## the site, strict, with its links checked: build/site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --config-file .mkdocs.yml

audit: $(TOOLS_READY) ## known vulnerabilities of the dependencies, where the advisories can be had
	@.venv-tools/bin/python .ci/audit.py requirements.lock

sbom: $(TOOLS_READY) ## what the package depends on, as CycloneDX JSON: build/sbom.cdx.json
	@mkdir -p build
	@.venv-tools/bin/cyclonedx-py requirements requirements.lock --pyproject pyproject.toml \
		--output-reproducible --output-file build/sbom.cdx.json

lock: $(TOOLS_READY) ## pin the dependencies again, with hashes; LOCK_ARGS=--upgrade takes newer versions
	@.ci/lock $(LOCK_ARGS)

clean: ## remove the environments and everything that was built or measured
	rm -rf .venv .venv-* .bench-venv bench-results build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	rm -rf tests/interop/js/node_modules
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "box-bridge needs Python 3.11 or newer: make PYTHON=/path/to/python3"; exit 1; }
	@echo "Setting up $(VENV) ..."
	@rm -f $(READY)
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $(READY)

$(DOCS_READY): docs/requirements.txt $(READY)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement $<
	@touch $@

# The peers are installed apart from what is measured.
$(BENCH_READY): tests/bench/peers/requirements.txt
	@echo "Setting up .bench-venv ..."
	@rm -f $(BENCH_READY)
	@test -x .bench-venv/bin/python || $(PYTHON) -m venv .bench-venv
	@.bench-venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement $<
	@touch $(BENCH_READY)

# What locks, lists and audits the dependencies is installed apart from them.
$(TOOLS_READY): .ci/requirements.txt
	@echo "Setting up .venv-tools ..."
	@rm -f $(TOOLS_READY)
	@test -x .venv-tools/bin/python || $(PYTHON) -m venv .venv-tools
	@.venv-tools/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement $<
	@touch $(TOOLS_READY)
