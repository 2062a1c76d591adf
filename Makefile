# Every target sets itself up: it needs only Python (3.11 or newer) with pip.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# What is used is compiled when it is first used: the rest is most of it.
PIP := $(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check --constraint constraints.txt
IMAGE ?= src/sightline/data/demo/coffee.jpg
OUT ?= sightline-out

.PHONY: help install explain app test test-slow check bench docs notebooks clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' Makefile

install: $(VENV)/.base ## sightline in .venv, nothing else
explain: $(VENV)/.base ## explain a photograph: make explain IMAGE=my.jpg
	$(BIN)/sightline explain "$(IMAGE)" --output "$(OUT)" --force
app: $(VENV)/.app ## the web app: make app, then open the address it prints
	$(BIN)/sightline app
test: $(VENV)/.dev $(VENV)/.browser ## the tests
	$(BIN)/python -m pytest -q -n 2 --dist worksteal
test-slow: $(VENV)/.dev $(VENV)/.browser ## the rest: every family of models, kills, long runs
	$(BIN)/python -m pytest -q -n 2 --dist worksteal -m slow
check: $(VENV)/.dev ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
bench: $(VENV)/.bench ## speed and memory beside the peers, into docs/benchmarks.md
	$(BIN)/python benchmarks/speed.py
docs: $(VENV)/.docs ## the documentation as a site: build/docs/index.html
	$(BIN)/sphinx-build --fail-on-warning --keep-going --quiet --builder html --doctree-dir build/doctrees docs build/docs
	@echo build/docs/index.html
notebooks: $(VENV)/.dev ## execute the notebooks of docs/learn anew, with the pictures that are shipped
	$(BIN)/python docs/notebooks.py
clean: ## remove .venv and caches
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/.base: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing (torch is large: a few minutes)"
	$(PIP) --editable .
	@touch $@
$(VENV)/.dev: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing (torch is large: a few minutes)"
	$(PIP) --editable '.[test,check]'
	@touch $(VENV)/.base $@
$(VENV)/.app: $(VENV)/.base
	$(PIP) --editable '.[app]'
	@touch $@
# The tests in a browser need a chromium; where none can be had they are skipped, with the reason.
$(VENV)/.browser: $(VENV)/.dev
	@command -v chromium >/dev/null || (test "$$(id -u)" = 0 && apt-get install -y -q chromium >/dev/null 2>&1) || echo "no chromium: the tests in a browser are skipped"
	@touch $@
$(VENV)/.docs: $(VENV)/.base
	$(PIP) --editable '.[docs]'
	@touch $@
$(VENV)/.bench: $(VENV)/.dev
	$(PIP) --editable '.[bench]'
	@touch $@
