# `make help` lists the targets. Everything is installed into .venv, nothing outside this folder but the model's cache.

PYTHON ?= python3
PORT ?= 8000
ENGINE_PORT ?= 11434
VENV := .venv
BIN := $(VENV)/bin
SERVING := appliance/embedded/requirements.lock
TESTING := tests/requirements.lock
METADATA := pyproject.toml

.DEFAULT_GOAL := help
.PHONY: help demo demo-down test test-fast lint docs bench-gateway lock clean preflight preflight-tests

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/serving ## Run engine and appliance here, stream an answer, serve until Ctrl-C (PORT=, ENGINE_PORT=, ONCE=1)
	@$(BIN)/appliance demo --port $(PORT) --engine-port $(ENGINE_PORT) $(if $(ONCE),--once)

demo-down: ## End a running demo
	@if [ -x $(BIN)/appliance ]; then $(BIN)/appliance demo --down; else echo "no demo runs"; fi

test: lint $(VENV)/testing ## All tests, of every tier
	$(BIN)/python -m pytest

test-fast: $(VENV)/testing ## Tier 1: pure code, no servers
	$(BIN)/python -m pytest -m "not tier2"

lint: $(VENV)/testing ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench-gateway: $(VENV)/testing ## What the appliance adds to the engine, beside a bare relay
	$(BIN)/python -m bench.gateway $(ARGS)

docs: $(VENV)/serving ## Write the generated parts of docs/
	$(BIN)/appliance config docs --write docs/configuration.md

lock: $(VENV)/testing ## Pin all dependencies anew, with hashes
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-header --python-version 3.11 --upgrade $(METADATA) -o appliance/requirements.lock
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-header --python-version 3.11 --extra embedded -c appliance/requirements.lock $(METADATA) -o $(SERVING)
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-header --python-version 3.11 --extra embedded --group dev -c $(SERVING) $(METADATA) -o $(TESTING)

clean: demo-down ## Remove what these targets made
	rm -rf $(VENV) .demo .hypothesis .mypy_cache .pytest_cache .ruff_cache build *.egg-info
	find appliance bench tests -name __pycache__ -type d -prune -exec rm -rf {} +

# What the system lacks is said, all at once, before anything is half-made. NEEDS: what more a target needs than the demo.
preflight: NEEDS :=
preflight-tests: NEEDS := curl
preflight preflight-tests:
	@lacks=; \
	command -v $(PYTHON) >/dev/null || lacks="$$lacks python3"; \
	$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || lacks="$$lacks python3-venv"; \
	/sbin/ldconfig -p | grep -q 'libgomp\.so\.1' || lacks="$$lacks libgomp1"; \
	for tool in $(NEEDS); do command -v $$tool >/dev/null || lacks="$$lacks $$tool"; done; \
	if [ -n "$$lacks" ]; then echo "this machine lacks$$lacks; on Debian: sudo apt-get install$$lacks" >&2; exit 1; fi
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || { \
	  echo "$(PYTHON) is $$($(PYTHON) -V), but 3.11 to 3.13 is needed; choose another: make PYTHON=python3.13 …" >&2; exit 1; }

$(BIN)/pip: | preflight
	@echo "setting up $(VENV) …"
	@$(PYTHON) -m venv $(VENV)

$(VENV)/serving: $(SERVING) $(METADATA) | preflight $(BIN)/pip
	@echo "installing what the demo needs …"
	@$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r $(SERVING)
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@

$(VENV)/testing: $(TESTING) | preflight-tests $(VENV)/serving
	@echo "installing what the tests need …"
	@$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r $(TESTING)
	@touch $@
