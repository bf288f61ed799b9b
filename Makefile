# Every command of this project, one target each. `make` alone prints them.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON := .venv/bin/python
# Sandboxes need root. Setup itself asks for it where it has to, so that the checkout stays its owner's. Through env, because sudo
# has a PATH of its own.
SUDO := $(if $(filter 0,$(shell id -u)),,sudo --preserve-env=HUTCH_CACHE_DIR,HUTCH_CAMPAIGN,HUTCH_ISOLATION,HUTCH_SERVER__LISTEN,FUZZ_SECONDS,CI env "PATH=$$PATH")

# Where Python is told to keep no bytecode, every process would compile all that it imports: half of what a short one takes.
unexport PYTHONDONTWRITEBYTECODE

# Compiled Rust lies outside the checkout, where setup has it too: a fresh checkout is warm.
export HUTCH_CACHE_DIR ?= $(HOME)/.cache/hutch
export CARGO_TARGET_DIR := $(HUTCH_CACHE_DIR)/cargo-target

# Tests wait more than they compute: for machines that start, for deadlines, for the dead to be found out.
TEST_JOBS ?= $(shell expr $$(nproc) + 1)

PYTHON_SOURCES := $(wildcard src scripts tests bench examples)

.PHONY: help setup setup-test demo test test-all serve fuzz lint format bench docs compatibility lock image-lock clean

help:  ## Print the targets
	@sed -nE 's/^([a-z-]+):.*  ## (.*)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 14

setup:  ## Install and build everything that is missing
	@scripts/setup/run

setup-test: setup  ## … and what only the tests need
	@scripts/setup/run test-tools

demo: setup  ## A throw-away server, driven by the real clients (ISOLATION=… for another backend)
	@$(SUDO) $(if $(ISOLATION),HUTCH_ISOLATION__BACKEND=$(ISOLATION)) examples/demo/run

test: setup-test lint  ## Every test, the long campaigns with small counts
	cargo test --locked --workspace --quiet
	$(SUDO) $(PYTHON) scripts/run_tests.py -n $(TEST_JOBS)

ON_MACHINES := $(SUDO) env HUTCH_CAMPAIGN= HUTCH_ISOLATION=qemu $(PYTHON) -m pytest -n 1 --timeout 600

test-all: export HUTCH_CAMPAIGN := full
test-all: test  ## Every test, the long campaigns in full, all that start sandboxes on virtual machines too
	@# Emulated: with small counts. Both parts, whatever the first one says.
	status=0; \
	$(ON_MACHINES) tests/clients tests/cli tests/ingress tests/security || status=1; \
	$(ON_MACHINES) -m sandbox tests/host tests/egress \
		--ignore tests/host/test_virtual_machines.py --ignore tests/host/test_conversion.py \
		--ignore tests/host/test_machine_drives.py --ignore tests/host/test_firecracker_sandboxes.py || status=1; \
	exit $$status

serve: setup  ## A server on this machine, its state in .hutch/data
	$(SUDO) .venv/bin/hutch serve --data-dir $(or $(HUTCH_SERVER__DATA_DIR),.hutch/data)

fuzz:  ## Fuzz the gateway's parsers (TARGET=… for one, SECONDS=… for how long each)
	FUZZ_SECONDS=$(or $(SECONDS),60) FUZZ_TARGET_DIR=$(CARGO_TARGET_DIR)/fuzz scripts/fuzz $(TARGET)

lint: setup  ## Formatting, lint and types
	$(PYTHON) -m ruff check $(PYTHON_SOURCES)
	$(PYTHON) -m ruff format --check --quiet $(PYTHON_SOURCES)
	$(PYTHON) -m mypy
	cargo fmt --all --check
	cargo fmt --manifest-path fuzz/Cargo.toml --check
	cargo clippy --locked --workspace --all-targets --quiet -- -D warnings

format: setup  ## Lay all sources out as lint wants them
	$(PYTHON) -m ruff check --fix --quiet $(PYTHON_SOURCES)
	$(PYTHON) -m ruff format --quiet $(PYTHON_SOURCES)
	$(PYTHON) scripts/write_sync_client.py
	cargo fmt --all
	cargo fmt --manifest-path fuzz/Cargo.toml

compatibility: setup-test  ## Run the real clients and write what they showed into docs/compatibility.md
	rm -f .hutch/shown.jsonl
	$(SUDO) env HUTCH_SHOWN=$(CURDIR)/.hutch/shown.jsonl $(PYTHON) -m pytest tests/clients
	$(PYTHON) -m tests.clients.compatibility .hutch/shown.jsonl

bench: setup  ## Measure (ID=… for one benchmark)
	$(SUDO) $(PYTHON) -m bench $(if $(ID),--id $(ID))

docs: setup  ## The documentation as a site in site/
	NO_MKDOCS_2_WARNING=1 $(PYTHON) -m mkdocs build --strict --quiet

UV_COMPILE := .venv/bin/uv pip compile --quiet --generate-hashes --no-emit-index-url --no-emit-find-links \
	--universal --python-version 3.11 --custom-compile-command "make lock"

lock: setup  ## Write the lock files of the Python packages anew (UPGRADE=1 for the newest versions)
	$(UV_COMPILE) $(if $(UPGRADE),--upgrade) requirements.in -o requirements.txt
	$(UV_COMPILE) $(if $(UPGRADE),--upgrade) -c requirements.txt requirements-dev.in -o requirements-dev.txt
	@for example in openai-agents deep-agents; do \
		$(UV_COMPILE) $(if $(UPGRADE),--upgrade) examples/$$example/requirements.in -o examples/$$example/requirements.txt; \
	done
	$(UV_COMPILE) $(if $(UPGRADE),--upgrade) tests/clients/versions/vercel-sandbox-0.4.0.in -o tests/clients/versions/vercel-sandbox-0.4.0.txt
	@for tool in node22 node24 uv; do \
		$(UV_COMPILE) images/base/tools/$$tool.in -o images/base/tools/$$tool.txt; \
	done

image-lock: setup  ## Write the base image's package versions anew, as the mirror has them now
	@scripts/setup/run image-lock

clean:  ## Remove what was built in the checkout (the cache directory stays)
	rm -rf .hutch/bin .hutch/images .hutch/node .hutch/log site .mypy_cache .ruff_cache .pytest_cache .hypothesis \
		src/hutch/egress/hutch_native.abi3.so
