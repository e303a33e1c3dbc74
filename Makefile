# Each target is a line or two over snakemake or pytest. PROFILE chooses configs/$(PROFILE).yaml.
PROFILE ?= phantom
CORES   ?= all
PYTHON  ?= python3
VENV    ?= .venv
BIN     := $(VENV)/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
DRAWN   := table1.csv table2.csv table3.csv table4.csv planted.csv departures.csv claims.csv uncertainty.csv \
           figure1.png figure4.png figure5.png suvr_fidelity.csv counterfactuals.png
SNAKEMAKE = snakemake --cores $(CORES) --rerun-incomplete --config profile=$(PROFILE)

.PHONY: help env reproduce cost figures bench ablation steps test lint format unlock clean
help:            ## what there is
	@grep -E '^[a-z]+: .*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/'

env: $(VENV)/.ready  ## the environment, in .venv (about 6 GB: PyTorch's CUDA build, which also runs on CPUs)
$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "ResDM needs Python 3.11 or newer: make PYTHON=python3.11 …")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[notebooks,dev]'
	@touch $@

reproduce: env   ## everything, from raw scans to tables and figures; goes on where it stopped
	-@resdm cost $(PROFILE) $(if $(filter all,$(CORES)),,--cores $(CORES))
	$(SNAKEMAKE)

cost: env        ## what `make reproduce` will take on this machine
	resdm cost $(PROFILE)

figures: env     ## tables and figures again, from stored predictions, without training
	$(SNAKEMAKE) --forcerun $(wildcard $(DRAWN:%=figures/$(PROFILE)/%))

bench: env       ## speed and memory against the released network and MONAI's: benchmarks/results
	$(BIN)/python benchmarks/bench.py
	$(BIN)/python benchmarks/memory.py
	$(BIN)/python benchmarks/preprocessing.py

ablation: env    ## the speed-ups at equal quality, on the phantom: benchmarks/results
	$(BIN)/python benchmarks/ablation.py

steps: env       ## fewer sampling steps: quality against cost, of PROFILE's trained ResDM
	$(BIN)/python benchmarks/steps.py --profile $(PROFILE)

test: env        ## the test suite
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: env        ## style, floors
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/lint-imports

format: env      ## rewrite to the house's style
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

unlock: env      ## after a run that was killed with its lock held
	$(SNAKEMAKE) --unlock

clean:           ## forget what PROFILE made (figures stay)
	rm -rf work/$(PROFILE)
