# One environment for everything. PYTHON chooses the interpreter that it is made from (3.11 to 3.13).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# make LOCK=dependencies/cpu.txt installs what the lock lists and nothing else, each archive by its hash, as CI does. The
# locks are for Python 3.11 on Linux; without one, pip chooses within constraints.txt.
LOCK ?=
PIP_INSTALL := $(BIN)/python -m pip install --quiet
# Test processes at a time. A test file stays in one process, since its tests may share a run.
WORKERS ?= 2
# How long `make faults` kills runs.
MINUTES ?= 20
PYTEST := $(BIN)/python -m pytest --numprocesses=$(WORKERS) --dist=loadfile

.PHONY: train test test-slow test-long test-slurm planted faults check lint types audit lock gpu clean

train: $(VENV)/installed  ## install and train the default task
	$(BIN)/python -m trainer task=cnn

test: $(VENV)/installed  ## the default suite, without a GPU
	$(PYTEST) -m "not gpu and not slow and not long and not slurm"

test-slow: $(VENV)/installed  ## tests that take minutes
	$(PYTEST) -m "slow and not long and not gpu and not slurm" --junitxml=build/slow.xml

test-long: $(VENV)/installed  ## variants of slow tests that CI leaves out
	$(PYTEST) -m "long and not gpu and not slurm" --junitxml=build/long.xml

test-slurm: $(VENV)/installed  ## tests on a real two-node SLURM cluster (Debian: slurmd slurmctld slurm-client munge)
	$(BIN)/python -m pytest -m "slurm and not slow" --junitxml=build/slurm.xml

planted: $(VENV)/installed  ## plant faults in a copy; each has to be noticed by a default test
	$(BIN)/python -m benchmarks.planted_faults

faults: $(VENV)/installed  ## kill runs at random moments for MINUTES; each has to end as if it never had been
	$(BIN)/python -m benchmarks.kill_runs minutes=$(MINUTES)

check: audit lint types test  ## what has to hold before a change lands

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/installed
	$(BIN)/pyright

audit:  ## the locks against the table of advisories, before anything is installed and without a network
	$(PYTHON) -m dependencies.audit

lock: $(VENV)/installed  ## write the lock of this machine's package index: dependencies/cpu.txt or cuda.txt
	$(BIN)/python -m dependencies.lock

gpu:  ## tests and benchmarks that need CUDA, with the environment that stands; writes benchmarks/results/
	$(or $(wildcard $(BIN)/python),python3) -m pytest -m gpu -p no:cacheprovider
	$(or $(wildcard $(BIN)/python),python3) -m benchmarks.gpu

$(VENV)/installed: pyproject.toml constraints.txt $(LOCK)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
ifeq ($(LOCK),)
	$(PIP_INSTALL) --constraint constraints.txt --editable '.[dev]'
else
	# Packages without a wheel are built by setuptools from the lock: pip would fetch a build environment without hashes.
	grep '^setuptools==' $(LOCK) | $(PIP_INSTALL) --require-hashes --requirement /dev/stdin
	$(PIP_INSTALL) --require-hashes --no-build-isolation --requirement $(LOCK)
	$(PIP_INSTALL) --no-build-isolation --no-deps --editable .
endif
	touch $@

clean:
	rm -rf $(VENV) dist build .pytest_cache .ruff_cache
