# `make demo` and `make test` set everything up by themselves; nothing but Python 3.11 or newer and make is needed.
#   PYTHON=python3.12     the interpreter to build .venv with (default: the first of the list below that is new enough)
#   PIP_ARGS="..."        more arguments for pip, for example --extra-index-url https://download.pytorch.org/whl/cpu
#                         for the small PyTorch without CUDA
#   WORKERS=4             test processes (default 2)
#   ARGS="-k words"       more arguments for pytest

PYTHON ?=
PIP_ARGS ?=
WORKERS ?= 2
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.stamp
DEMO := Large left pleural effusion. Severe consolidation in the right upper lobe.

ifeq ($(strip $(HOME)),)
export HOME := $(abspath $(VENV))/home
endif
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PYTHONUNBUFFERED := 1

.PHONY: help setup demo test lint format bench peers clean

help:
	@echo "make demo    a synthetic chest CT with two maps for every word, in runs/demo"
	@echo "make test    style, types and tests      make lint    style and types only"
	@echo "make bench   speed and memory, to bench/results/speed.json"
	@echo "make format  put the code in shape       make clean   remove what make built, runs excepted"

setup: $(STAMP)

# The pins were made on 3.11, so it comes first.
$(STAMP): pyproject.toml constraints.txt
	@if ! $(BIN)/python -c 'import pip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	  found=; \
	  for python in $(or $(PYTHON),python3.11 python3.12 python3.13 python3.14 python3); do \
	    if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then found="$$python"; break; fi; \
	  done; \
	  if [ -z "$$found" ]; then \
	    echo "voxplain needs Python 3.11 or newer $(if $(PYTHON),and PYTHON=$(PYTHON) is not,and found none on PATH): install one, or name it with make PYTHON=..." >&2; \
	    exit 1; \
	  fi; \
	  echo "making $(VENV) with $$("$$found" --version)"; \
	  rm -rf $(VENV); \
	  "$$found" -m venv $(VENV) >/dev/null 2>&1 \
	    || { rm -rf $(VENV); "$$found" -m virtualenv -q $(VENV) 2>/dev/null; } \
	    || { rm -rf $(VENV); virtualenv -q -p "$$found" $(VENV) 2>/dev/null; } \
	    || { rm -rf $(VENV); echo "no way to make a virtual environment: install python3-venv (apt-get install python3-venv) or virtualenv (pip install virtualenv)" >&2; exit 1; }; \
	fi
	@$(BIN)/python -m pip install -q -c constraints.txt $(PIP_ARGS) --upgrade 'pip>=25.3'
	@echo "installing into $(VENV) (once; minutes, most of them for PyTorch):"
	@{ $(BIN)/python -m pip install -c constraints.txt --build-constraint constraints.txt $(PIP_ARGS) torch -e . --group dev; \
	   echo $$? > $(VENV)/.status; } \
	 | while read -r does what rest; do \
	     case "$$does $$what" in \
	       Collecting*) printf ' %s' "$${what%%[<>=~!]*}";; \
	       "Installing collected") printf '\nunpacking ...\n';; \
	     esac; \
	   done; exit $$(cat $(VENV)/.status)
	@touch $@

demo: $(STAMP)
	@$(BIN)/voxplain explain "$(DEMO)" --out runs/demo --overwrite
	@$(BIN)/voxplain report runs/demo --interactive
	@echo "the pages to look at: runs/demo/viewer.html, to explore, and runs/demo/report.html, to read"
	@echo "the same viewer with everything in it: $(BIN)/voxplain view runs/demo"

lint: $(STAMP)
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/pyright

test: lint
	@$(BIN)/python -m pytest -n $(WORKERS) $(ARGS)

format: $(STAMP)
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

bench: $(STAMP)
	@$(BIN)/python bench/speed.py

peers: $(STAMP)
	@$(BIN)/python -m venv .peers || virtualenv .peers
	@.peers/bin/python -m pip install -q -c constraints.txt $(PIP_ARGS) torch -e . -r bench/peers/requirements.txt
	@.peers/bin/python -m pip install -q --no-deps -r bench/peers/packages.txt

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .hypothesis src/*.egg-info
	find src tests bench docs -name __pycache__ -type d -prune -exec rm -rf {} +
