# The first Python that is new enough, looked up from / so that a version manager does not insist on .python-version,
# which is Heroku's.
NEW_ENOUGH = import sys; sys.exit(sys.version_info < (3, 11))
ifndef PYTHON
PYTHON := $(shell cd / && for each in python3 python3.14 python3.13 python3.12 python3.11; do \
    $$each -c '$(NEW_ENOUGH)' 2>/dev/null && exec $$each -c 'import sys; print(sys.executable)'; done)
endif
VENV = .venv
BIN = $(VENV)/bin
PIN = $(BIN)/pip-compile --quiet --strip-extras --no-header --no-emit-index-url --no-emit-find-links --no-emit-trusted-host $(UPGRADE)

# Tests wait more than they compute, so there are two of them for each processor.
PROCESSES ?= $(shell $(PYTHON) -c 'import os; print(2 * (os.cpu_count() or 1))')
MINUTES = 10
SIZE = 1
JOURNAL = sqlite
RATE = 50
SPEED = 1
TIMES = 10
STATES = 5000

.PHONY: venv demo test coverage lint format lock fuzz bench chaos failover power-cut fleet outages screenshots

# The environment of demo, run and test.
venv: $(VENV)/runtime

demo: $(VENV)/runtime
	$(BIN)/python -m receiver demo $(DEMO)

# All tests, those that measure time alone at the end; or just TESTS=tests/test_alarm.py.
test: export PYTHONDONTWRITEBYTECODE = # or each process compiles all tests anew
test: $(VENV)/development
ifdef TESTS
	$(BIN)/python -m pytest $(TESTS)
else
	$(BIN)/python -m pytest -n $(PROCESSES) --dist loadfile --max-worker-restart 0 -m "not serial"
	$(BIN)/python -m pytest -m serial
endif

coverage: $(VENV)/development
	$(BIN)/python -m pytest -n $(PROCESSES) --dist loadfile --cov --cov-branch --cov-report=term-missing:skip-covered $(TESTS)

format: $(VENV)/development
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lint: $(VENV)/development
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

lock: $(VENV)/development
	$(PIN) requirements.in
	$(PIN) requirements-dev.in

fuzz: $(VENV)/development
	$(BIN)/python -m fuzz --minutes $(MINUTES) $(INPUTS:%=--inputs %) $(SEED:%=--seed %)

bench: $(VENV)/development
	$(BIN)/python -m bench $(BENCH) --size $(SIZE)

chaos: $(VENV)/development
	$(BIN)/python -m chaos --minutes $(MINUTES) --journal $(JOURNAL) --rate $(RATE) --speed $(SPEED) \
	    $(PUSHES:%=--pushes %) $(FAULTS:%=--faults %) $(SEED:%=--seed %)

failover: $(VENV)/development
	$(BIN)/python -m chaos --failovers $(TIMES) --rate $(RATE) $(SEED:%=--seed %)

power-cut: $(VENV)/development
	$(BIN)/python -m power_cut --states $(STATES) $(SEED:%=--seed %)

fleet: $(VENV)/development
	cd tests && PYTHONPATH=.. ../$(BIN)/python -m support.fleet $(FLEET)

outages: $(VENV)/development
	cd tests && PYTHONPATH=.. ../$(BIN)/python -m support.outages $(OUTAGES)

# The pictures of docs/console.md; SCREENSHOTS=FOLDER makes those of every part, for a person to look at.
screenshots: $(VENV)/development
	cd tests && PYTHONPATH=.. ../$(BIN)/python -m support.screenshots $(SCREENSHOTS)

$(VENV)/runtime: requirements.txt
	@test -n '$(PYTHON)' && $(PYTHON) -c '$(NEW_ENOUGH)' || \
	    { echo 'the receiver needs Python 3.11 or newer; name one with PYTHON=/path/to/python3' >&2; exit 1; }
	$(BIN)/python -c 'import pip; $(NEW_ENOUGH)' 2>/dev/null || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/development: $(VENV)/runtime requirements-dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@
