# Two commands set everything up: `make demo` runs the main job, `make test` runs the tests.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: demo test check format clean

# torch is pinned for development: without the constraint pip may take gigabytes of CUDA packages
$(VENV)/run: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet -c constraints.txt -e '.[torch]'
	touch $@

$(VENV)/dev: pyproject.toml constraints.txt $(VENV)/run
	$(PIP) install --quiet -c constraints.txt -e '.[test,dev]'
	touch $@

demo: $(VENV)/run
	$(BIN)/python bench/demo.py

test: $(VENV)/dev
	$(BIN)/python -m pytest -n auto

check: $(VENV)/dev
	$(BIN)/ruff check bitsmith tests bench
	$(BIN)/ruff format --check bitsmith tests bench
	$(BIN)/mypy
	$(BIN)/python -m pytest -n auto

format: $(VENV)/dev
	$(BIN)/ruff format bitsmith tests bench
	$(BIN)/ruff check --fix bitsmith tests bench

clean:
	rm -rf $(VENV) demo build dist
