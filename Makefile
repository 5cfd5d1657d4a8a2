# `make help` lists the targets. Everything is installed into .venv, nothing outside this folder but the model's cache.

PYTHON ?= python3
PORT ?= 8000
ENGINE_PORT ?= 11434
VENV := .venv
PY := $(VENV)/bin/python
PYTHON_VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
METADATA := pyproject.toml
SERVING := appliance/embedded/requirements.lock
MEASURING := bench/requirements.lock
CONTROLLING := ansible/requirements.lock
TESTING := tests/requirements.lock
INSTALL := $(PY) -m pip install --retries 2 --quiet --disable-pip-version-check
OFFLINE := { echo "installing failed: does this machine reach a package index?" >&2; exit 1; }
DEMO_PORTS = --port $(PORT) --engine-port $(ENGINE_PORT)
COMPILE = $(PY) -m uv pip compile --quiet --universal --generate-hashes --no-header --python-version 3.11
SCENARIOS = $(notdir $(patsubst %/molecule.yml,%,$(wildcard ansible/molecule/*/molecule.yml)))
MOLECULE = PATH="$(CURDIR)/$(VENV)/bin:$$PATH" MOLECULE_GLOB='ansible/molecule/*/molecule.yml' \
  MOLECULE_ANSIBLE_ARGS_STRICT_MODE=1 molecule -c ansible/molecule/config.yml

# A folder that was moved needs its install anew: what is editable is found by its path.
$(shell [ "$$(cat $(VENV)/serving 2>/dev/null)" = "$(CURDIR)" ] || rm -f $(VENV)/serving $(VENV)/python-*)

.DEFAULT_GOAL := help
.PHONY: help demo demo-up demo-down fleet test test-hosts test-fast lint docs bench-fleet bench-gateway bench-provision bench-truth lock clean preflight preflight-tests preflight-browser preflight-hosts

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# The answer comes before what only the loop needs is installed: the demo itself calls for that in between.
demo: $(VENV)/serving ## Two nodes here: an answer, then tuned, deployed, verified (PORT=, ENGINE_PORT=, ONCE=1: only the answer)
	@$(PY) -m bench.demo run $(DEMO_PORTS) $(if $(filter-out 0 no,$(ONCE)),--once) --install '$(MAKE) --no-print-directory $(VENV)/measuring'

demo-up: $(VENV)/serving ## Start the demo's nodes, and leave them running (PORT=, ENGINE_PORT=)
	@$(PY) -m bench.demo up $(DEMO_PORTS)

demo-down: ## End the demo, and what a killed one left
	@if [ -d .demo ] && [ -e $(VENV)/serving ]; then $(PY) -m bench.demo down; else echo "no demo runs"; fi

test: preflight-browser lint $(VENV)/testing ## All tests, of every tier
	$(PY) -m pytest --numprocesses=2 --dist=loadfile

test-fast: $(VENV)/testing ## Tier 1: pure code, no servers
	$(PY) -m pytest -m "not tier2"

# The first scenario makes what all need. The others wait much, for boots and time-outs, so two run at a time.
test-hosts: | preflight-hosts $(VENV)/testing ## Playbooks on hosts with real systemd, as root (SCENARIO=, COMMAND=converge)
ifneq ($(SCENARIO)$(COMMAND),)
	$(MOLECULE) $(or $(COMMAND),test) $(if $(SCENARIO),--scenario-name $(SCENARIO),--all)
else
	$(MOLECULE) test --scenario-name default
	$(MAKE) --jobs=2 --output-sync=target $(patsubst %,scenario-%,$(filter-out default,$(SCENARIOS)))
endif

scenario-%:
	$(MOLECULE) test --scenario-name $*

lint: $(VENV)/testing ## ruff, mypy, yamllint, ansible-lint, and that what is generated is current
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(PY) -m yamllint --strict .
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" $(VENV)/bin/ansible-lint --offline -q
	$(PY) -m bench.knobs --check
	$(PY) ansible/role_docs.py --check

fleet: $(VENV)/controlling ## Install what runs the playbooks: then . .venv/bin/activate
	@echo "ansible-playbook is in $(VENV)/bin; . $(VENV)/bin/activate puts it on the path"

bench-gateway: $(VENV)/testing ## What the appliance adds to the engine, beside a bare relay
	$(PY) -m bench.gateway $(ARGS)

bench-fleet: $(VENV)/testing ## What a node costs bench, in fleets of 10, 100 and 1,000 light fakes (ARGS="--nodes 10 100")
	$(PY) -m bench.fleet_scale $(ARGS)

bench-provision: | preflight-hosts $(VENV)/testing ## Seconds that provisioning takes, on 1, 2 and 4 test hosts, as root (ARGS="--rounds 1")
	$(PY) -m bench.provision $(ARGS)

bench-truth: $(VENV)/serving ## How often bench's statistics are right, on simulated machines (minutes; ARGS="--races 50")
	$(PY) -m bench.truth $(ARGS)

docs: $(VENV)/testing ## Write what is generated: settings, knobs and schema, the roles' variables
	$(PY) -m appliance config docs --write docs/configuration.md
	$(PY) -m bench.knobs
	$(PY) ansible/role_docs.py

lock: $(VENV)/testing ## Pin all dependencies anew, with hashes
	$(INSTALL) uv
	$(COMPILE) --upgrade $(METADATA) -o appliance/requirements.lock
	$(COMPILE) --extra embedded -c appliance/requirements.lock $(METADATA) -o $(SERVING)
	$(COMPILE) --extra fleet -c appliance/requirements.lock $(METADATA) -o $(CONTROLLING)
	$(COMPILE) --extra bench -c $(CONTROLLING) $(METADATA) -o $(MEASURING)
	$(COMPILE) --extra embedded --extra fleet --group dev -c $(SERVING) -c $(CONTROLLING) $(METADATA) -o $(TESTING)

clean: ## Remove what these targets made
	@-if [ -d .demo ] && [ -e $(VENV)/serving ]; then $(PY) -m bench.demo down; fi
	@if [ -d .test-hosts ]; then $(PYTHON) -m tests.hosts.podman; fi
	rm -rf $(VENV) .demo inventory/demo/host_vars .hypothesis .mypy_cache .pytest_cache .ruff_cache build *.egg-info
	find appliance bench tests -name __pycache__ -type d -prune -exec rm -rf {} +

# What the system lacks is said, all at once, before anything is half-made. NEEDS: what more a target needs than the demo.
preflight: NEEDS :=
preflight-tests: NEEDS := curl
preflight-browser: NEEDS := curl chromium
preflight preflight-tests preflight-browser:
	@lacks=; \
	command -v $(PYTHON) >/dev/null || lacks="$$lacks $(notdir $(PYTHON))"; \
	$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || lacks="$$lacks python3-venv"; \
	/sbin/ldconfig -p | grep -q 'libgomp\.so\.1' || lacks="$$lacks libgomp1"; \
	for tool in $(NEEDS); do command -v $$tool >/dev/null || lacks="$$lacks $$tool"; done; \
	if [ -n "$$lacks" ]; then echo "this machine lacks$$lacks; on Debian: sudo apt-get install$$lacks" >&2; exit 1; fi
	@case "$(PYTHON_VERSION)" in 3.11|3.12|3.13) ;; *) \
	  echo "$(PYTHON) is Python $(PYTHON_VERSION), but 3.11 to 3.13 is needed: make PYTHON=python3.13 …" >&2; exit 1;; esac

preflight-hosts: | preflight-tests
	@$(PYTHON) -m tests.hosts.machine

# Named for its version: after an upgrade of the system's Python the old one's packages are of no use.
$(VENV)/python-$(PYTHON_VERSION): | preflight
	@echo "setting up $(VENV) …"
	@$(PYTHON) -m venv --clear $(VENV)
	@touch $@

$(VENV)/serving: $(SERVING) $(METADATA) $(VENV)/python-$(PYTHON_VERSION) | preflight
	@echo "installing what the demo needs …"
	@$(INSTALL) --require-hashes -r $(SERVING) || $(OFFLINE)
	@$(INSTALL) --no-deps -e . || $(OFFLINE)
	@echo "$(CURDIR)" > $@

$(VENV)/measuring: $(MEASURING) $(METADATA) $(VENV)/python-$(PYTHON_VERSION) | preflight
	@echo "installing what bench needs …"
	@$(INSTALL) --require-hashes -r $(MEASURING) || $(OFFLINE)
	@$(INSTALL) --no-deps -e . -e ./bench || $(OFFLINE)
	@touch $@

$(VENV)/controlling: $(CONTROLLING) $(METADATA) $(VENV)/python-$(PYTHON_VERSION) | preflight
	@echo "installing what the playbooks need …"
	@$(INSTALL) --require-hashes -r $(CONTROLLING) || $(OFFLINE)
	@$(INSTALL) --no-deps -e . -e ./bench || $(OFFLINE)
	@touch $@

$(VENV)/testing: $(TESTING) | preflight-tests $(VENV)/serving
	@echo "installing what the tests need …"
	@$(INSTALL) --require-hashes -r $(TESTING) || $(OFFLINE)
	@touch $@
