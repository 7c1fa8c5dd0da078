# PYTHON is looked up from / so that a version manager does not insist on .python-version, which is Heroku's.
PYTHON ?= $(shell cd / && python3 -c 'import sys; print(sys.executable)')
BIN = .venv/bin
PIN = $(BIN)/pip-compile --quiet --strip-extras --no-header --no-emit-index-url --no-emit-find-links --no-emit-trusted-host $(UPGRADE)

MINUTES = 10
SIZE = 1
JOURNAL = sqlite
RATE = 50

.PHONY: demo test lint lock fuzz bench chaos

demo: .venv/runtime
	$(BIN)/python -m receiver demo $(DEMO)

test: .venv/development
	$(BIN)/python -m pytest $(TESTS)

lint: .venv/development
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

lock: .venv/development
	$(PIN) requirements.in
	$(PIN) requirements-dev.in

fuzz: .venv/fuzz
	$(BIN)/python fuzz/fuzz_push.py $(MINUTES)

bench: .venv/development
	$(BIN)/python -m bench $(BENCH) --size $(SIZE)

chaos: .venv/development
	$(BIN)/python -m chaos --minutes $(MINUTES) --journal $(JOURNAL) --rate $(RATE) $(SEED:%=--seed %)

.venv/runtime: requirements.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "the receiver needs Python 3.11 or newer; name one with PYTHON=")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

.venv/development: .venv/runtime requirements-dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

.venv/fuzz: .venv/runtime requirements-fuzz.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --only-binary :all: -r requirements-fuzz.txt || \
	    { echo 'make fuzz needs atheris, which has wheels for Linux on x86-64 with Python 3.11 to 3.14 only' >&2; exit 1; }
	touch $@
