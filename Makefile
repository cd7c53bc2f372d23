# Everything happens in .venv; a stamp says what is installed there, so that a second run starts at once.
PYTHON ?= python3
BIN := .venv/bin
MODEL ?= smollm2
BENCH ?= --concurrency 1,8,32
PROOF_SECONDS ?= 360
EXTENT ?= short
export TEST_EXTENT := $(EXTENT)
# Every start of a server imports a thousand modules: compiled once, they take a third of the time.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help learn-site serve test test-fast timing ray-test ray-measure proofs coverage check fix dashboard lock bench compare conformance campaign soak

help:
	@echo "make serve   install and serve MODEL (default smollm2) on 127.0.0.1:8000; options in CARAVAN_* variables"
	@echo "make test    run all tests; install what they need into .venv, and name what the system lacks"
	@echo "make test EXTENT=full   the same, longer with random input and killed processes, and with coverage"
	@echo "make timing   the tests that judge seconds, alone: before a release, on an idle machine"
	@echo "make test-fast   the tests that take less than half a second each and need no model, in less than 90 seconds"
	@echo "make ray-test   replicas on Ray Serve, in an environment and a network namespace of their own"
	@echo "make ray-measure   what replicas on Ray Serve cost and lose: docs/scaling.md has the figures"
	@echo "make proofs   compute the kernels for GPUs in an interpreter, and compile them, without a GPU"
	@echo "make coverage   the fast tests again, and how much of the packages model, scheduler and server they reach"
	@echo "make check   formatting, lint, types, import rule"
	@echo "make fix     format and mend what can be mended"
	@echo "make dashboard   write the dashboard anew from docker/grafana/dashboard.py"
	@echo "make lock    write docker/requirements.txt, the exact versions of the images, from those in .venv"
	@echo "make conformance URL=...   judge any OpenAI-style server, rule by rule"
	@echo "make campaign   kill, stop, flood and cut a real server for ten minutes; make soak   memory and known bugs"
	@echo "make learn-site   write the page's lessons to learn-site/, with recorded answers of MODEL: no server is needed"
	@echo "make bench   start the server and measure it; make compare PEERS=FOLDER measures others beside it"

serve: .venv/serve.stamp
	$(BIN)/caravan serve $(MODEL)

# A file of tests stays in one process, which starts its server once; the slow files come first (tests/conftest.py).
DIST := --dist loadfile --no-loadscope-reorder
PYTEST := $(BIN)/pytest --numprocesses auto --maxprocesses 4 $(DIST)
# Many tests wait, for a server that starts or a clock: one process more than cores.
PYTEST_SLOW := $(BIN)/pytest --numprocesses $$(expr $$(nproc) + 1) --maxprocesses 4 $(DIST)
# What `make test-fast` runs, and what is measured.
FAST := not (slow or real_model or browser or prometheus or docker or timing)

test: .venv/dev.stamp .venv/clients.stamp .venv/npm.stamp .venv/kernels.stamp
	@$(BIN)/python -m tests.support.system_programs
	$(if $(filter full,$(EXTENT)),$(MAKE) coverage)
	$(PYTEST_SLOW) -m "not timing$(if $(filter full,$(EXTENT)), and not ($(FAST)))"

# Another program of the machine may run meanwhile: what took too long is measured once more.
timing: .venv/dev.stamp .venv/kernels.stamp
	$(BIN)/pytest -m timing || $(BIN)/pytest -m timing --last-failed

# Only the fast tests are measured: tracing takes three quarters as long again, so only EXTENT=full has it in `make test`,
# and whole servers run in other processes.
coverage: .venv/dev.stamp
	$(PYTEST) -m "$(FAST)" --cov --cov-report=
	@$(BIN)/python -m tests.support.coverage_report

test-fast: .venv/dev.stamp
	$(PYTEST) -m "$(FAST)"

# Ray is large, so it has an environment of its own; it listens on all interfaces, so it runs where there is only one.
ray-test: .venv/ray.stamp
	.venv/ray/bin/python -m tests.support.alone .venv/ray/bin/pytest -m ray tests/ray

ray-measure: .venv/ray.stamp
	.venv/ray/bin/python -m tests.support.alone .venv/ray/bin/python -m benchmarks.replicas

