# Everything that is done with this repository. `make` lists it.
# The environment is .venv. A stamp in it, taken away first and written last, says that it is whole: where an install
# was interrupted pip takes a half-written package for an installed one, so an environment without its stamp is
# made anew.

PYTHON ?= python3
# torch is installed apart from the lock: its build, and its hash, differ by platform.
TORCH ?= torch==2.13.0
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
RUNTIME := $(VENV)/.runtime-is-installed
DEV := $(VENV)/.dev-is-installed
NODE := tests/e2e/node/node_modules/.is-installed
CONTRACT := protos/released.binpb
EXTRAS := registry downloader inference speech trainer gateway postgres otel

PIP := $(BIN)/python -m pip --disable-pip-version-check
COMPILE = CUSTOM_COMPILE_COMMAND="make lock" $(BIN)/pip-compile --quiet --generate-hashes --strip-extras \
	--build-deps-for=editable --unsafe-package torch --no-emit-index-url --no-emit-find-links --no-emit-options \
	$(addprefix --extra=,$(EXTRAS)) $(ARGS)

.DELETE_ON_ERROR:
.PHONY: help up chat test torture-store bench-engine bench-store bench-gpu lint format proto lock release-contract clean

help:  ## List what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

up: $(RUNTIME)  ## Install what is missing, pull the starter model, serve (ARGS="--http 127.0.0.1:8080")
	@exec $(BIN)/lares up $(ARGS)

# The prompt goes through the environment, word for word: neither make nor the shell may read anything into it.
unexport PROMPT
chat: export CHAT_PROMPT := $(value PROMPT)
chat: $(RUNTIME)  ## Ask the running server: make chat PROMPT="What is the capital of France?"
	@$(BIN)/lares chat $(ARGS) $(if $(value PROMPT),-- "$$CHAT_PROMPT")

test: $(DEV) $(NODE)  ## Install what the tests need, then run them all (ARGS="-k worker")
	@sh tests/install-system-packages.sh
	$(BIN)/pytest $(ARGS)

torture-store: $(DEV)  ## Kill, lie to and fill up the store, thousands of times: about half an hour (ARGS="-k kill")
	@sh tests/install-system-packages.sh
	LARES_TORTURE=1 $(BIN)/pytest -m torture $(ARGS)

bench-engine: $(DEV)  ## Compare the engine with other servers: hours (ARGS="--quick --model starter")
	$(BIN)/python -m bench.engine $(ARGS)

bench-store: $(DEV)  ## Compare pulls with other downloaders: minutes (ARGS="--quick"; needs nginx, aria2, wget)
	$(BIN)/python -m bench.store $(ARGS)

bench-gpu: $(DEV)  ## Measure the engine on a CUDA card (ARGS="--folder DIR")
	$(BIN)/python -m bench.gpu $(ARGS)

lint: $(DEV)  ## Check format, style, types, import rules, the contract and its stubs
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/buf lint
	$(BIN)/buf breaking --against $(CONTRACT)
	$(BIN)/python protos/generate.py --check

format: $(DEV)  ## Format, and mend what can be mended
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

proto: $(DEV)  ## Generate the Python stubs from the .proto files
	$(BIN)/python protos/generate.py

lock: $(DEV)  ## Write the locks from pyproject.toml (ARGS=--upgrade for the newest versions)
	$(COMPILE) --output-file=requirements.lock pyproject.toml
	$(COMPILE) --output-file=requirements-dev.lock --extra=dev --constraint=requirements.lock pyproject.toml
	@# pip-compile closes with a warning that torch has no hash here, which is meant.
	sed -i.bak '/^# WARNING: The following packages were not pinned/,$$d' requirements.lock requirements-dev.lock
	rm requirements.lock.bak requirements-dev.lock.bak

release-contract: $(DEV)  ## Make today's contract the one that later changes must not break
	$(BIN)/buf build --exclude-source-info -o $(CONTRACT)

clean:  ## Remove the environments and whatever else was made here
	rm -rf $(VENV) tests/e2e/node/node_modules tests/e2e/node/generated tests/e2e/node/dist dist
	rm -rf .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(RUNTIME): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Lares needs Python 3.11 or newer; $(PYTHON) is not. Say which: make PYTHON=python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	@test -f $(RUNTIME) || rm -rf $(VENV)
	@rm -f $(RUNTIME) $(DEV)
	$(PYTHON) -m venv $(VENV)
	@echo "Installing what requirements.lock names: a minute or two"
	@$(PIP) install -qq --no-deps --require-hashes -r requirements.lock
	@# After the lock, so that what torch needs is there in the locked version.
	$(PIP) install $(TORCH)
	@$(PIP) install -qq --no-deps --no-build-isolation -e .
	@touch $@

$(DEV): $(RUNTIME) requirements-dev.lock
	@rm -f $(RUNTIME) $(DEV)
	@echo "Installing what requirements-dev.lock adds"
	@$(PIP) install -qq --no-deps --require-hashes -r requirements-dev.lock
	@touch $(RUNTIME) $(DEV)

$(NODE): tests/e2e/node/package-lock.json
	@command -v npm >/dev/null || sh tests/install-system-packages.sh
	cd tests/e2e/node && npm ci
	@touch $@
