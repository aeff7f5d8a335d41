# make demo    from raw text to a chatting model, with a report, on this machine alone
# make test    everything that must hold
#
# PYTHON=python3.12 make demo chooses the Python; CPU-only builds of torch come from whatever index pip is set up with.

VENV := .venv
BIN := $(VENV)/bin
# Exactly this version: a range would let pip take a newer, larger build than the one that everything here was tried with.
TORCH := torch==2.13.0
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# As many tests at a time as there are cores, up to four: each process needs about a gigabyte.
PARALLEL := --numprocesses auto --maxprocesses 4
PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)

# What the demo asks about: the model has learned to answer from what it is given, not to know the library by heart.
DOCUMENT := runs/calendar.isleap.txt
# What pip compiles: installed again when it changes.
KERNELS := $(wildcard src/groundup/engine/kernels/*.cpp src/groundup/engine/kernels/*.h)

.PHONY: demo test test-all bench help

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

demo: $(VENV)/.installed
	$(BIN)/groundup run pocket
	@echo
	@echo "A conversation with it:"
	@$(BIN)/python -c 'import calendar; print("calendar.isleap(year)\n\n" + calendar.isleap.__doc__)' > $(DOCUMENT)
	@printf '%s\n' \
		"What is 37 * 43?" \
		"/clear" \
		"/document $(DOCUMENT)" \
		"What does calendar.isleap do?" \
		| $(BIN)/groundup chat runs/pocket
	@echo
	@echo "Your turn:   $(BIN)/groundup chat runs/pocket"
	@echo "The report:  runs/pocket/report.html"

test: $(VENV)/.installed-test
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest $(PARALLEL) -m "not slow"

# make test-all also runs the tests that take longer than ten seconds each.
test-all: $(VENV)/.installed-test
	$(BIN)/pytest $(PARALLEL)

# Figures, printed as tables; nothing else should keep the machine busy meanwhile.
bench: $(VENV)/.installed-test
	$(BIN)/python benchmarks/corpus_throughput.py
	$(BIN)/python benchmarks/train_throughput.py
	$(BIN)/python benchmarks/load.py
	$(BIN)/python benchmarks/forward.py
	$(BIN)/python benchmarks/kernels.py
	$(BIN)/python benchmarks/attention.py
	$(BIN)/python benchmarks/sampling.py
	@echo "Beside llama.cpp, OpenVINO and transformers: $(BIN)/python benchmarks/engine.py --help"
	@echo "Quality against time needs texts of your choice: $(BIN)/python benchmarks/quality.py --help"

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "groundup needs Python 3.11 or newer: install it, or name it with PYTHON=…" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml $(KERNELS) | $(BIN)/python
	$(PIP_INSTALL) "$(TORCH)"
	$(PIP_INSTALL) --editable .
	@touch $@

$(VENV)/.installed-test: pyproject.toml $(KERNELS) | $(BIN)/python
	$(PIP_INSTALL) "$(TORCH)"
	$(PIP_INSTALL) --editable ".[test]"
	@touch $@ $(VENV)/.installed
