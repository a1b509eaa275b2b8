# `make help` lists the commands. Each does all the set-up it needs, in VENV.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# One OpenMP thread per process: more is slower on small steps (docs/operations.md, "Threads").
export OMP_NUM_THREADS ?= 1
JOBS ?= 2
FAST := tests/test_*.py tests/laws tests/golden

.PHONY: help setup demo check fast lint types test sanitize docs gpu clean
help:  ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/' | expand -t 12

setup: $(VENV)/.ready  ## the environment: everything that commands and tests need

# torch first and by its exact version, so that pip never resolves to a build with GPU libraries.
$(VENV)/.ready: setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt "$$(grep '^torch==' constraints.txt)"
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[all,test,bench,prometheus,spark,ray,dask]'
	touch $@

demo: setup  ## the whole way on generated lives, a minute and a half on 2 cores
	$(BIN)/vista demo

check: lint  ## under a minute: format, lint, types, laws and other fast tests, the last two side by side
	$(MAKE) -j2 --output-sync=target types fast

fast: setup
	$(BIN)/python -m pytest -n $(JOBS) --dist=loadgroup -q -m "not slow" $(FAST)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

test: setup  ## every test, about nine minutes on 2 cores
	$(BIN)/python -m pytest -n $(JOBS) --dist=loadgroup -q tests

sanitize: setup  ## native.c under AddressSanitizer and UBSan, a million calls, a quarter of an hour
	$(BIN)/python -m tools.drills.sanitize

docs: setup  ## API pages from the docstrings, into build/api
	$(BIN)/python -m pdoc --docformat google -o build/api cache_store vista beam_jobs

# `make gpu DEVICE=cpu QUICK=--quick RESULTS=out` tries all of it without a GPU, the kernels by Triton's interpreter.
# A kernel is compiled for each kind of shape, so examples are few and run side by side. The benchmark runs whatever the
# tests say, and the worse of the two ends make. Where PYTHON has everything already: `make gpu BIN=FOLDER SETUP=`.
DEVICE ?= cuda
RESULTS ?= docs/results
SETUP ?= setup
GPU_TESTS := tests/gpu tests/vista/serving/test_kv_pool.py tests/cache_store/torch/test_torch_feature.py
ON_CPU := $(filter cpu,$(DEVICE))
gpu: $(SETUP)  ## on a GPU: its tests, then every figure of the device path into docs/results, under six minutes
	@status=0; \
	$(if $(ON_CPU),TRITON_INTERPRET=1) VISTA_EXAMPLES=3 timeout $(if $(ON_CPU),900,140) $(BIN)/python -m pytest \
		-q -m gpu -n $(if $(ON_CPU),$(JOBS),8) $(GPU_TESTS) || status=$$?; \
	timeout $(if $(ON_CPU),1800,215) $(BIN)/python -m tools bench gpu $(QUICK) -p device=$(DEVICE) -p out=$(RESULTS) || status=$$?; \
	exit $$status

clean:  ## remove the environment and everything that was built
	rm -rf $(VENV) build dist *.egg-info demo-out .mypy_cache .ruff_cache .pytest_cache
