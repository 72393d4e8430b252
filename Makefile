# `make` alone says what can be made. Everything lives in .venv; the starter pack in the user's cache.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input
# An index with CPU builds of torch, for Linux without a GPU, e.g. https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
PYTEST_ARGS ?=
# One process a processor, each with real models in memory; PYTEST_ARGS="-n 0" takes one process.
SIDE_BY_SIDE := -n logical --maxprocesses 4 --dist worksteal
# A folder with a wheel of llama-cpp-python; without it, the package is built, which takes minutes.
LLAMA_CPP_WHEELS ?=
# Those that need no files; benchmarks/evidence.py needs a folder of questions for most of its runs.
BENCH ?= benchmarks/speed.py benchmarks/alignment.py benchmarks/memory.py
# Tests, lint and benchmarks need the dev extra; the demo does without.
STAMP := $(VENV)/.installed$(if $(filter test test-all test-ray test-llama-cpp lint format api bench test-range docs,$(MAKECMDGOALS)),-dev)
PROMPT ?=
export PROMPT

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-all test-ray test-llama-cpp lint format api starter bench test-range docs packages clean distclean

help: ## Say what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo "  PYTHON=python3.12     the Python (3.11 or newer) that makes $(VENV)"
	@echo "  TORCH_INDEX=URL       an extra index for torch (CPU builds for Linux)"
	@echo "  PROMPT=\"...\"          one prompt for make demo"
	@echo "  PYTEST_ARGS=\"...\"     more arguments for pytest, e.g. -m 'not starter'"
	@echo "  BENCH=FILE            the one benchmark to run"
	@echo "  LLAMA_CPP_WHEELS=DIR  a folder with a built wheel of llama-cpp-python"

demo: starter ## Install, fetch the starter pack, let it answer a greeting, a fact and a task
	@set -- "Hi! Who are you?" "What is the capital of Italy?" \
		"Write a short Python function that adds two numbers. No explanation."; \
	[ -z "$$PROMPT" ] || set -- "$$PROMPT"; \
	printf '== %s\n' "$$@"; \
	for prompt; do printf '%s\n' "$$prompt" /record /clear; done | \
		$(BIN)/packfuse chat --max-tokens 96

test: lint starter ## Install, lint, type-check and run the tests, but for the slow ones
	@echo "== Running the tests"
	@$(BIN)/python -m pytest $(SIDE_BY_SIDE) -m "not slow and not ray" $(PYTEST_ARGS)

test-all: lint starter ## The same with the slow tests
	@echo "== Running all tests"
	@$(BIN)/python -m pytest $(SIDE_BY_SIDE) -m "not ray" $(PYTEST_ARGS)

test-ray: $(STAMP) ## Run the tests on a cluster of Ray, which is started here
	@$(PIP) install --quiet --constraint constraints.txt --editable ".[ray]"
	@$(BIN)/python -m pytest -n 0 tests/ray $(PYTEST_ARGS)

test-llama-cpp: $(STAMP) ## Install llama-cpp-python (a build of minutes, or LLAMA_CPP_WHEELS) and test its members
	@echo "== Installing llama-cpp-python"
	@$(BIN)/python -c "import llama_cpp" 2>/dev/null || $(PIP) install --quiet \
		$(if $(LLAMA_CPP_WHEELS),--find-links "$(LLAMA_CPP_WHEELS)" --only-binary llama-cpp-python) \
		--constraint constraints.txt --editable ".[llama-cpp]"
	@echo "== Running the tests of members under llama.cpp"
	@$(BIN)/python -m pytest tests/models/llama_cpp $(PYTEST_ARGS)

lint: $(STAMP) ## Check style, types, imports between rooms, and the public API
	@echo "== Checking style (ruff)"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@echo "== Checking types (mypy)"
	@$(BIN)/mypy
	@echo "== Checking imports (import-linter, .importlinter)"
	@$(BIN)/lint-imports
	@echo "== Comparing the public API with dev/api.txt"
	@$(BIN)/python dev/api.py --check

api: $(STAMP) ## Write the public API to dev/api.txt
	@$(BIN)/python dev/api.py

test-range: $(STAMP) ## Run the core tests on the oldest, pinned and newest transformers and torch
	@$(BIN)/python dev/test_range.py --save $(if $(TORCH_INDEX),--torch-index $(TORCH_INDEX))

format: $(STAMP) ## Put the code into its style
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

starter: $(STAMP) ## Fetch and prepare the starter pack, once
	@echo "== Preparing the starter pack (at once if it is there)"
	@$(BIN)/packfuse starter

packages: ## Build and check all packages, and install them into an empty environment
	@$(PYTHON) dev/release.py --python $(PYTHON) $(if $(TORCH_INDEX),--torch-index $(TORCH_INDEX))

bench: starter ## Run the benchmarks; the last line of each is JSON
	@test -n "$(BENCH)" || { echo "benchmarks/ holds no script"; exit 1; }
	@for script in $(BENCH); do echo "== $$script"; $(BIN)/python $$script || exit; done

docs: $(STAMP) ## Build the documentation as a site in build/site; links are checked
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean: ## Remove caches and build outputs; keep .venv and the starter pack
	rm -rf build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -exec rm -rf {} +

distclean: clean ## Remove .venv as well
	rm -rf $(VENV)

define install
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { \
		$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
			echo "Python 3.11 or newer is needed, $(PYTHON) is older or missing: try make PYTHON=python3.12"; \
			exit 1; }; \
		echo "== Making $(VENV) with $$($(PYTHON) --version)"; $(PYTHON) -m venv $(VENV); }
	@echo "== Installing torch (the largest part; see 'make help' for a CPU build)"
	@$(PIP) install --constraint constraints.txt $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) torch
	@echo "== Installing packfuse and what it needs ($(1)); a few minutes the first time"
	@$(PIP) install --quiet --constraint constraints.txt --editable "$(1)" $(call editable,$(EXPERT))
endef

editable = $(foreach file,$(1),--editable ./$(dir $(file)))
EXPERT := packages/expert/pyproject.toml
INTEGRATIONS := $(wildcard integrations/*/pyproject.toml)

# The stamps make a second run quick: nothing is installed until one of these files changes.
$(VENV)/.installed: pyproject.toml constraints.txt $(EXPERT)
	$(call install,.)
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt $(EXPERT) $(INTEGRATIONS)
	$(call install,.[dev])
	@# langchain-huggingface works with huggingface-hub 2, but its own range ends before it.
	@$(PIP) install --quiet --no-deps --constraint constraints.txt langchain-huggingface
	@$(PIP) install --quiet --no-deps $(call editable,$(INTEGRATIONS))
	@touch $(VENV)/.installed $@
