# The two commands of the README are `make sample` and `make test`; each sets up what it needs.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

# An environment is made without bytecode; each module's is written when it is first imported, and most never are.
# This variable would have every process compile torch anew: 5.4 s of a processor in place of 2.1 for its import alone.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: sample test test-torch211 smoke-torch29 lint runtime release mutations docs clean

sample: $(VENV)/.core
	$(BIN)/fastddpm sample --out digits.png

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --ignore tests/gpu_proofs
	TRITON_INTERPRET=1 $(BIN)/python -m pytest -n 2 tests/interpreter
	$(BIN)/python -m pytest -n 2 --dist loadgroup tests/gpu_proofs

# Other releases of torch, each in an environment of its own beside $(VENV). The Pythons are those of people who have
# these releases; where they are not here, $(PYTHON) takes their place. `python3.12` may be a shim that does not run.
first_python = $(firstword $(foreach python,$(1),$(shell $(python) -c 'import sys; print(sys.executable)' 2>/dev/null)))
PYTHON_TORCH211 ?= $(call first_python,python3.12 $(wildcard $(HOME)/.pyenv/versions/3.12.*/bin/python) $(PYTHON))
PYTHON_TORCH29 ?= $(call first_python,python3.10 $(wildcard $(HOME)/.pyenv/versions/3.10.*/bin/python) $(PYTHON))

# What depends on torch and Triton: steps, engines, operators, kernels and their builds, drop-ins, export, training.
# Of what is marked slow, the engine's compilation is enough: a drop-in's step is compiled the same way.
TORCH_TESTS = $(wildcard $(addprefix tests/*/test_,$(addsuffix .py,compat deferred engine engine_captured sessions sampler \
    kernel_ops capturable noise_mse fusion trainer dropin_diffusers dropin_diffusers_schedulers dropin_guided_diffusion \
    dropin_lucidrains export_networks export_table)))

# SAMPLE=3 runs of each test as few cases as have every value of every parameter, others with another number.
SAMPLE ?=
sampled = $(if $(SAMPLE),--sample $(SAMPLE))

test-torch211: $(VENV)-torch211/.test
	$(VENV)-torch211/bin/fastddpm sample --out $(VENV)-torch211/digits.png
	$(VENV)-torch211/bin/python scripts/same_picture.py $(VENV)-torch211/digits.png docs/images/digits.png
	$(VENV)-torch211/bin/fastddpm doctor --json $(VENV)-torch211/doctor.json
	TRITON_INTERPRET=1 $(VENV)-torch211/bin/python -m pytest -n 2 $(sampled) tests/interpreter
	$(VENV)-torch211/bin/python -m pytest -n 2 --dist loadgroup $(sampled) tests/gpu_proofs
	$(VENV)-torch211/bin/python -m pytest -n 2 $(sampled) --dist loadfile --no-loadscope-reorder \
		-m 'not slow or every_torch' $(TORCH_TESTS)

smoke-torch29: $(VENV)-torch29/.core
	$(VENV)-torch29/bin/fastddpm sample --out $(VENV)-torch29/digits.png
	$(VENV)-torch29/bin/python scripts/same_picture.py $(VENV)-torch29/digits.png docs/images/digits.png

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The distribution without torch, in dist.
runtime: $(VENV)/.dev
	$(BIN)/python scripts/build_runtime.py dist

# Both distributions for a package index, in dist; their links lead to the remote `origin`, or to REPOSITORY.
release: $(VENV)/.dev
	$(BIN)/python scripts/build_release.py dist $(if $(REPOSITORY),--repository $(REPOSITORY))

# Breaks the code in the known ways and expects a test to fail each time; SHARE=1/3 takes every third, from the second on.
SHARE ?= 0/1
mutations: $(VENV)/.dev
	$(BIN)/python tests/mutations/run.py --share $(SHARE)

# The site, in build/site; a broken link or reference fails it. npm brings what its page that draws runs on.
docs: $(VENV)/.dev
	if command -v npm >/dev/null; then npm ci --prefix examples/browser --no-audit --no-fund; fi
	$(BIN)/mkdocs build --strict

$(VENV)/.core: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --no-compile --disable-pip-version-check --editable .
	touch $@

$(VENV)/.dev: pyproject.toml benchmarks/pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --no-compile --disable-pip-version-check --editable '.[dev]' --editable benchmarks
	touch $@ $(VENV)/.core

$(VENV)-torch211/.test: pyproject.toml benchmarks/pyproject.toml
	$(PYTHON_TORCH211) -m venv $(VENV)-torch211
	$(VENV)-torch211/bin/pip install --quiet --no-compile --disable-pip-version-check --editable '.[test-torch]' --editable benchmarks torch==2.11.0
	touch $@

$(VENV)-torch29/.core: pyproject.toml
	$(PYTHON_TORCH29) -m venv $(VENV)-torch29
	$(VENV)-torch29/bin/pip install --quiet --no-compile --disable-pip-version-check --editable . torch==2.9.1
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-torch211 $(VENV)-torch29 build dist *.egg-info .mypy_cache .ruff_cache digits.png
