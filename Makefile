# `make check` runs what a change must pass. PYTHON picks the interpreter, PYTEST_ARGS adds options (PYTEST_ARGS="-n 0").
PYTHON ?= python
PYTEST_ARGS ?=
SOURCES = setup.py conftest.py jaxbound experiments benchmarks tests

.PHONY: check lint types test doctest slow format

check: lint types test doctest

lint:
	$(PYTHON) -m ruff check $(wildcard $(SOURCES))
	$(PYTHON) -m ruff format --check $(wildcard $(SOURCES))

types:
	$(PYTHON) -m pyright --pythonpath "$$($(PYTHON) -c 'import sys; print(sys.executable)')"

test:
	$(PYTHON) -m pytest $(PYTEST_ARGS)

doctest:
	$(PYTHON) -m pytest --doctest-modules jaxbound $(PYTEST_ARGS)

slow:
	$(PYTHON) -m pytest -m slow $(PYTEST_ARGS)

format:
	$(PYTHON) -m ruff check --fix $(wildcard $(SOURCES))
	$(PYTHON) -m ruff format $(wildcard $(SOURCES))
