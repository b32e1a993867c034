# make demo: the shipped agent on a handful of prompts     make test: every notebook and test
# make lab:  JupyterLab       make mini: play, MineCLIP, prior and policy from nothing       make small: the size that ships, in hours
# make torture MINUTES=60: random faults against the whole library; the last table is in data/torture/
SHELL := /bin/bash
VENV ?= .venv
READY := $(VENV)/.ready
# the whole path of a file that is named from this folder; a path may hold spaces
here = $(if $(filter /%,$(1)),$(1),$(CURDIR)/$(1))
DATA := $(call here,$(patsubst ~/%,$(HOME)/%,$(or $(STEVE1_DATA),data)))
RUN := PATH="$(call here,$(VENV))/bin:$$PATH"
PY := "$(call here,$(VENV))/bin/python"
PAPERMILL := $(RUN) "$(call here,$(VENV))/bin/papermill" -k python3 --cwd nbs --no-progress-bar --log-level WARNING

# notebooks run in nbs/, commands here: all of them get the whole path (override: also for make TARGET STEVE1_DATA=…)
ifneq ($(STEVE1_DATA),)
override export STEVE1_DATA := $(DATA)
endif

# Compiled code of notebooks is kept in data/; that of the package lies beside it, where every command finds it.
# One thread a process is fastest where processes share cores.
lab test torture: export NUMBA_CACHE_DIR ?= $(CURDIR)/data/cache/numba
demo test torture mini small luanti: export OMP_NUM_THREADS ?= 1
demo: export PYTHONWARNINGS ?= ignore
export JUPYTER_PREFER_ENV_PATH := 1
export PYDEVD_DISABLE_FILE_VALIDATION := 1

.PHONY: help setup demo test torture lab mini small luanti readme export docs
help: ; @head -3 Makefile

$(READY): constraints.txt settings.ini setup.py tools/setup.sh
	@tools/setup.sh $(VENV)
	@touch $@
setup: $(READY)

demo: override export STEVE1_DATA := $(DATA)
demo: $(READY)
	@mkdir -p "$(DATA)/runs/demo"
	@$(PAPERMILL) nbs/07_rollout.ipynb "$(DATA)/runs/demo/07_rollout.ipynb" -p name demo
	@echo; echo "The demo is in \"$(DATA)/runs/demo\":"; cd "$(DATA)/runs/demo" && find . -type f | sed 's|^\./|  |' | sort

test: $(READY)
	@$(PY) tests/run_all.py

MINUTES ?= 60
torture: $(READY)
	@$(PY) tests/campaigns/run.py --minutes $(MINUTES) $(CAMPAIGNS)

# as root, such as in a container: make lab LAB=--allow-root
lab: $(READY)
	@$(RUN) jupyter lab --notebook-dir=nbs $(LAB)

# A whole system in data/, from nothing: `make mini` in some half an hour on two cores, `make small` at the size that ships in hours.
# Each line is a stage that can be run alone; what is there already is not made again.
# A rehearsal in a folder of its own: make mini STEVE1_DATA=/tmp/rehearsal EPISODES=12 CLIP_STEPS=10 FRAMES=20000
mini: EPISODES ?= 400
mini: CLIP_STEPS ?= 300
mini: FRAMES ?= 1000000
small: EPISODES ?= 1600
small: CLIP_STEPS ?= 600
small: FRAMES ?= 8000000
mini small: override export STEVE1_DATA := $(DATA)
mini small: $(READY)
	@mkdir -p "$(DATA)/runs/$@"
	$(RUN) steve1_generate $@ $(EPISODES)
	$(PAPERMILL) nbs/experiments/mini_mineclip.ipynb "$(DATA)/runs/$@/mineclip.ipynb" -p dataset $@ -p steps $(CLIP_STEPS) -p out weights/mineclip.safetensors
	$(RUN) steve1_embed $@
	$(RUN) steve1_sampling $@ $@ --val_share .06
	$(PAPERMILL) nbs/05_train.ipynb "$(DATA)/runs/$@/foundation.ipynb" -p preset foundation -p name $@/foundation -p sampling $@ -p init '' -p lr 1e-3 -p n_frames $$(($(FRAMES)/5)) -p resume True
	$(PY) tools/lessons.py $@ $$(($(EPISODES)/8)) $$(($(FRAMES)/16))
	$(PAPERMILL) nbs/05_train.ipynb "$(DATA)/runs/$@/policy.ipynb" -p preset mini -p name $@/policy -p sampling $@ -p mix $@_lessons -p mirror .5 -p init runs/$@/lesson6/latest.safetensors -p lr 1e-3 -p n_frames $(FRAMES) -p resume True
	$(PY) tools/ship.py runs/$@/foundation/latest.safetensors foundation
	$(PY) tools/ship.py runs/$@/policy/latest.safetensors policy
	$(PAPERMILL) nbs/05_train.ipynb "$(DATA)/runs/$@/idm.ipynb" -p preset idm -p name $@/idm -p sampling $@ -p init '' -p lr 1e-3 -p n_frames $$(($(FRAMES)*2/5)) -p resume True
	$(PY) tools/ship.py runs/$@/idm/latest.safetensors idm
	$(PAPERMILL) nbs/06_prior.ipynb "$(DATA)/runs/$@/prior.ipynb" -p sampling $@ -p out weights/prior.safetensors
	$(RUN) steve1_generate "$(DATA)/episodes/sample" 8 --n_steps 400 --seed 500000 --crf 20
	$(RUN) steve1_embed "$(DATA)/episodes/sample"
	$(RUN) steve1_sampling sample "$(DATA)/episodes/sample" --val_share .25

