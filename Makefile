# make demo and make test do all of their set-up: Python, pip and make are enough.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: demo test test-slow test-distributed test-kill fuzz benchmarks results clean

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $(STAMP)

demo: $(STAMP)
	$(BIN)/prunus run quickstart --output runs/quickstart --overwrite

test: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n 2 -m "not slow"

test-slow: $(STAMP)
	$(BIN)/python -m pytest -n 2 -m slow

test-distributed: $(STAMP)
	PRUNUS_DISTRIBUTED=1 $(BIN)/python -m pytest tests/distributed

test-kill: $(STAMP)
	PRUNUS_KILLS=200 $(BIN)/python -m pytest -s tests/kill

fuzz: $(STAMP)
	$(BIN)/python benchmarks/fuzz.py

benchmarks: $(STAMP)
	$(BIN)/python benchmarks/overhead.py
	$(BIN)/python benchmarks/kernels.py
	$(BIN)/python benchmarks/runtime.py

results: $(STAMP)
	$(BIN)/python benchmarks/table.py

clean:
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache
