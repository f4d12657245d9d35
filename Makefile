# Everything a fresh machine with Python 3.11 to 3.13 needs: `make demo` and `make test` do all the set-up themselves.
# The first Python that runs and fits: a name on the path may be a version manager's shim with nothing behind it.
FITS := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c '$(FITS)' 2>/dev/null && command -v $$p && break; done)
VENV ?= .venv
DEMO ?= demo
DEMO_MINUTES ?= 2
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo gate test test-slow test-long wheel lint format docs docs-tables bench clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(VENV)/.python:
	@test -n "$(PYTHON)" && $(PYTHON) -c '$(FITS)' || \
		{ echo "Python 3.11 to 3.13 needed: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.run: pyproject.toml constraints.txt | $(VENV)/.python
	$(PIP) -e '.[pictures,train,speech]'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/.python
	$(PIP) -e '.[pictures,video,train,text-vae,vocoder,speech,remote,ray,test,lint]'
	@touch $@ $(VENV)/.run

$(VENV)/.docs: pyproject.toml constraints.txt | $(VENV)/.python
	$(PIP) -e '.[docs]'
	@touch $@

demo: $(VENV)/.run ## Synthetic speech to shards, two minutes of training, a generated sample per task, pictures
	@rm -rf $(DEMO) && mkdir -p $(DEMO)
	$(BIN)/omniges sample-corpus $(DEMO)/corpus --voice --speakers 1 --clips 40 --seconds 24
	$(BIN)/omniges preprocess --root $(DEMO)/corpus --output-dir $(DEMO)/shards --keep-audio
	$(BIN)/omniges verify-shards $(DEMO)/shards --level deep
	$(BIN)/omniges inspect $(DEMO)/shards
	$(BIN)/omniges inspect $(DEMO)/shards 1_synthetica_0_1_1 --png $(DEMO)/sample.png
	$(BIN)/omniges export --shards $(DEMO)/shards -o $(DEMO)/export
	$(BIN)/omniges train --shards $(DEMO)/shards --output-dir $(DEMO)/run --preset tiny --batch-size 16 \
		--max-minutes $(DEMO_MINUTES)
	@for task in t2g a2g t2a g2a g2t a2t; do \
		echo "omniges generate --task $$task" && \
		$(BIN)/omniges generate --checkpoint $(DEMO)/run --task $$task --shards $(DEMO)/shards --split test \
			--seconds 12 --png -o $(DEMO)/generated/$$task || exit 1; done
	$(BIN)/omniges evaluate $(DEMO)/generated --shards $(DEMO)/shards --resamples 200
	$(BIN)/omniges view $(DEMO)/shards $(DEMO)/generated --seconds 12 -o $(DEMO)/page.html
	@echo
	@echo "You made a labelled synthetic corpus ($(DEMO)/corpus), turned it into shards ($(DEMO)/shards), proved them"
	@echo "valid, drew one sample ($(DEMO)/sample.png), wrote the shards back as NPZ, WAV and TextGrid ($(DEMO)/export),"
	@echo "trained one model of six tasks for $(DEMO_MINUTES) minutes ($(DEMO)/run) and generated the test clips by each task"
	@echo "($(DEMO)/generated/TASK). The table above compares them with the recordings; its shuffled column is what guessing gives."
	@echo
	@echo "Open $(DEMO)/page.html in a browser: recorded and generated clips side by side, with sound. A synthesizer spoke"
	@echo "the recorded clips; listen for its words in those of t2a. Each word has a pose of its own, larger where it is louder."
	@echo
	@echo "For BEAT2 itself:"
	@echo "    $(BIN)/omniges preprocess --root datasets/BEAT_SMPL"
	@echo "    $(BIN)/omniges train --shards shards/"

gate: $(VENV)/.run ## What a CI gate does: sound shards pass (exit 0), one damaged byte does not (exit 1)
	@rm -rf $(DEMO)-gate && mkdir -p $(DEMO)-gate
	$(BIN)/omniges sample-corpus $(DEMO)-gate/corpus --clips 4 --seconds 6
	$(BIN)/omniges preprocess --root $(DEMO)-gate/corpus --output-dir $(DEMO)-gate/shards
	$(BIN)/omniges verify-shards $(DEMO)-gate/shards --level deep
	@printf '\001' | dd of=$(DEMO)-gate/shards/train-000000.tar bs=1 seek=100000 conv=notrunc status=none
	$(BIN)/omniges verify-shards $(DEMO)-gate/shards; test $$? -eq 1
	@rm -rf $(DEMO)-gate

test: $(VENV)/.dev ## Run the tests, on all cores (under five minutes on two)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal

test-slow: $(VENV)/.dev ## Run the slower tests, which CI runs too (ten minutes on two cores)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal -m slow

test-long: $(VENV)/.dev ## Run the tests that take minutes each
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m long

wheel: $(VENV)/.dev ## Build sdist and wheel, and try the wheel outside of the checkout
	.ci/wheel $(BIN)

lint: $(VENV)/.dev ## Check style, types, formatting, spelling and docstrings
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell omniges docs examples *.md
	$(BIN)/pydoclint omniges examples

format: $(VENV)/.dev ## Format the code
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

docs: $(VENV)/.docs ## Build the documentation site into ./site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

docs-tables: $(VENV)/.dev ## Write the tables of flags and findings in docs/reference from the code
	$(BIN)/python docs/tables.py

bench: $(VENV)/.dev ## Measure preprocess beside a straightforward conversion
	$(BIN)/python benchmarks/preprocess.py

clean: ## Remove the environment, the demo and caches
	rm -rf $(VENV) $(DEMO) $(DEMO)-gate .pytest_cache .mypy_cache .ruff_cache .hypothesis site *.egg-info
