# The verbs of the project. `make demo` and `make test` set everything up by themselves: they need
# Python >= 3.11 with its headers, a C compiler, make and git, and nothing else.

PYTHON ?=
VENV := .venv
RUN := $(VENV)/bin/python
SOURCES := $(wildcard ext/*.pyx ext/*.pxd ext/*/*.pxi echostream/_ext/*.pxd)

.PHONY: help setup demo test lint types smoke check bench fuzz sanitize races soak soak-security wheel clean FORCE
SECONDS ?= 60
MINUTES ?= 60
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

help: ## what there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' Makefile

setup: $(VENV)/built ## .venv with everything, extensions compiled in place

demo: setup ## two programs, calls, events and a live audio stream between them
	@$(VENV)/bin/echostream demo

test: lint types smoke check ## everything that has to pass: lint, types, each bench once, tests

lint: setup ## ruff
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

types: setup ## mypy --strict
	$(RUN) -m mypy

smoke: setup ## every benchmark in process, once and untimed
	$(RUN) -m pytest bench --smoke

bench: setup ## compare with the neighbours and write the table into bench/README.md
	@$(RUN) -m pip install -q --disable-pip-version-check -e '.[bench]' --no-build-isolation
	$(RUN) -m bench.harness --write bench/README.md --plot bench/neighbours.png

fuzz: setup ## SECONDS=60 of random and mutated input for each parser
	@for target in tests/fuzz/fuzz_*.py; do \
	    echo "$$target"; $(RUN) $$target --seconds $(SECONDS) || exit 1; \
	done

soak-security: setup ## the tests of bad networks and hostile peers in full size (an hour or so)
	ECHOSTREAM_FULL=1 $(RUN) -m pytest -s tests/badnet tests/hostile tests/fuzz tests/reconnect \
	    tests/rpc/test_flood.py

check: setup ## the tests alone; those of the data path also without what is compiled for it
	$(RUN) -m pytest -n $(WORKERS)
	ECHOSTREAM_ACCEL=0 ECHOSTREAM_BATCH=0 $(RUN) -m pytest -n $(WORKERS) $(PLAIN_TOO)

WORKERS ?= auto

# Those of tests/transport/quic run on both classes by themselves.
PLAIN_TOO := tests/transport tests/rpc/test_calls.py tests/rpc/test_lifecycle.py \
    tests/rpc/test_streams.py tests/system/test_over_quic.py --ignore=tests/transport/quic

soak: setup ## 100 kills of processes, 1 GB into a reader that sleeps, and MINUTES=60 of all traffic
	ECHOSTREAM_TEST_KILLS=100 ECHOSTREAM_TEST_BULK_MB=1024 $(RUN) -m pytest tests/system/test_processes.py -rP
	ECHOSTREAM_SOAK_S=$$(($(MINUTES) * 60)) $(RUN) -m pytest -s tests/system/test_soak.py

SANITIZED := build/sanitized
SANITIZERS := address,undefined
SANITIZED_TESTS := tests/transport/test_sockets.py tests/transport/test_endpoint.py \
    tests/transport/quic tests/test_frame_codec.py
runtime = $(shell $(CC) -print-file-name=lib$(1).so)
under_sanitizers = LD_PRELOAD="$(call runtime,asan) $(call runtime,ubsan)" PYTHONMALLOC=malloc \
    ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 $(CURDIR)/$(RUN)

sanitize: setup ## the compiled code, built with ASAN and UBSAN, under the tests that use it most
	rm -rf $(SANITIZED) && mkdir -p $(SANITIZED)
	git ls-files -z --cached --others --exclude-standard | tar --null -T - -cf - | tar -xf - -C $(SANITIZED)
	cd $(SANITIZED) && ECHOSTREAM_SANITIZE=$(SANITIZERS) $(CURDIR)/$(RUN) setup.py -q build_ext --inplace
	cd $(SANITIZED) && $(under_sanitizers) -m pytest $(SANITIZED_TESTS)
	cd $(SANITIZED) && for target in tests/fuzz/fuzz_*.py; do \
	    echo "$$target"; PYTHONPATH=. $(under_sanitizers) $$target --seconds $(SECONDS) || exit 1; \
	done

races: setup ## the jitter ring and the playout under ThreadSanitizer, and with guards left out
	ECHOSTREAM_RACES=1 $(RUN) -m pytest -n 0 tests/races -rP

wheel: setup ## sdist and, from it, wheel, in dist/
	$(RUN) -m build --no-isolation --outdir dist

clean: ## remove .venv and whatever was built
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .hypothesis .benchmarks
	rm -f echostream/_ext/*.so
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# --- set-up, in three steps that each leave a stamp: interpreter, dependencies, compiled code ---

# A .venv that was copied or moved together with the tree points at the old place: make it anew.
ifneq ($(shell cat $(VENV)/made 2>/dev/null),$(CURDIR))
$(VENV)/made: FORCE
endif

# Candidates are run, not only looked up: a version manager's shim may exist and not work.
USABLE := import ensurepip, os, sys, sysconfig, venv; \
sys.exit(not (sys.version_info >= (3, 11) and \
os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h"))))

$(VENV)/made:
	@for python in $(or $(PYTHON),python3.13 python3.12 python3.11 python3); do \
	    for path in $$(which -a $$python 2>/dev/null || command -v $$python); do \
	        if $$path -c '$(USABLE)' 2>/dev/null; then found=$$path; break 2; fi; \
	    done; \
	done; \
	if [ -z "$$found" ]; then \
	    echo "EchoStream needs Python >= 3.11 with the venv module and its C headers" \
	         "(Debian: python3-dev python3-venv)." >&2; \
	    echo "None was found as: $(or $(PYTHON),python3.13 python3.12 python3.11 python3)." \
	         "Name one: make PYTHON=/path/to/python3" >&2; \
	    exit 1; \
	fi; \
	echo "Setting up $(VENV) with $$found ($$($$found -V)); the first time takes a minute or two."; \
	rm -rf $(VENV) && $$found -m venv $(VENV)
	@printf '%s' '$(CURDIR)' > $@

BUILD_REQUIRES := import tomllib; \
print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"], sep="\n")

# The build's own requirements first: what compiles here is then what compiles in every later step.
$(VENV)/installed: $(VENV)/made pyproject.toml
	@$(RUN) -c '$(BUILD_REQUIRES)' > $(VENV)/build-requires.txt
	@$(RUN) -m pip install -q --disable-pip-version-check -r $(VENV)/build-requires.txt
	@$(RUN) -m pip install -q --disable-pip-version-check --no-build-isolation -e '.[dev]'
	@touch $@

LINUX_ONLY := ext/udp_batch.pyx
COMPILED := $(filter-out $(if $(filter Linux,$(shell uname)),,$(LINUX_ONLY)),$(wildcard ext/*.pyx))
MISSING := $(strip $(foreach source,$(COMPILED),\
$(if $(wildcard echostream/_ext/$(basename $(notdir $(source))).*.so),,$(source))))

$(VENV)/built: $(VENV)/installed setup.py $(SOURCES) $(if $(MISSING),FORCE)
	@$(RUN) setup.py -q build_ext --inplace $(if $(filter setup.py,$?),--force)
	@touch $@

FORCE:
