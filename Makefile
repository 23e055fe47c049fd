# Two commands on a fresh machine with Python 3.11+, git, make and g++: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.set-up
SEVERAL := --numprocesses auto --maxprocesses 4 --dist loadfile # tests of a file share what they made

.PHONY: demo test test-fast lint bench site clean

$(STAMP): requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/davit demo --out runs/demo

test: $(STAMP) lint
	$(BIN)/pytest $(SEVERAL) --durations=15

test-fast: $(STAMP)
	$(BIN)/pytest $(SEVERAL) -m "not slow"

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyrefly check
	$(BIN)/lint-imports

bench: $(STAMP)
	$(BIN)/python benchmarks/small_variants.py
	$(BIN)/python benchmarks/native_engine.py

site: $(STAMP)
	$(BIN)/zensical build --clean --strict

clean:
	rm -rf $(VENV) build dist runs .cache .pytest_cache .ruff_cache
