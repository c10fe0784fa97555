# The two commands of the README are `make sample` and `make test`; each sets up what it needs.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: sample test lint mutations docs clean

sample: $(VENV)/.core
	$(BIN)/fastddpm sample --out digits.png

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 --dist loadfile --ignore tests/gpu_proofs
	TRITON_INTERPRET=1 $(BIN)/python -m pytest -n 2 tests/interpreter
	$(BIN)/python -m pytest tests/gpu_proofs

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Breaks the code in the known ways and expects a test to fail each time.
mutations: $(VENV)/.dev
	$(BIN)/python tests/mutations/run.py

# The site, in build/site; a broken link or reference fails it.
docs: $(VENV)/.dev
	$(BIN)/mkdocs build --strict

$(VENV)/.core: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable .
	touch $@

$(VENV)/.dev: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@ $(VENV)/.core

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache digits.png
