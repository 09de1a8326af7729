# Each target installs what it needs into .venv, once, and again after a change of pyproject.toml or constraints.txt.

PYTHON ?= python3
PY := .venv/bin/python
INSTALL := $(PY) -m pip install -qq --disable-pip-version-check -c constraints.txt -e
SETUP := pyproject.toml constraints.txt

# Real data, for the tests that need it; without it they are skipped.
RONDO_DATA ?= $(shell { cd ../shared/data || cd ./data; } 2>/dev/null && pwd)
WITH_DATA = $(if $(RONDO_DATA),RONDO_DATA="$(RONDO_DATA)")

.PHONY: help demo test soak test-gpu lint clean

help:
	@echo "make demo      compare all four model families on synthetic data"
	@echo "make test      run the tests"
	@echo "make soak      run the slow tests"
	@echo "make test-gpu  run the tests that need a GPU, and list what was skipped"
	@echo "make lint      ruff (check and format) and mypy"
	@echo "make clean     remove .venv and caches, but not runs/ and mlflow.db"

demo: .venv/.demo-ready
	@$(PY) -m workflows compare

test: .venv/.test-ready
	@$(WITH_DATA) $(PY) -m pytest -m "not soak" -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

soak: .venv/.test-ready
	@$(WITH_DATA) $(PY) -m pytest -m soak --timeout 3600

test-gpu: .venv/.test-ready
	@$(WITH_DATA) $(PY) -m pytest -m gpu -rs

lint: .venv/.test-ready
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy

clean:
	@rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# --clear: an incomplete .venv of an interrupted run is replaced.
.venv/bin/python:
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" || { \
		echo "Rondo needs Python 3.11 or newer, not $(PYTHON) ($$($(PYTHON) --version 2>&1));" \
			"set one: make PYTHON=python3.11" >&2; exit 1; }
	@echo "creating .venv"
	@$(PYTHON) -m venv --clear .venv || { rm -rf .venv; exit 1; }

.venv/.demo-ready: $(SETUP) | .venv/bin/python
	@echo "installing the versions of constraints.txt into .venv (takes a few minutes, once)"
	@$(INSTALL) .
	@touch $@

.venv/.test-ready: .venv/.demo-ready
	@echo "installing the packages for tests and lint"
	@$(INSTALL) ".[test]"
	@touch $@
