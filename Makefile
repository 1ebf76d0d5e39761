# The developer's commands; `make` alone lists them. STACK picks the toolboxes:
# onedl (the default) or openmmlab, each in an environment of its own.

STACK ?= onedl
ARGS ?=
PYTHON ?=
JOBS ?= 2

UV_VERSION := 0.13.9

VENV_onedl := .venv
VENV_openmmlab := .venv-openmmlab
VENV := $(VENV_$(STACK))
ifeq ($(VENV),)
  $(error STACK is "$(STACK)", but only onedl and openmmlab exist)
endif

# The Pythons to try, the preferred one first, and which versions fit. Only
# Python 3.10 has wheels of all that openmmlab needs. pyenv and uv install
# Pythons in folders that are not on PATH.
PYENV := $(or $(PYENV_ROOT),$(HOME)/.pyenv)/versions
UV_PYTHONS := $(HOME)/.local/share/uv/python
KEPT = $(wildcard $(PYENV)/$(1).*/bin/python \
	$(UV_PYTHONS)/cpython-$(1).*/bin/python$(1))
PYTHONS_onedl := python3.11 python3 python3.12 python3.13 python3.14 \
	python3.10 $(foreach v,3.11 3.12 3.13 3.14 3.10,$(call KEPT,$(v)))
PYTHONS_openmmlab := python3.10 python3 $(call KEPT,3.10)
FITS_onedl := (3, 10) <= v < (3, 15)
FITS_openmmlab := v == (3, 10)
NEEDS_onedl := Python 3.10 to 3.14
NEEDS_openmmlab := Python 3.10 exactly

# Many containers set this variable. Then each process would compile PyTorch
# and the toolboxes to bytecode again, which takes half a minute on two cores.
unexport PYTHONDONTWRITEBYTECODE

# One thread a worker: otherwise PyTorch's threads would compete for the cores.
PYTEST = OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n $(JOBS)

.DEFAULT_GOAL := help
.PHONY: help setup test test-all demo lint format lock python clean

help:  ## list what there is
	@echo 'make TARGET [STACK=onedl|openmmlab] [ARGS="..."] [PYTHON=/path]'
	@echo
	@sed -nE 's/^([a-z-]+):.*## (.*)/  \1\t\2/p' Makefile | expand -t 12

setup: $(VENV)/.ready  ## build the environment, unless it is up to date
	@echo 'The $(STACK) stack is ready in $(VENV).'

test: $(VENV)/.ready  ## run the tests, without the slow ones
	$(PYTEST) $(ARGS)

test-all: $(VENV)/.ready  ## run all tests, the slow ones too
	$(PYTEST) -m '' $(ARGS)

demo: $(VENV)/.ready  ## train and test a small model on generated data
	$(VENV)/bin/python tools/demo.py $(ARGS)

# The tools of these two are installed in the default stack only: their answers
# do not depend on the stack.
ifeq ($(STACK),onedl)
lint: $(VENV)/.ready  ## check style, direction of imports, types and spelling
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/lint-imports --no-logo
	$(VENV)/bin/mypy
	$(VENV)/bin/codespell

format: $(VENV)/.ready  ## correct style and formatting where ruff can
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .
else
lint format:
	@echo 'The default stack alone has the tools: run `make $@`' \
	  'without STACK=$(STACK).' >&2; \
	exit 1
endif

LOCK = $(VENV)/bin/uv pip compile -q --universal --python-version 3.10 \
	--override requirements/overrides.txt \
	--custom-compile-command 'make lock' $(ARGS)

lock: $(VENV)/.ready  ## write the locks again (ARGS=--upgrade: newer versions)
	$(LOCK) requirements/onedl.in -o requirements/onedl.txt
	$(LOCK) requirements/openmmlab.in -o requirements/openmmlab.txt

python:  ## print the Python that `make setup` would use
	@for python in $(or $(PYTHON),$(PYTHONS_$(STACK))); do \
	  "$$python" -c 'import sys; v = sys.version_info[:2]; \
	    $(FITS_$(STACK)) or sys.exit(1); print(sys.executable)' \
	    2>/dev/null && exit; \
	done; \
	echo 'The $(STACK) stack needs $(NEEDS_$(STACK)),' \
	  'which $(if $(PYTHON),$(PYTHON) is not,was not found): install it, for' \
	  'example by `uv python install 3.10`, or name one by' \
	  'PYTHON=/path/to/python.' >&2; \
	exit 1

# The folder is emptied first and the stamp is written last, so that a build
# that was interrupted starts again. The lock names all packages: --no-deps keeps
# out those that requirements/overrides.txt removed.
$(VENV)/.locked: requirements/$(STACK).txt Makefile
	@rm -f $@
	@python=$$($(MAKE) -s --no-print-directory python) && \
	echo "Making the environment $(VENV) with $$python ..." && \
	if ! "$$python" -c 'import ensurepip, venv' 2>/dev/null; then \
	  echo "$$python cannot make environments: on Debian and Ubuntu," \
	    'run `apt install python3-venv`.' >&2; \
	  exit 1; \
	fi && \
	"$$python" -m venv --clear $(VENV)
	@$(VENV)/bin/python -m pip install -qq uv==$(UV_VERSION)
	@count=$$(sed -n 's/==.*//p' requirements/$(STACK).txt | sort -u | wc -l); \
	echo "Installing about $$count packages of requirements/$(STACK).txt ..."
	@$(UV_INSTALL) --no-deps -r requirements/$(STACK).txt
	@touch $@

$(VENV)/.ready: $(VENV)/.locked setup.py pyproject.toml
	@rm -f $@
	@echo 'Installing mmefficientmod into $(VENV) ...'
	@$(UV_INSTALL) --no-deps --no-build-isolation -e .
	@$(LINK_$(STACK))
	@touch $@

UV_INSTALL = $(VENV)/bin/uv pip install -q --python $(VENV)

# MMEngine 0.10.7 looks for a package next to its metadata, where an editable
# installation has no code.
LINK_openmmlab = ln -sfn '$(CURDIR)/mmefficientmod' \
	$(VENV)/lib/python3.10/site-packages/

clean:  ## remove the environments, builds and caches
	rm -rf .venv .venv-openmmlab build dist *.egg-info mmefficientmod/.mim
	rm -rf .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
