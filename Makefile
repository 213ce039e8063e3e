# Two commands do everything: `make demo` and `make test`. Both need Python >= 3.11 and make, nothing else.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed-$(shell cksum requirements.lock pyproject.toml | cksum | cut -d' ' -f1)

.PHONY: help install demo test test-stack lint lock docs deploy-check bench
.DEFAULT_GOAL := help

help:
	@echo "make demo        train on the generated data set, register the model, predict"
	@echo "make test        all tests that need nothing but Python"
	@echo "make test-stack  the tests that need a browser or a database"
	@echo "make lint        ruff, types, import rules"
	@echo "make bench       how fast, as ratios against the published cost structure"
	@echo "make docs        the documents as pages, in site/"
	@echo "make deploy-check  what can be known of deploy/ without a cluster"

$(STAMP):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or later is needed: make PYTHON=python3.11 ..."; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --disable-pip-version-check --quiet --require-hashes -r requirements.lock
	$(BIN)/pip install --disable-pip-version-check --quiet --no-deps --no-build-isolation -e .
	rm -f $(VENV)/.installed-*
	touch $@

install: $(STAMP)

demo: install
	$(BIN)/m2can demo

test: install
	$(BIN)/python -m pytest -m "not stack"

test-stack: install
	$(BIN)/python -m pytest -m stack

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: install
	$(BIN)/python -m benchmarks.speed --out benchmarks/results/speed.json

docs: install
	$(BIN)/mkdocs build --strict

deploy-check: install
	$(BIN)/python -m deploy.check

lock:
	uv pip compile --universal --generate-hashes --no-emit-index-url --no-header --python-version 3.11 --extra dev pyproject.toml -o requirements.lock
