# The two commands are `make demo` and `make test`. Both set up a virtual environment in $(VENV) first.
VENV ?= .venv
PYTHON ?= python3
BIN = $(VENV)/bin
# Test processes, each with one torch thread.
WORKERS ?= --numprocesses auto --no-loadscope-reorder
# For the threads of a server in a test too; two programs of two threads slow each other by far more than half.
tests test-long coverage: export OMP_NUM_THREADS = 1
# The processes that tests start find the package compiled.
export PYTHONDONTWRITEBYTECODE =

.PHONY: demo test tests test-long lint coverage bench docs clean

demo: $(VENV)/installed
	$(BIN)/vaekit demo

# Lint beside the tests, which leave some of the second core idle.
test: $(VENV)/installed-dev
	$(MAKE) --no-print-directory --jobs 2 lint tests

tests: $(VENV)/installed-dev
	$(BIN)/pytest -m "not long" $(WORKERS)

test-long: lint
	$(BIN)/pytest $(WORKERS)

coverage: $(VENV)/installed-dev
	$(BIN)/pytest -m "not long" $(WORKERS) --cov --cov-report=
	$(BIN)/python tests/coverage_table.py

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

bench: $(VENV)/installed
	$(BIN)/pip install --quiet --editable '.[bench]'
	$(BIN)/python benchmarks/speed.py

docs: $(VENV)/installed-dev
	$(BIN)/sphinx-build --quiet --fail-on-warning docs docs/_build

$(VENV)/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "vaekit needs Python 3.11 or newer, such as: make PYTHON=python3.12 demo")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) dist
