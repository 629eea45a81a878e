# Two commands on a fresh machine (Python 3.11 or later, pip and make):  make demo   make test
PYTHON ?= python3
BIN := .venv/bin
PLUGIN := .venv-vllm/bin/python -m pytest -c tests/vllm_plugin/pytest.ini
OLDEST := .cache/vllm-oldest/bin/python -m pytest -c tests/vllm_plugin/pytest.ini
VLLM := tests/e2e tests/gateway/local  # where tests marked «vllm» are: tests/conftest.py sees to it
# Hundreds of processes are started: without compiled files each would compile all of Holdfast, or of vLLM, anew.
unexport PYTHONDONTWRITEBYTECODE

help:            ## show this
	@sed -n "s/^\([a-z]*\):.*## \(.*\)/make \1\t\2/p" $(MAKEFILE_LIST)

install:         ## make .venv (gateway, tools) and .venv-vllm (real vLLM on the CPU); skipped when done
	@$(PYTHON) scripts/install.py gateway vllm

demo: install    ## kill a real vLLM server in the middle of a stream, and see nothing of it
	@$(BIN)/holdfast demo

# Most tests of the gateway wait most of their time: five at once keep two cores busy, and no more than that.
test:            ## lint, types, and tests, some of them with real vLLM servers: a quarter of an hour
	@$(PYTHON) scripts/install.py gateway redis
	@$(MAKE) --no-print-directory -j2 lint install
	@$(PLUGIN) -q tests/vllm_plugin --ignore=tests/vllm_plugin/real -m "not triton and not prove and not vllm" -n 2 --dist loadfile
	@$(PLUGIN) -q tests/vllm_plugin/real/test_injections.py
	@SIM_WORLDS=750 $(BIN)/python -m pytest -m "not vllm and not prove" -n 5 --dist loadfile --no-loadscope-reorder --durations 12
	@$(BIN)/python -m pytest -m "vllm and not prove" $(VLLM)

prove: install   ## the measured proofs behind the promises, and the tests that take long: hours
	@$(PYTHON) scripts/install.py redis generators
	@$(BIN)/python -m tests.prove
	@$(BIN)/python -m pytest -m "vllm and prove" $(VLLM)
	@$(BIN)/python -m pytest -m "not vllm and prove" tests/loadtests tests/scenarios tests/sim
	@$(BIN)/python -m pytest tests/sim/test_worlds.py
	@$(PYTHON) scripts/install.py triton
	@.cache/triton-env/bin/python -m pytest -c tests/vllm_plugin/pytest.ini tests/vllm_plugin -m triton
	@$(PLUGIN) tests/vllm_plugin -m vllm
	@$(PLUGIN) tests/vllm_plugin/real
	@$(PYTHON) scripts/install.py oldest
	@$(OLDEST) tests/vllm_plugin/test_versions.py tests/vllm_plugin/real

sim:             ## simulated worlds: make sim WORLDS=10000, or one of them step by step: make sim SEED=123
	@$(PYTHON) scripts/install.py gateway
	@$(BIN)/python -m tests.sim $(if $(SEED),--seed $(SEED),--worlds $(or $(WORLDS),1000))

bench:           ## what the gateway costs, beside others, in some twelve minutes
	@$(PYTHON) scripts/install.py gateway peers
	@$(BIN)/python -m loadtests.bench --json docs/evidence/performance.json --report docs/evidence/performance.md
	@$(BIN)/python -m loadtests.bench.readme

package:         ## sdist and wheel in dist/, tried in fresh environments; the steps of Dockerfile; hadolint
	@$(PYTHON) scripts/install.py vllm
	@$(PYTHON) scripts/package.py

lock:            ## the versions that an image holds, from requirements/constraints.txt
	@$(PYTHON) scripts/package.py lock

lint:            ## ruff and mypy
	@$(PYTHON) scripts/install.py gateway
	@$(BIN)/ruff check
	@$(BIN)/mypy

clean:           ## remove everything made here
	rm -rf .venv .venv-vllm .cache build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

.PHONY: help install demo test prove sim bench package lock lint clean
