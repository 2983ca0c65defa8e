# make train | make test | make lint | make lessons

VENV ?= .venv
PYTHON ?= python3
BIN = $(VENV)/bin

$(VENV)/.done: requirements.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	touch $@

.PHONY: train test crosscheck lint lessons lessons-check clean
train: $(VENV)/.done        ## the main job: train the demo model and print a sample
	$(BIN)/python -m minattn train --preset demo --overwrite

test: $(VENV)/.done         ## the fast tests
	$(BIN)/python -m pytest -m "not slow"

crosscheck: $(VENV)/.done   ## every test, with PyTorch, JAX and ONNX Runtime beside
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 jax onnx onnxruntime distributed
	$(BIN)/python -m pytest

lint: $(VENV)/.done
	$(BIN)/python -m pip install --quiet --disable-pip-version-check ruff
	$(BIN)/ruff check .

$(VENV)/.lessons: $(VENV)/.done pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[lessons]"
	touch $@

lessons: $(VENV)/.lessons        ## run every lesson's source again and write its notebook
	$(BIN)/python lessons/build.py

lessons-check: $(VENV)/.lessons  ## run every lesson's source; fail where the committed notebook is another's
	$(BIN)/python lessons/build.py --check

clean:
	rm -rf $(VENV) build *.egg-info
