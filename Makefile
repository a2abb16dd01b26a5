# Every target makes the environment that it needs.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin

$(VENV)/base: setup.cfg
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e .
	touch $@

# The tests need torch, which is large.
$(VENV)/ready: $(VENV)/base
	$(BIN)/python -m pip install --quiet -e '.[test]'
	touch $@

.PHONY: venv demo test lint types unit integration docs pictures mutation bench clean
venv: $(VENV)/ready

demo: $(VENV)/base
	PATH="$(abspath $(BIN)):$$PATH" bash fixtures/demo.sh

test: lint types unit

# Over the processors, each file's tests on one: what a file shares is made once.
unit: venv
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: venv
	$(BIN)/mypy

# The parts of the documentation that come out of the code.
docs: venv
	$(BIN)/python docs/generate.py

# The README's pictures; needs a browser and the package index.
pictures: venv
	$(BIN)/python docs/pictures.py

# With the programs that users run moe-lint from; installs packages.
integration: venv
	$(BIN)/python -m pip install --quiet -e '.[test,integration]'
	$(BIN)/python -m pytest -m integration

# What the runtime notices of sabotaged files: TREE is a release that has the helper. Takes minutes.
mutation: venv
	$(BIN)/python -m tests.mutation $(TREE) $(MODULES) > docs/mutation.md

bench: venv
	$(BIN)/python benchmarks/measure.py --write

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache build *.egg-info
