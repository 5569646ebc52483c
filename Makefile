# make demo   installs into .venv and runs the main job: teacher, student alone, student distilled, one table, two pictures
# make test   installs what it needs and runs lint, types and tests
# make stress runs the tests of docs/reliability.md with their full counts, about ten minutes; prints the counts
# make bench  measures what a training step and the data for it cost, as ratios beside their targets; four minutes
# make install TORCH="torch==2.13.0 torchvision==0.28.0"   another torch (the default is the newest of the registry)

PYTHON ?= python3
TORCH ?= torch torchvision
VENV := .venv
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check -q
# The marks of finished steps: a changed TORCH or pyproject.toml runs them again, an unchanged one costs nothing.
MARK := $(VENV)/.installed
TORCH_MARK := $(VENV)/.torch-$(shell echo '$(TORCH)' | cksum | cut -d' ' -f1)

.PHONY: demo test stress bench install

demo: install
	$(VENV)/bin/python -m kd_cli.demo

test: $(MARK)-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -q -n 2 --dist worksteal

stress: $(MARK)-dev
	@rm -f $(VENV)/stress.txt
	KD_STRESS=$(CURDIR)/$(VENV)/stress.txt OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -q -rs -n 2 --dist worksteal \
	  tests/test_reliability
	@sort $(VENV)/stress.txt

bench: install
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m benchmarks.bench

install: $(MARK)

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))' || \
	  { echo 'Python 3.10 or newer with venv is needed. On Debian or Ubuntu: apt-get install python3-venv;' \
	    'another interpreter: make PYTHON=python3.12 ...' >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(TORCH_MARK): | $(VENV)/bin/python
	$(PIP) install -U pip setuptools wheel
	$(PIP) install $(TORCH)
	@rm -f $(VENV)/.torch-* && touch $@

$(MARK): pyproject.toml $(TORCH_MARK)
	$(VENV)/bin/python kd_install_basicsr.py
	$(PIP) install --no-build-isolation -e .
	@$(VENV)/bin/python -c 'import kd_utils'
	@touch $@

$(MARK)-dev: $(MARK)
	$(PIP) install --no-build-isolation -e '.[dev]'
	@touch $@
