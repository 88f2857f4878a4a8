# Everything a contributor types. `make` alone lists it.
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PORT ?= 8000
# A process that a test brings down fails that test; in place of it xdist would start one that hangs.
# The chaos suite has the machine to itself: what it excuses goes by the clock.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --max-worker-restart 0

.PHONY: help serve test test-long test-all lint model bench-engines bench-serving bench-gateway clean

help:  ## List the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | column -t -s "$$(printf '\t')"

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/.serve: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet -e '.[openvino]'
	@touch $@

$(VENV)/.dev: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	@touch $@ $(VENV)/.serve

serve: $(VENV)/.serve  ## Install what it needs and serve the bundled model on port 8000
	$(BIN)/chatfleet serve --port $(PORT)

test: $(VENV)/.dev lint  ## Install what it needs and run every test
	$(PYTEST)

test-long: $(VENV)/.dev  ## The long suites alone
	$(PYTEST) -m long --ignore tests/chaos
	$(BIN)/python -m pytest -m long tests/chaos

test-all: test test-long  ## Every test, then the long suites

lint: $(VENV)/.dev  ## Style, types and import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

model: $(VENV)/.dev  ## Rebuild the bundled model (up to an hour on 2 cores)
	for stage in 1 2 3; do $(BIN)/python models/tiny/generate.py --stage $$stage && \
		$(BIN)/python models/tiny/train.py --stage $$stage || exit 1; done
	$(BIN)/python models/tiny/export.py
	$(BIN)/python models/tiny/evaluate.py

bench-engines: $(VENV)/.dev  ## Every engine beside vLLM, llama.cpp and transformers serve (16 GB of memory)
	$(BIN)/python benchmarks/engines/compare.py

bench-serving: $(VENV)/.dev  ## The served stream beside the bare engine
	$(BIN)/python benchmarks/engines/served_vs_inprocess.py

bench-gateway: $(VENV)/.dev  ## The gateway beside nginx and others (Linux, gcc, nginx)
	$(BIN)/python benchmarks/gateway/compare.py

clean:  ## Remove the virtual environment and caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
