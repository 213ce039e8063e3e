# Two commands do everything: `make demo` and `make test`. Both need Python >= 3.11 and make, nothing else.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
WORKERS ?= 2
STACK ?= stack
PYTEST := $(BIN)/python -m pytest --durations=25
PARALLEL := -n $(WORKERS) --dist loadfile --no-loadscope-reorder
STAMP := $(VENV)/.installed-$(shell cksum requirements.lock pyproject.toml | cksum | cut -d' ' -f1)

.PHONY: help install install-latest demo test test-slow test-stack lint lock docs deploy-check bench
.DEFAULT_GOAL := help

help:
	@echo "make demo        train on the generated data set, register the model, predict"
	@echo "make test        the tests of every change, in two processes (WORKERS=n: in n)"
	@echo "make test-slow   the slow tests: worlds of 4, whole sweeps and jobs, the documents' commands, the wheel"
	@echo "make test-stack  the tests that need a browser, root's right to make network namespaces, or five minutes each"
	@echo "make lint        ruff, types, import rules, spelling, secrets"
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

# The newest release of every dependency, above the upper bounds too, in place of the lock.
LIST_DEPENDENCIES := import tomllib; p = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
	print(*(line.split(",<")[0] for line in p["dependencies"] + p["optional-dependencies"]["dev"]), sep="\n")

install-latest:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -c '$(LIST_DEPENDENCIES)' > $(VENV)/latest.txt
	$(BIN)/pip install --disable-pip-version-check --quiet --upgrade -r $(VENV)/latest.txt
	$(BIN)/pip install --disable-pip-version-check --quiet --no-deps -e .
	rm -f $(VENV)/.installed-*
	touch $(STAMP)

demo: install
	$(BIN)/m2can demo

test: install
	$(PYTEST) $(PARALLEL) -m "not slow and not stack"

test-slow: install
	$(PYTEST) $(PARALLEL) -m "slow and not stack"

test-stack: install
	$(PYTEST) -m "$(STACK)"

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	git ls-files -z | xargs -0 $(BIN)/codespell
	git ls-files -z | xargs -0 $(BIN)/detect-secrets-hook --baseline .secrets.baseline

bench: install
	$(BIN)/python -m benchmarks.speed --out benchmarks/results/speed.json

docs: install
	$(BIN)/mkdocs build --strict

deploy-check: install
	$(BIN)/python -m deploy.check

lock:
	uv pip compile --universal --generate-hashes --no-emit-index-url --no-header --python-version 3.11 --extra dev pyproject.toml -o requirements.lock
