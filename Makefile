# `make install`, `make demo` and `make test` start from a bare machine with Python 3.10 or newer.
VENV   ?= .venv
PYTHON ?= python3
SLOW   ?=
PAGES  ?=
BIN    := $(VENV)/bin
SETUP  := settings.ini setup.py pyproject.toml
.DEFAULT_GOAL := help
.PHONY: help install demo compare test refresh readme docs docs-check notebooks clean

help:  ## list what make can do
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 18
	@echo 'Options:'
	@echo '  VENV=folder  PYTHON=interpreter     where to install, and with which Python'
	@echo '  SLOW=1                              with test and refresh: the slow cells too'
	@echo '  PAGES="nbs/prototypes/tree.ipynb"   with refresh: these pages, not all'

install: $(VENV)/installed  ## install the library and the command `manifoldgd`, nothing else

demo: $(VENV)/installed  ## install, distil the embedded digits five ways, train students on each
	$(BIN)/python experiments/demo.py

compare: $(VENV)/installed  ## compare all methods on the digits: hours; it goes on where it stopped
	$(BIN)/python experiments/compare.py

test: $(VENV)/installed-dev  ## install for development, then run every page and test
	OMP_NUM_THREADS=1 SLOW=$(SLOW) $(BIN)/python -m pytest -n logical --dist loadgroup tests

refresh: $(VENV)/installed-dev  ## run the pages in place and store their outputs
	$(BIN)/nbdev_export
	$(BIN)/python tools/pages.py refresh $(if $(filter-out 0,$(SLOW)),--slow) $(PAGES)

readme: $(VENV)/installed-dev  ## write README.md from nbs/index.ipynb
	$(BIN)/python tools/pages.py readme

docs: $(VENV)/installed-dev  ## build the docs site in _docs/; this needs Quarto
	$(BIN)/python tools/docs.py build

docs-check: $(VENV)/installed-dev  ## look at the pages of the docs site without building it
	$(BIN)/python tools/docs.py check

notebooks: $(VENV)/installed-dev  ## open the pages in Jupyter
	$(BIN)/jupyter lab nbs/index.ipynb

clean:  ## remove what was built, but neither the environment nor the runs
	rm -rf _proc _docs build dist *.egg-info .pytest_cache
	find manifoldgd tests tools experiments nbs -name __pycache__ -o -name .ipynb_checkpoints | xargs rm -rf

$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "manifoldgd needs Python 3.10 or newer, but $(PYTHON) is " + sys.version.split()[0] + ". Choose another: make PYTHON=python3.12 ...")'
	@$(PYTHON) -m venv $(VENV)

$(VENV)/installed: $(SETUP) | $(BIN)/pip
	@echo 'Installing into $(VENV): about 2 minutes and 2 GB the first time.'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	@touch $@

$(VENV)/installed-dev: $(SETUP) | $(BIN)/pip
	@echo 'Installing into $(VENV): about 2 minutes and 2 GB the first time.'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@ $(VENV)/installed
