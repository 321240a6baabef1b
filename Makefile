# make demo and make test need git, make, Python 3.11 and apt; they install the rest themselves (.venv).
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo test lint format venv clean distclean

# FFCV=0 leaves out ffcv, which must be compiled; runs then need `--loader memory`.
FFCV ?= 1
export FFCV
# Arguments of pytest, as in `make test PYTEST_ARGS='-k relation'`.
PYTEST_ARGS ?=

help:
	@echo 'make demo       the whole method on the embedded digits, a few minutes on 2 CPU cores'
	@echo 'make test       ruff, mypy --strict, pytest'
	@echo 'make lint       ruff and mypy --strict alone'
	@echo 'make format     ruff format and the fixes of ruff check'
	@echo 'make venv       .venv alone (demo and test make it); FFCV=0 leaves out ffcv'
	@echo 'make clean      remove caches and build folders; data/, runs/ and .venv stay'
	@echo 'make distclean  clean, and remove .venv'

venv:
	@scripts/setup-venv.sh

demo: venv
	@scripts/demo.sh

lint: venv
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/mypy

test: lint
	@.venv/bin/python -m pytest $(PYTEST_ARGS)

format: venv
	@.venv/bin/ruff check --fix .
	@.venv/bin/ruff format .

clean:
	@rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

distclean: clean
	@rm -rf .venv
