# Everything a developer or a newcomer types. `make serve` and `make test` work in a fresh clone.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Extra arguments for installing torch, for example an index that holds CPU-only or ROCm builds.
TORCH_ARGS ?=
MODEL ?=

.PHONY: setup serve chat test test-slow test-openai-2 test-exactness test-page test-reliability test-schemathesis test-clients test-triton check format nano lock clean

setup: $(READY)  ## virtual environment with the locked versions

$(READY): pyproject.toml requirements.lock $(wildcard csrc/cpu/*)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "openglm needs Python 3.11 or newer; run: make setup PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	@echo "Installing torch, then everything else under the locked versions (a few minutes the first time)"
	$(BIN)/pip install --quiet --disable-pip-version-check $(TORCH_ARGS) "$$(grep '^torch==' requirements.lock)"
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint requirements.lock --config-settings editable_mode=compat --editable '.[dev]'
	touch $@

serve: $(READY)  ## serve the embedded model, or MODEL=directory
	$(BIN)/glm serve $(MODEL)

chat: $(READY)  ## chat in the terminal with the embedded model, or MODEL=directory
	$(BIN)/glm chat $(MODEL)

test: $(READY)  ## the fast tests
	$(BIN)/pytest

test-slow: $(READY)  ## every test but the exactness matrix, the browser, the black-box scenarios and the client programs, also those that need minutes
	$(BIN)/pytest -m "not exactness and not page and not reliability and not clients"

test-exactness: $(READY)  ## the engine's bitwise matrix; ARGS="--last-failed" or ARGS="-k preempted-bfloat16" runs a part
	$(BIN)/pytest -m exactness tests/engine/test_exactness_matrix.py $(ARGS)

test-reliability: $(READY)  ## the black-box scenarios in full; against another server: python -m tests.reliability --url URL
	$(BIN)/pytest -m reliability tests/reliability

test-schemathesis: $(READY)  ## Schemathesis against /openapi.json, in an environment of its own; EXAMPLES=2000 per operation takes longer
	test -x build/schemathesis/bin/schemathesis || $(PYTHON) -m venv build/schemathesis
	build/schemathesis/bin/pip install --quiet --disable-pip-version-check 'schemathesis==4.32.5'
	SCHEMATHESIS=$(CURDIR)/build/schemathesis/bin/schemathesis EXAMPLES=$(or $(EXAMPLES),50) $(BIN)/pytest -m reliability tests/reliability/test_schemathesis.py

test-openai-2: $(READY)  ## the client tests with version 2 of the openai package (the lock holds version 3)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --upgrade --target build/openai-2 'openai==2.*' distro jiter sniffio tqdm
	PYTHONPATH=build/openai-2 $(BIN)/python -c 'import openai; print("openai", openai.__version__); assert openai.__version__.startswith("2.")'
	PYTHONPATH=build/openai-2 $(BIN)/pytest tests/server/test_openai_client.py tests/server/test_openai_client_beyond_chat.py

test-clients: $(READY)  ## coding agents, libraries, harnesses, load tools and a gateway, the real ones; ARGS="-k codex" runs a part
	PYTHONPATH=tests $(BIN)/python -m clients.installed
	$(BIN)/pytest -m clients tests/clients $(ARGS)

test-page: $(READY)  ## the web page in the Chromium of this machine; SCREENSHOTS=directory keeps pictures
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint requirements.lock playwright
	SCREENSHOTS=$(SCREENSHOTS) $(BIN)/pytest -m page tests/server/page $(ARGS)

test-triton: $(READY)  ## the GPU kernels in Triton's interpreter, on the CPU, and compiled for the GPUs they are meant for
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --upgrade --target build/triton 'triton==3.8.*'
	PYTHONPATH=build/triton $(BIN)/pytest tests/ops/gpu_kernels $(ARGS)

check: $(READY)  ## lint, types, layering, spelling
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

nano: $(READY)  ## train the embedded model again (resumable) and score it
	$(BIN)/glm train nano --out runs/nano --resume
	$(BIN)/glm eval nano --model runs/nano/model

lock: $(READY)  ## write the versions of this environment to requirements.lock
	$(BIN)/pip freeze --exclude-editable | sed 's/^torch==\([0-9.]*\).*/torch==\1/' > requirements.lock

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
