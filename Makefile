# Everything happens in .venv, made on first use from the hashed requirements/*.txt.
# It needs make and Python 3.11 to 3.14; uv is used where it is there.

CONFIG ?= configs/figure4.toml
ARGS ?=

VENV := .venv
PY := $(VENV)/bin/python
CANDIDATES := $(or $(PYTHON),python3 python3.13 python3.12 python3.11)
HASHED := --require-hashes --only-binary :all:
PIP := -m pip --disable-pip-version-check
PYTEST := $(PY) -m pytest -q -n auto --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help run verify experiments test test-slow bench docs notebooks lint format lock wheel clean coverage mutants audit

help: ## show this list
	@echo "make TARGET [VARIABLE=value]; the first target sets up $(VENV) (PYTHON=python3.12 picks the Python)"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' Makefile | awk -F'|' '{printf "%-18s %s\n", $$1, $$2}'

run: $(VENV)/.run ## run a study: CONFIG=configs/figure4.toml [ARGS="network.depth=8 …"]
	@$(VENV)/bin/ddln run $(CONFIG) $(ARGS)

verify: $(VENV)/.run ## hold every theorem against a network: CONFIG=…
	@$(VENV)/bin/ddln verify $(CONFIG) $(ARGS)

experiments: $(VENV)/.run ## run every config: writes experiments/RESULTS.md (up to 40 minutes; again = resume)
	@$(PY) -m experiments

test: $(VENV)/.dev ## run the tests and doctests: [ARGS="-k entropy"]
	@$(PYTEST) -m "not slow" $(ARGS)

test-slow: $(VENV)/.dev ## run the slow tests
	@$(PYTEST) -m slow $(ARGS)

coverage: $(VENV)/.dev ## which branches the tests take: htmlcov/index.html (as long as `make test`)
	@$(PYTEST) -m "not slow" --cov --cov-report=term:skip-covered --cov-report=html $(ARGS)

mutants: $(VENV)/.dev ## which changes to the mathematics no test notices (hours): [ARGS="entropy --most 20"]
	@$(PY) -m tests.mutants $(ARGS)

audit: $(VENV)/.made ## look the locked versions up among known vulnerabilities (needs pip-audit)
	@for file in requirements/*.txt; do pip-audit --strict --disable-pip --no-deps -r $$file || exit 1; done

bench: $(VENV)/.bench ## measure: writes benchmarks/RESULTS.md (some minutes)
	@$(PY) -m benchmarks

docs: $(VENV)/.docs ## build the pages into site/; a warning or a broken link fails
	@$(PY) -m docs
	@PYTHONPATH=. $(VENV)/bin/zensical build --strict --clean

notebooks: $(VENV)/.dev ## run the notebooks into build/notebooks/*.ipynb, for Jupyter
	@mkdir -p build/notebooks
	@for file in notebooks/*.py; do name=$${file##*/}; \
	  $(VENV)/bin/marimo -q export ipynb $$file -o build/notebooks/$${name%.py}.ipynb --include-outputs -f || exit 1; done

lint: $(VENV)/.dev ## check style, format and types
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m pyright --pythonpath $(PY)

format: $(VENV)/.dev ## mend style and format
	@$(PY) -m ruff check --fix .
	@$(PY) -m ruff format .

# An address in a lock ties it to one host: refuse it.
COMPILE := uv pip compile --no-strip-extras -q --universal --python-version 3.11 --generate-hashes --only-binary :all: \
  --no-header --annotation-style line

lock: ## resolve requirements/*.txt afresh (needs uv): [ARGS=--upgrade]
	@$(COMPILE) $(ARGS) -o requirements/run.txt pyproject.toml --extra run --group build
	@$(COMPILE) $(ARGS) -o requirements/core.txt pyproject.toml -c requirements/run.txt
	@$(COMPILE) $(ARGS) -o requirements/dev.txt --group dev -c requirements/run.txt
	@$(COMPILE) $(ARGS) -o requirements/bench.txt --group bench -c requirements/run.txt
	@$(COMPILE) $(ARGS) -o requirements/docs.txt --group docs -c requirements/run.txt -c requirements/dev.txt
	@! grep -nE '(https?|file)://' requirements/*.txt

wheel: $(VENV)/.run ## build the wheel, install it into an empty environment and use it there
	@rm -rf dist
	@$(PY) $(PIP) wheel -qq --no-deps --no-build-isolation --wheel-dir dist .
	@set -e; wheel=$$(echo "$$PWD"/dist/*.whl); tmp=$$(mktemp -d); trap 'rm -rf "$$tmp"' EXIT; \
	echo "→ installing $${wheel##*/} into an empty environment"; \
	$(PY) -m venv "$$tmp/venv"; \
	$(call install,"$$tmp/venv/bin/python",requirements/run.txt); \
	"$$tmp/venv/bin/python" $(PIP) install -qq --no-deps --no-index "$$wheel"; \
	"$$tmp/venv/bin/python" $(PIP) check; \
	(cd "$$tmp" && venv/bin/ddln list); \
	echo "→ installing it with the numerical packages alone, to run the README's Python"; \
	$(PY) -m venv "$$tmp/core"; \
	$(call install,"$$tmp/core/bin/python",requirements/core.txt); \
	"$$tmp/core/bin/python" $(PIP) install -qq --no-deps --no-index "$$wheel"; \
	"$$tmp/core/bin/python" $(PIP) check; \
	cp README.md "$$tmp"; cd "$$tmp"; core/bin/python -m doctest README.md

clean: ## remove the environment, caches and builds; runs/ stays
	@rm -rf $(VENV) dist build site htmlcov .coverage* .pytest_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# $(call install,PYTHON,FILE): by uv where it is there and works; else by pip, which knows the user's own settings.
# Like pip, uv is to compile to bytecode: otherwise every process of a test that may not write it compiles for itself.
install = { command -v uv >/dev/null 2>&1 && uv pip install -q --compile-bytecode --python $(1) $(HASHED) -r $(2); } \
  || $(1) $(PIP) install -qq $(HASHED) -r $(2)

$(VENV)/.made:
	@set -e; for python in $(CANDIDATES); do \
	  "$$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' >/dev/null 2>&1 && break; python=; \
	done; \
	[ -n "$$python" ] || { echo "ddln needs Python 3.11 to 3.14; tried: $(CANDIDATES). Name one: make PYTHON=/path/to/python3.12 …" >&2; exit 1; }; \
	echo "→ creating $(VENV) with $$("$$python" --version)"; \
	"$$python" -m venv --clear $(VENV)
	@touch $@

$(VENV)/.run: $(VENV)/.made requirements/run.txt pyproject.toml
	@echo "→ installing requirements/run.txt (a minute or two the first time)"
	@$(call install,$(PY),requirements/run.txt)
	@$(PY) $(PIP) install -qq --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.bench: $(VENV)/.run requirements/bench.txt
	@echo "→ installing requirements/bench.txt"
	@$(call install,$(PY),requirements/bench.txt)
	@touch $@

$(VENV)/.docs: $(VENV)/.run requirements/docs.txt
	@echo "→ installing requirements/docs.txt"
	@$(call install,$(PY),requirements/docs.txt)
	@touch $@

$(VENV)/.dev: $(VENV)/.run requirements/dev.txt
	@echo "→ installing requirements/dev.txt"
	@$(call install,$(PY),requirements/dev.txt)
	@touch $@
