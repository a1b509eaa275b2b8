# The two commands of the README: `make demo` and `make test`. Both do all the set-up.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# One OpenMP thread per process: more is slower on small steps (docs/operations.md, "Threads").
export OMP_NUM_THREADS ?= 1
JOBS ?= 2

.PHONY: setup demo test lint clean
setup: $(VENV)/.ready

# torch first and by its exact version, so that pip never resolves to a build with GPU libraries.
$(VENV)/.ready: setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt "$$(grep '^torch==' constraints.txt)"
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[test,bench,prometheus]'
	touch $@

demo: setup
	$(BIN)/vista demo

test: setup
	$(BIN)/python -m pytest -n $(JOBS) --dist=loadgroup -q tests

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf $(VENV) build dist *.egg-info demo-out
