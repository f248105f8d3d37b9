# `make demo` and `make test` each set up everything they need, from a fresh clone and the package registry alone.

VENV   := .venv
BIN    := $(VENV)/bin
PYTHON ?= $(firstword $(foreach name,python3 python3.11 python3.12 python3.13 python3.14,$(shell \
            $(name) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $(name))))

.PHONY: demo test test-floors test-newest lint clean

demo: $(VENV)/.installed
	@$(BIN)/mav generate "a dog surfing" --fps 24

test: lint
	$(BIN)/python -m pytest

# The quick tests with every library that pyproject.toml names at its floor, and with the newest release of each, in a
# virtual environment of its own. A floor is raised, or the code mended for it, when this fails.
test-floors: PINS := --constraint $(VENV)-floors/floors.txt
test-floors test-newest: test-%:
	$(PYTHON) -m venv --clear $(VENV)-$*
	$(PYTHON) .ci/floors.py > $(VENV)-$*/floors.txt
	$(VENV)-$*/bin/python -m pip install --quiet --disable-pip-version-check $(PINS) \
	  --editable '.[dev,eval,parquet,remote,tensorboard]'
	$(VENV)-$*/bin/python -m pytest

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# A stamp is older than pyproject.toml when what it stands for may have changed.
$(VENV)/.installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@ $(VENV)/.installed

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "error: python 3.11 or newer is needed, none was found; give it with PYTHON=" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

clean:
	rm -rf $(VENV) $(VENV)-floors $(VENV)-newest build dist .pytest_cache .mypy_cache .ruff_cache
