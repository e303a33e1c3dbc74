# Each target calls snakemake, pytest or a script. PROFILE chooses configs/$(PROFILE).yaml.
PROFILE ?= phantom
CORES   ?= all
PYTHON  ?= python3
VENV    ?= .venv
VERSIONS ?= pinned
BIN     := $(VENV)/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
DRAWN   := table1.csv table2.csv table3.csv table4.csv planted.csv released_code.csv claims.csv uncertainty.csv \
           figure1.png figure4.png figure5.png suvr_fidelity.csv counterfactuals.png walkthrough.png evaluation.csv \
           input_check.csv longitudinal.csv atn.csv subgroups.csv attributes.csv qc.png
SNAKEMAKE = snakemake --cores $(CORES) --rerun-incomplete --retries 1 --config profile=$(PROFILE)

.PHONY: help env reproduce cost figures bench ablation steps curve stress docs test lint format unlock clean
help:            ## list the targets
	@grep -E '^[a-z]+: .*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/'

env: $(VENV)/.ready  ## install the environment in .venv; VERSIONS=pinned, oldest or newest (about 6 GB: PyTorch with CUDA, which also runs on CPUs)
constraints_pinned = -c constraints.txt
constraints_oldest = -c $(VENV)/oldest.txt
constraints_newest =
# It holds the path of the checkout: after a move or a copy, programs of the environment would still run the old place.
$(VENV)/.ready: pyproject.toml constraints.txt $(if $(filter $(CURDIR),$(shell cat $(VENV)/.ready 2> /dev/null)),,moved)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "ResDM needs Python 3.11 or newer: make PYTHON=python3.11 …")'
	@test ! -s $@ || grep -qxF '$(CURDIR)' $@ || $(PYTHON) -m venv --clear $(VENV)
	@$(BIN)/python -m pip --version > /dev/null 2>&1 || $(PYTHON) -m venv $(VENV)  # an existing one keeps its Python
	$(if $(filter pinned oldest newest,$(VERSIONS)),,$(error VERSIONS is $(VERSIONS); expected pinned, oldest or newest))
	@sed -nE 's/^ *"([A-Za-z0-9_-]+)>=([0-9.]+)".*/\1==\2/p' pyproject.toml > $(VENV)/oldest.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(constraints_$(VERSIONS)) -e '.[notebooks,dev]'
	@echo '$(CURDIR)' > $@
.PHONY: moved

reproduce: env   ## run everything, from raw scans to tables and figures; continue an interrupted run
	@resdm check $(PROFILE) --settings > /dev/null
	-@resdm cost $(PROFILE) $(if $(filter all,$(CORES)),,--cores $(CORES))
	@$(SNAKEMAKE) && echo 'Done. Open the report:' && echo '  $(abspath work/$(PROFILE)/report/index.html)' || { \
	  echo 'Failed. The first error above names the job and its log. The report of what exists, and of what is missing:'; \
	  resdm report $(PROFILE); \
	  echo 'Correct the cause and type the same command again: finished work stays. If the folder is locked: make unlock'; \
	  exit 1; }

cost: env        ## estimate the time of `make reproduce` on this machine
	resdm cost $(PROFILE)

figures: env     ## redraw tables and figures from stored predictions
	$(SNAKEMAKE) --forcerun $(wildcard $(DRAWN:%=figures/$(PROFILE)/%))

bench: env       ## measure speed and memory against the released network and MONAI: benchmarks/results
	$(BIN)/python benchmarks/bench.py
	$(BIN)/python benchmarks/memory.py
	$(BIN)/python benchmarks/preprocessing.py

ablation: env    ## measure each speed-up and its cost in quality, on the phantom: benchmarks/results
	$(BIN)/python benchmarks/ablation.py

steps: env       ## measure quality against sampling steps, for the trained ResDM of PROFILE
	$(BIN)/python benchmarks/steps.py --profile $(PROFILE)

curve: env       ## measure quality against the number of training people (prints the time that it will take)
	$(BIN)/python benchmarks/curve.py --profile $(PROFILE)

stress: env      ## synthesise from shifted scans, by strength (phantoms): figures/PROFILE/stress.png
	$(SNAKEMAKE) -- figures/$(PROFILE)/stress.csv

docs: env        ## build the site from docs/, notebooks (with outputs of the phantom run) and docstrings
	$(BIN)/python -c 'import furo, myst_nb, numpydoc' 2> /dev/null || \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	$(BIN)/python -m sphinx -q -W --keep-going -j auto -c docs -d work/site/.doctrees . work/site
	@echo 'Open $(abspath work/site/docs/index.html)'

test: env        ## run the tests
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: env        ## check style, imports and spelling
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/lint-imports && $(BIN)/codespell

format: env      ## format the code
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

unlock: env      ## remove the lock of a killed run
	$(SNAKEMAKE) --unlock

clean:           ## delete the work folder of PROFILE, with data downloaded there (figures stay)
	rm -rf work/$(or $(strip $(PROFILE)),$(error PROFILE is empty))
