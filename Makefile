# All a newcomer needs: `make demo` and `make test`. `make help` lists the targets.
# Only Python 3.11 or newer is expected on the machine; everything else is installed into .venv.

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint bench soak gpu clean

help:  ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 10

setup: $(STAMP)  ## make .venv with moectl and its tools in it
	@echo "ready: $(BIN)/moectl --help"

$(STAMP): pyproject.toml setup.py $(wildcard core/*.[ch] kernels/*.[ch] memory/cache/*.c placement/copies/*.[ch])
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "moectl needs Python 3.11 or newer; try: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	@echo "installing into .venv: a minute or two"
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $(STAMP)

demo: setup  ## up, serve, scale 2-4-3-2 live, kill a worker, heal, down
	$(BIN)/moectl demo $(ARGS)

test: setup  ## the default suite: no GPU, no network
	$(BIN)/pytest $(ARGS)

lint: setup  ## style, format and types
	mkdir -p .typing && ln -sfn .. .typing/moectl
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: setup  ## figures of the main job, as JSON
	$(BIN)/moectl demo -o json $(ARGS)

soak: setup  ## the long counts: watched changes, records, specs, fuzz of API and HMM, 20 s without etcd
	MOECTL_WATCH_CHANGES=100000 $(BIN)/pytest tests/contract/test_store_cluster.py -s -k watch_loses --timeout 1500
	MOECTL_RECORD_EXAMPLES=1000 $(BIN)/pytest tests/property/test_records_round_trip.py
	MOECTL_SCHEMA_CASES=10000 $(BIN)/pytest tests/property/test_schema_equals_loader.py
	MOECTL_FUZZ_EXAMPLES=100 $(BIN)/pytest tests/contract/test_api_fuzz.py -s --timeout 1500
	MOECTL_FUZZ_MESSAGES=100000 $(BIN)/pytest tests/unit/memory/test_hmm_faults.py --timeout 1500
	MOECTL_AWAY_S=20 $(BIN)/pytest tests/e2e/test_store_away.py -s --timeout 600

gpu:  ## tests on a GPU machine with torch, triton, transformers and pytest; installs nothing
	mkdir -p .typing && ln -sfn .. .typing/moectl
	PYTHONSAFEPATH=1 PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=.typing $(PYTHON) -m pytest tests/gpu \
	  -c tests/gpu/bare.ini --rootdir . -m gpu -p no:cacheprovider $(ARGS)

clean:  ## remove what make and the tools made, .venv too
	rm -rf .venv .typing build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	rm -f core/*.so kernels/*.so memory/cache/*.so placement/copies/*.so snapshot_report.html
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
