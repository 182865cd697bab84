# Each target makes .venv when it is missing, or when pyproject.toml has changed since.

PYTHON ?= python3
BIN := .venv/bin
BENCHES := $(subst _,-,$(patsubst benchmarks/%.py,%,$(wildcard benchmarks/bench_*.py)))

.PHONY: help demo motion-network test test-fast check docs format clean $(BENCHES)

help:
	@echo "make demo              the whole pipeline on rendered videos, in 7 minutes"
	@echo "make demo VIDEOS=DIR   stages 1 and 2 on your own videos"
	@echo "make motion-network    the network that the package brings, in two hours"
	@echo "make test              all tests, in 7 to 15 minutes"
	@echo "make test-fast         those that need neither Ray nor a browser, in about 1"
	@echo "make check             format, lint, types, documentation"
	@echo "make docs              the documentation site, into site/"
	@echo "make bench-TOPIC       one benchmark table: $(BENCHES)"

.venv: .venv/installed

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable '.[dev]'
	@touch $@

demo: .venv
	$(BIN)/python demo/run.py $(if $(VIDEOS),--videos '$(VIDEOS)')

motion-network: .venv
	$(BIN)/python -m demo.motion_network

test: .venv
	$(BIN)/python -m pytest

test-fast: .venv
	$(BIN)/python -m pytest -m 'not slow'

check: .venv
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(MAKE) --no-print-directory docs

docs: .venv
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

format: .venv
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(BENCHES): .venv
	$(BIN)/python -m benchmarks.$(subst -,_,$@)

clean:
	rm -rf .venv .pytest_cache .ruff_cache dist site
