# make demo: pictures and a page in outputs/demo. make test: lint, types, suite. Both build .venv first if needed.
PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: demo test lint types suite torture scenes scenes-vq emoji constraints clean
.DELETE_ON_ERROR:

demo: $(VENV)/.installed
	$(BIN)/python -m app.demo --out outputs/demo

test: lint types suite

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev
	$(BIN)/mypy

suite: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n $(JOBS) -m "not torture"

# The long counts of the property tests and of the fault tables.
torture: $(VENV)/.installed-dev
	LDM_TORTURE=1 $(BIN)/python -m pytest -n $(JOBS) --timeout 3600 -m torture

# Every part trained from nothing on drawn scenes, and a report on combinations that training never saw. Stop and go on
# as you like: a part that is finished is not trained again. `scenes-vq` is the same chain on a VQ autoencoder.
scenes scenes-vq: $(VENV)/.installed
	$(BIN)/ldm train autoencoder/$@ run.out=runs/$@/autoencoder
	$(BIN)/ldm train clip/scenes run.out=runs/$@/clip
	$(BIN)/ldm train diffusion/scenes run.out=runs/$@/diffusion run.cache=runs/$@/cache \
	  task.vae=runs/$@/autoencoder/model task.text=runs/$@/clip/model
	$(BIN)/ldm train controlnet/scenes run.out=runs/$@/controlnet task.model=runs/$@/diffusion/model
	$(BIN)/ldm train decoder/scenes run.out=runs/$@/decoder task.vae=runs/$@/autoencoder/model
	$(BIN)/python -m train.scenes_report --model runs/$@/diffusion/model --controlnet runs/$@/controlnet/model \
	  --decoder runs/$@/decoder/model --out runs/$@/report

# The models that ship, from a table of emoji (docs/data.md says how to make one). Hours on two cores; stop and go on as
# you like. The two judges see all pictures and no model learns from them: they only look at what the models draw.
EMOJI ?= ../shared/data/emoji.parquet
emoji: $(VENV)/.installed-dev
	test -f runs/emoji/pictures.parquet || $(BIN)/ldm data prepare runs/emoji/pictures.parquet $(EMOJI)
	for part in autoencoder clip diffusion distill controlnet decoder; do $(BIN)/ldm train $$part/emoji || exit; done
	for seed in 11 12; do $(BIN)/ldm train clip/emoji run.seed=$$seed run.out=runs/emoji/judge-$$seed data.where='{}' || exit; done
	$(BIN)/python -m train.emoji_report --model runs/emoji/diffusion/model --pictures runs/emoji/pictures.parquet \
	  --judges runs/emoji/judge-11/model runs/emoji/judge-12/model --out runs/emoji/report

# Pins the set that is installed now. torch names its own CUDA parts exactly, so they are left out. Review the diff.
constraints: $(VENV)/.installed-dev
	$(PIP) freeze --exclude-editable | grep -viE '^(nvidia|cuda|triton|ldm)[-=_ ]' > constraints/ci.txt

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
	  || { echo "$(PYTHON) is not Python 3.11, 3.12 or 3.13: choose one with make PYTHON=python3.12"; exit 2; }
	$(PYTHON) -m venv $(VENV)

# The stamps are newer than what they were installed from: a second run installs nothing.
$(VENV)/.installed: pyproject.toml constraints/ci.txt | $(BIN)/python
	$(PIP) install --quiet --constraint constraints/ci.txt --editable .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints/ci.txt | $(BIN)/python
	$(PIP) install --quiet --constraint constraints/ci.txt --editable ".[dev]"
	@touch $@ $(VENV)/.installed

clean:
	rm -rf outputs/demo build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
