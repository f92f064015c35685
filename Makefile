# clinfuse: each target sets up what it needs; run again it is quick.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
OUT ?= demo_out
SOURCES := clinfuse data_prep/clinfuse_prep platform/clinfuse_platform sweeps/clinfuse_sweeps serve/clinfuse_serve

.PHONY: help venv demo test test-cluster lint bench clean

help:
	@echo "make demo    the whole job on the embedded cohort; ends with OUT=$(OUT)/report.html"
	@echo "make test    all tests (real Ray, the demo included)"
	@echo "make test-cluster   ray up of two hosts made here, over ssh (root; openssh-server, iproute2, rsync)"
	@echo "make lint    ruff and mypy over all packages"
	@echo "make bench   the measured ratios"
	@echo "make venv    only the environment, $(VENV) (other interpreter: PYTHON=python3.12)"

venv: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(STAMP)

demo: $(STAMP)
	$(BIN)/clinfuse demo --out $(OUT) --resume

test: $(STAMP)
	$(BIN)/python -m pytest

test-cluster: $(STAMP)
	CLINFUSE_TEST_CLUSTER=1 $(BIN)/python -m pytest tests/cluster -s

lint: $(STAMP)
	$(BIN)/ruff check $(SOURCES) tests
	$(BIN)/ruff format --check $(SOURCES) tests
	$(BIN)/mypy $(SOURCES)

bench: $(STAMP)
	@for script in tests/benchmarks/*.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache
