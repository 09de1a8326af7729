# Every target sets up what it needs, once, in .venv; a change of pyproject.toml or constraints.txt sets it up again.

PYTHON ?= python3
PY := .venv/bin/python
INSTALL := $(PY) -m pip install -qq --disable-pip-version-check -c constraints.txt -e
SETUP := pyproject.toml constraints.txt

# Real data for the tests that need some; without it they skip.
RONDO_DATA ?= $(shell { cd ../shared/data || cd ./data; } 2>/dev/null && pwd)
WITH_DATA = $(if $(RONDO_DATA),RONDO_DATA="$(RONDO_DATA)")

.PHONY: help demo test soak test-gpu lint clean

help:
	@echo "make demo      train all four families on embedded data, and rank them"
	@echo "make test      run the tests"
	@echo "make soak      run the tests that take longer"
	@echo "make test-gpu  run the tests that need a GPU, and say what was skipped"
	@echo "make lint      ruff and mypy"
	@echo "make clean     remove .venv and caches; runs/ and mlflow.db stay"

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
	@$(PY) -m mypy

clean:
	@rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# --clear: a .venv that was left half-made is made anew.
.venv/bin/python:
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" || { \
		echo "Rondo needs Python 3.11 or newer, not $(PYTHON) ($$($(PYTHON) --version 2>&1));" \
			"name one: make PYTHON=python3.11" >&2; exit 1; }
	@echo "making .venv"
	@$(PYTHON) -m venv --clear .venv || { rm -rf .venv; exit 1; }

.venv/.demo-ready: $(SETUP) | .venv/bin/python
	@echo "installing the exact versions of constraints.txt into .venv (some minutes, this once)"
	@$(INSTALL) .
	@touch $@

.venv/.test-ready: .venv/.demo-ready
	@echo "installing what tests and lint need"
	@$(INSTALL) ".[test]"
	@touch $@
