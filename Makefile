# make demo: the shipped agent on a handful of prompts     make test: every notebook and test
# make lab:  JupyterLab                                    make mini: rebuild what ships (data, weights)
SHELL := /bin/bash
VENV ?= .venv
READY := $(VENV)/.ready
DATA := $(or $(STEVE1_DATA),data)
RUN := PATH="$(CURDIR)/$(VENV)/bin:$$PATH"
PY := $(VENV)/bin/python
PAPERMILL := $(RUN) $(VENV)/bin/papermill -k python3 --cwd nbs --no-progress-bar --log-level WARNING

# compiled world code is shared by all notebooks; one thread a process is fastest where processes share cores
export NUMBA_CACHE_DIR ?= $(CURDIR)/data/cache/numba
demo test mini: export OMP_NUM_THREADS ?= 1
demo: export PYTHONWARNINGS ?= ignore
export JUPYTER_PREFER_ENV_PATH := 1
export PYDEVD_DISABLE_FILE_VALIDATION := 1

.PHONY: help setup demo test lab mini readme export
help: ; @head -2 Makefile

$(READY): constraints.txt settings.ini setup.py tools/setup.sh
	@tools/setup.sh $(VENV)
	@touch $@
setup: $(READY)

demo: $(READY)
	@mkdir -p $(DATA)/runs/demo
	@$(PAPERMILL) nbs/07_rollout.ipynb $(DATA)/runs/demo/07_rollout.ipynb -p name demo
	@echo; echo "The demo is in $(DATA)/runs/demo:"; cd $(DATA)/runs/demo && find . -type f | sed 's|^\./|  |' | sort

test: $(READY)
	@$(PY) tests/run_all.py

lab: $(READY)
	@$(RUN) jupyter lab --notebook-dir=nbs

# What ships in data/weights, from nothing: each line is a stage that can be run alone
mini: $(READY)
	$(RUN) steve1_generate mini 600
	$(PY) tools/mini.py mineclip
	$(RUN) steve1_embed mini
	$(RUN) steve1_sampling mini mini
	$(PY) tools/mini.py foundation
	$(PY) tools/mini.py policy
	$(PY) tools/mini.py prior

# For those who change notebooks
export: $(READY) # notebooks -> modules and README.md
	@$(RUN) nbdev_export
	@$(RUN) nbdev_clean
	@$(PY) tools/repo.py readme
readme: $(READY)
	@$(PY) tools/repo.py readme
