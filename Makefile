# clinfuse: each target sets up what it needs; run again it is quick.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
OUT ?= demo_out
SOURCES := clinfuse data_prep/clinfuse_prep platform/clinfuse_platform sweeps/clinfuse_sweeps serve/clinfuse_serve

RELEASE ?= release_out

# Every test starts many processes: they start quicker from bytecode, even where the surroundings do without.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help venv demo released test test-cluster test-hosts lint bench clean

help:
	@echo "make demo    the whole job on the embedded cohort; ends with OUT=$(OUT)/report.html"
	@echo "make test    all tests (real Ray, the demo included)"
	@echo "make test-cluster   test-hosts: ray up of two hosts made here, over ssh (root, openssh-server, iproute2, rsync);"
	@echo "                    then eight simulated nodes"
	@echo "make released       train the model in clinfuse/released anew on the embedded cohort (some four hours on 2 cores)"
	@echo "make lint    ruff and mypy over all packages"
	@echo "make bench   the measured ratios"
	@echo "make venv    only the environment, $(VENV) (other interpreter: PYTHON=python3.12)"

venv: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $(STAMP)

demo: $(STAMP)
	$(BIN)/clinfuse demo --out $(OUT) --resume

released: $(STAMP)
	$(BIN)/clinfuse cohort --out $(RELEASE)/cohort --patients 280 --spacing 2 --seed 11
	$(BIN)/clinfuse prep $(RELEASE)/cohort --layout cohort --split 0.5,0.25,0.25 --out $(RELEASE)/cohort.zarr
	$(BIN)/clinfuse train $(RELEASE)/cohort.zarr --recipe cpu-small --run released --storage $(RELEASE)/runs --workers 2 \
		--set contrast_share=0.6 --set lesion_head.channels=[16,32,64,128] --set lesion_learning_rate=0.003 \
		--set lesion_steps=6000 --set denoiser_steps=1400 --set member_steps=600 --set distill_iterations=600 \
		--set distill_batches=24
	$(BIN)/clinfuse distill $(RELEASE)/runs/released --steps 4 --workers 2
	$(BIN)/clinfuse ensemble $(RELEASE)/runs/released --members 3 --workers 2
	$(BIN)/clinfuse calibrate $(RELEASE)/runs/released/ensemble --data $(RELEASE)/cohort.zarr
	$(BIN)/clinfuse evaluate $(RELEASE)/runs/released/ensemble hard_roi prior mri ct --bare --card \
		--data $(RELEASE)/cohort.zarr --out $(RELEASE)/evaluate
	rm -rf clinfuse/released
	cp -r $(RELEASE)/runs/released/ensemble clinfuse/released

test: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not ray" tests
	$(BIN)/python -m pytest -n 2 --dist loadfile -m ray tests/data_prep tests/sweeps tests/serve tests/platform

test-cluster: test-hosts
	CLINFUSE_TEST_CLUSTER=1 $(BIN)/python -m pytest tests/platform/test_many_nodes.py

test-hosts: $(STAMP)
	CLINFUSE_TEST_CLUSTER=1 $(BIN)/python -m pytest tests/cluster -s

lint: $(STAMP)
	$(BIN)/ruff check $(SOURCES) tests
	$(BIN)/ruff format --check $(SOURCES) tests
	$(BIN)/mypy $(SOURCES)

bench: $(STAMP)
	@missed=; for script in tests/benchmarks/*.py; do \
		echo "== $$script"; $(BIN)/python $$script || missed="$$missed $$script"; \
	done; test -z "$$missed" || { echo "failed or short of a goal:$$missed"; exit 1; }

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache
