# make demo and make test need git, make, Python 3.11 and apt; they install the rest themselves (.venv).
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo docs test check test-alone check-alone test-oldest lint format venv clean distclean

# FFCV=0 leaves out ffcv, which must be compiled; runs then need `--loader memory`.
FFCV ?= 1
export FFCV
# Arguments of pytest, as in `make test PYTEST_ARGS='-k relation'`.
PYTEST_ARGS ?=
# A worker for each core; one that has nothing left to do takes tests from another.
SPREAD := -n logical --maxprocesses 8 --dist worksteal

help:
	@echo 'make demo       the whole method on the embedded digits, a few minutes on 2 CPU cores'
	@echo 'make check      ruff, mypy --strict, and the tests that are quick: two minutes on 2 CPU cores'
	@echo 'make test       ruff, mypy --strict, all tests'
	@echo 'make test-oldest  the quick tests with the oldest versions that pyproject.toml allows (.venv-oldest)'
	@echo 'make lint       ruff and mypy --strict alone'
	@echo 'make docs       the docs site in site/; any warning is an error'
	@echo 'make format     ruff format and the fixes of ruff check'
	@echo 'make venv       .venv alone (demo and test make it); FFCV=0 leaves out ffcv'
	@echo 'make clean      remove caches and build folders; data/, runs/ and .venv stay'
	@echo 'make distclean  clean, and remove .venv and .venv-oldest'

venv:
	@scripts/setup-venv.sh

demo: venv
	@scripts/demo.sh

lint: venv
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/mypy

# mypy beside the tests, which leave a core idle while they start and end.
check test: venv
	@$(MAKE) --no-print-directory --jobs 2 lint $@-alone

check-alone: venv
	@.venv/bin/python -m pytest $(SPREAD) -m 'not slow' $(PYTEST_ARGS)

test-alone: venv
	@.venv/bin/python -m pytest $(SPREAD) $(PYTEST_ARGS)

test-oldest:
	@scripts/setup-venv.sh --oldest
	@.venv-oldest/bin/python -m pytest $(SPREAD) -m 'not slow' $(PYTEST_ARGS)

docs: venv
	@NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict

format: venv
	@.venv/bin/ruff check --fix .
	@.venv/bin/ruff format .

clean:
	@rm -rf build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -not -path './.venv*' -prune -exec rm -rf {} +

distclean: clean
	@rm -rf .venv .venv-oldest