# Triton decides when it is imported whether kernels are interpreted, so each kind has a process of its own.
proofs: .venv/dev.stamp
	@timeout $(PROOF_SECONDS) sh -exc '\
	TRITON_INTERPRET=1 $(PYTEST) --dist worksteal -m proofs tests/model/cuda/interpreted; \
	$(PYTEST) -m proofs tests/model/cuda/compiled tests/model/cuda/traced' & \
	trap "kill $$!" INT TERM; wait $$! || { status=$$?; test $$status != 124 || \
	echo "make proofs took longer than $(PROOF_SECONDS) seconds, its limit on two cores; PROOF_SECONDS sets another."; \
	exit $$status; }

check: .venv/dev.stamp
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest -q tests/test_import_rule.py

fix: .venv/dev.stamp
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

dashboard: .venv/dev.stamp
	$(BIN)/python -m docker.grafana.dashboard > docker/grafana/dashboards/caravan.json

# Printed whole before it is written: what fails leaves the lock as it was.
lock: .venv/dev.stamp
	@lock=$$($(BIN)/python -m docker.lock) && printf '%s\n' "$$lock" > docker/requirements.txt

bench: .venv/serve.stamp
	@$(BIN)/caravan serve $(MODEL) --port 8765 & server=$$!; trap "kill $$server" EXIT; \
	until curl -sf http://127.0.0.1:8765/readyz > /dev/null; do kill -0 $$server || exit 1; sleep 0.2; done; \
	$(BIN)/caravan bench http://127.0.0.1:8765 $(BENCH)

learn-site: .venv/dev.stamp
	@$(BIN)/caravan serve $(MODEL) --port 8766 & server=$$!; trap "kill $$server" EXIT; \
	until curl -sf http://127.0.0.1:8766/readyz > /dev/null; do kill -0 $$server || exit 1; sleep 0.2; done; \
	$(BIN)/python -m docs.learn_site http://127.0.0.1:8766 learn-site

conformance: .venv/dev.stamp
	$(BIN)/python -m tests.conformance $(URL) $(if $(API_KEY),--api-key $(API_KEY))

campaign: .venv/dev.stamp
	$(BIN)/python -m tests.campaign engine_faults tiny_pool overload long_prompt input_floods key_floods body_flood shutdown cuts

soak: .venv/dev.stamp
	$(BIN)/python -m tests.campaign memory seeded_bugs

compare: .venv/dev.stamp
	$(BIN)/python -m benchmarks.compare $(PEERS) --model $(MODEL)

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Caravan needs Python 3.11 or newer: make PYTHON=...")'
	$(PYTHON) -m venv .venv

.venv/serve.stamp: pyproject.toml | .venv/bin/python
	$(BIN)/pip install --disable-pip-version-check -e .
	touch $@

.venv/dev.stamp: pyproject.toml | .venv/bin/python
	$(BIN)/pip install --disable-pip-version-check -e '.[test,dev]'
	touch $@ .venv/serve.stamp

# Clients that people use, in environments of their own: some want version 2 of the openai package, others version 3.
.venv/clients.stamp: tests/clients/requirements.txt tests/clients/newer_requirements.txt .venv/dev.stamp
	$(PYTHON) -m venv .venv/clients
	.venv/clients/bin/pip install --disable-pip-version-check -r $<
	$(PYTHON) -m venv .venv/newer_clients
	.venv/newer_clients/bin/pip install --disable-pip-version-check -r tests/clients/newer_requirements.txt
	touch $@

# Clients from npm, 430 MB: nothing in them is run while they are installed. Without them their tests are skipped.
.venv/npm.stamp: tests/clients/package.json | .venv/bin/python
	@mkdir -p .venv/npm && cp $< .venv/npm
	@npm install --prefix .venv/npm --no-audit --no-fund --ignore-scripts --loglevel=error && touch $@ \
	|| echo "npm could not install $<: the tests of its clients are skipped."

.venv/ray.stamp: pyproject.toml .venv/dev.stamp
	$(PYTHON) -m venv .venv/ray
	.venv/ray/bin/pip install --disable-pip-version-check -e '.[test,ray]'
	touch $@

# The kernels in every build that is tested: several processes would build the same ones at once.
.venv/kernels.stamp: $(wildcard model/cpu/*.cpp model/cpu/*.h) .venv/dev.stamp
	$(BIN)/python -m tests.support.kernel_builds
	touch $@
