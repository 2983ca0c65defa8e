# make train | test | packages | lint | lessons-open | lessons | site | wheel

VENV ?= .venv
PYTHON ?= python3
BIN = $(VENV)/bin
# one worker per core, each with one thread: more threads than cores wait for one another
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: train test crosscheck packages lint lessons-open lessons lessons-check site wheel clean

$(VENV)/.done: pyproject.toml setup.py
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) -e ".[test]"
	touch $@

$(VENV)/.lessons: $(VENV)/.done
	$(INSTALL) -e ".[lessons]"
	touch $@

train: $(VENV)/.done             ## train the demo model and print a sample
	$(BIN)/python -m minattn train --preset demo --overwrite

test: $(VENV)/.done              ## the fast tests
	$(PYTEST) -m "not slow"

crosscheck: $(VENV)/.done        ## every test, also those that need PyTorch, JAX or ONNX Runtime
	$(INSTALL) torch==2.13.0     # this version's default is the small CPU build
	$(INSTALL) -e ".[crosscheck]"
	$(PYTEST) --durations=15

packages: $(VENV)/.done          ## attention as released in other packages, through the kit
	$(INSTALL) torch==2.13.0
	$(INSTALL) -e ".[packages]"
	$(INSTALL) --no-deps xformers   # with them it would bring a PyTorch of its own
	$(BIN)/python -m pytest -rs tests/test_packages.py

lint: $(VENV)/.done
	$(BIN)/ruff check .
	$(BIN)/ruff check --line-length 88 --select E501 lessons/[0-9]*.py

LESSON ?= 00
lessons-open: $(VENV)/.lessons   ## open Jupyter on a copy: make lessons-open LESSON=05 OPTIONS=...
	$(BIN)/python -m minattn lessons --open $(LESSON) $(OPTIONS)

lessons: $(VENV)/.lessons        ## run every lesson's source and write its notebook
	$(BIN)/python lessons/build.py

lessons-check: $(VENV)/.lessons  ## run every lesson's source; fail if its notebook differs
	$(BIN)/python lessons/build.py --check

site: $(VENV)/.done              ## lessons, pages and reference as a site: build/site/README.html
	$(INSTALL) -e ".[site]"
	$(BIN)/python -m sphinx -q -W --keep-going -c docs . build/site

wheel: $(VENV)/.done             ## build the wheel and use it in a fresh environment
	PATH="$(abspath $(BIN)):$$PATH" .ci/wheel.sh

clean:
	rm -rf $(VENV) build dist *.egg-info
