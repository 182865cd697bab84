# Each target makes .venv when it is missing, or when pyproject.toml has changed since.

PYTHON ?= python3
BIN := .venv/bin
BENCHES := $(patsubst benchmarks/bench_%.py,bench-%,$(wildcard benchmarks/bench_*.py))

.PHONY: help demo test check format clean $(BENCHES)

help:
	@echo "make demo              the whole pipeline on rendered videos, under 5 minutes"
	@echo "make demo VIDEOS=DIR   stages 1 and 2 on your own videos"
	@echo "make test              all tests"
	@echo "make check             format, lint, types"
	@echo "make bench-TOPIC       one benchmark table: $(BENCHES)"

.venv: .venv/installed

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable '.[dev]'
	@touch $@

demo: .venv
	$(BIN)/python demo/run.py $(if $(VIDEOS),--videos '$(VIDEOS)')

test: .venv
	$(BIN)/python -m pytest

check: .venv
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python

format: .venv
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(BENCHES): bench-%: .venv
	$(BIN)/python -m benchmarks.bench_$*

clean:
	rm -rf .venv .pytest_cache .ruff_cache *.egg-info
