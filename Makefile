# make demo   the main job on real input: exits 0 only if every step held
# make test   the tests that need nothing but Python (5 minutes at most; MARK= for the slow ones, too)
# make lint   ruff, mypy and the import rules
# make check  lint and test
# make soak   kills at random, then the whole history checked (10 minutes; SOAK_ARGS=--help), and
#             10,000 simulated fleets (hours; SIM_ARGS=--help); SOAK=kills or SOAK=sim for one alone
# make bench  how fast it is, beside its peers (BENCH_ARGS=--help); bench-results/ has JSON and a plot
#
# Each sets up what it needs: a .venv with pinned dependencies and a nats-server.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
MARK := not slow
WORKERS := $(shell expr $$(nproc) \* 3 / 2) # tests wait half of the time
SOAK := kills sim
BENCH_ARGS :=
BENCH_READY := .bench-venv/.ready
SIM_ARGS := --seeds 9990 --full 10

.PHONY: demo test lint check soak bench clean

demo: $(READY)
	@$(BIN)/box-bridge demo

test: $(READY)
	$(BIN)/pytest -n $(WORKERS) --maxprocesses 4 $(if $(MARK),-m "$(MARK)") $(PYTEST_ARGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

check: lint test

soak: $(READY)
	$(if $(filter kills,$(SOAK)),$(BIN)/python -m tests.faults.soak $(SOAK_ARGS))
	$(if $(filter sim,$(SOAK)),$(BIN)/python -m tests.sim $(SIM_ARGS))

bench: $(READY) $(BENCH_READY)
	$(BIN)/python -m tests.bench $(BENCH_ARGS)

$(READY): pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "box-bridge needs Python 3.11 or newer: make PYTHON=/path/to/python3"; exit 1; }
	@echo "Setting up $(VENV) ..."
	@rm -f $(READY)
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $(READY)

# The peers, apart from what is measured.
$(BENCH_READY): tests/bench/peers/requirements.txt
	@echo "Setting up .bench-venv ..."
	@rm -f $(BENCH_READY)
	@test -x .bench-venv/bin/python || $(PYTHON) -m venv .bench-venv
	@.bench-venv/bin/python -m pip install --quiet --disable-pip-version-check --requirement $<
	@touch $(BENCH_READY)

clean:
	rm -rf $(VENV) .bench-venv bench-results build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	rm -rf tests/interop/js/node_modules
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