# Luanti's own agent, in data/weights/luanti/, from the one that ships: recordings of the game and of BlockWorld, MineCLIP's
# video side, policy (first a lesson in seeds, which are hardest to see), prior and inverse dynamics model; see
# nbs/experiments/luanti. A small rehearsal in a folder of its own:
# make luanti STEVE1_DATA=/tmp/rehearsal PLACES=1 CLIP_STEPS=9 FRAMES=30000
PLACES ?= 24
luanti: override export STEVE1_DATA := $(DATA)
luanti: $(READY)
	@mkdir -p "$(DATA)/runs/luanti"
	$(PY) tools/record_luanti.py $(PLACES)
	$(RUN) steve1_generate luanti_seeds $$(($(PLACES)*6)) --env luanti --only seeds --n_steps 400 --seed 7200000
	$(RUN) steve1_generate old $$(($(PLACES)*18)) --seed 7500000
	$(PAPERMILL) nbs/experiments/mini_mineclip.ipynb "$(DATA)/runs/luanti/mineclip.ipynb" -p dataset luanti,luanti_seeds,old -p init weights/mineclip.safetensors -p steps $$(($(CLIP_STEPS)*2/3)) -p lr 5e-4 -p out runs/luanti/mineclip.safetensors
	$(RUN) steve1_embed luanti --clip runs/luanti/mineclip.safetensors
	$(RUN) steve1_embed luanti_seeds --clip runs/luanti/mineclip.safetensors
	$(RUN) steve1_embed old --clip runs/luanti/mineclip.safetensors
	$(RUN) steve1_sampling luanti_seeds luanti_seeds --val_share .07
	$(RUN) steve1_sampling luanti luanti luanti_seeds --val_share .06
	$(RUN) steve1_sampling old old --val_share .06
	$(PAPERMILL) nbs/05_train.ipynb "$(DATA)/runs/luanti/seeds.ipynb" -p preset mini -p name luanti_seeds -p sampling luanti_seeds -p mirror .5 -p init weights/policy.safetensors -p lr 6e-4 -p n_frames $$(($(FRAMES)/16)) -p resume True
	$(PAPERMILL) nbs/05_train.ipynb "$(DATA)/runs/luanti/policy.ipynb" -p preset mini -p name luanti_policy -p sampling luanti -p mix old -p mirror .5 -p init runs/luanti_seeds/latest.safetensors -p lr 5e-4 -p n_frames $$(($(FRAMES)/2)) -p resume True
	$(PAPERMILL) nbs/06_prior.ipynb "$(DATA)/runs/luanti/prior.ipynb" -p sampling luanti -p clip runs/luanti/mineclip.safetensors -p out runs/luanti/prior.safetensors
	$(PAPERMILL) nbs/05_train.ipynb "$(DATA)/runs/luanti/idm.ipynb" -p preset idm -p name luanti_idm -p sampling luanti -p init weights/idm.safetensors -p lr 5e-4 -p n_frames $$(($(FRAMES)/12)) -p resume True
	@mkdir -p "$(DATA)/weights/luanti"
	cp "$(DATA)/runs/luanti/mineclip.safetensors" "$(DATA)/runs/luanti/prior.safetensors" "$(DATA)/weights/luanti/"
	$(PY) tools/ship.py runs/luanti_idm/best.safetensors luanti/idm
	$(PY) tools/ship.py runs/luanti_policy/latest.safetensors luanti/policy .6 .5

# For those who change notebooks
export: $(READY) # notebooks -> modules and README.md
	@$(RUN) nbdev_export
	@$(RUN) nbdev_clean
	@$(PY) tools/repo.py readme
readme: $(READY)
	@$(PY) tools/repo.py readme
docs: $(READY) # the site, in _docs: every notebook with its saved outputs, and a reference page for each module
	@$(PY) tools/site.py _docs
	@echo; echo "Open _docs/index.html, or, with the search: $(PY) -m http.server -d _docs"
