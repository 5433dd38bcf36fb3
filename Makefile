# Two commands: `make demo` and `make test`. Both set up .venv first, from the pinned versions, once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test test-all clean

demo: $(STAMP)
	@$(BIN)/tunesmith demo

test: $(STAMP)
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/lint-imports --no-cache
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

test-all: test
	OMP_NUM_THREADS=2 $(BIN)/python -m pytest -m slow

$(STAMP): pyproject.toml constraints.txt
	@echo "set-up: a virtual environment in $(VENV) (once)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "tunesmith needs Python 3.11 or newer: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 5; }
	@$(PYTHON) -m venv $(VENV)
	@echo "set-up: torch and the other pinned packages (a few minutes)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch 2>$(VENV)/pip.log || { cat $(VENV)/pip.log; exit 5; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]' 2>$(VENV)/pip.log || { cat $(VENV)/pip.log; exit 5; }
	@touch $(STAMP)

clean:
	rm -rf $(VENV) build dist runs
