# Every target is for people; `make help` lists them. A target that needs packages installs them first,
# from hash-locked requirements, into .venv.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check
MODELS ?= models
AS_ROOT := $(if $(filter 0,$(shell id -u)),,sudo)
UV_COMPILE := $(BIN)/uv pip compile -q --python-version 3.11 --generate-hashes --no-header --no-annotate pyproject.toml

export TF_CPP_MIN_LOG_LEVEL ?= 3

.DEFAULT_GOAL := help

.PHONY: help
help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  \033[1m%-20s\033[0m %s\n", $$1, $$2}'

$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || { \
	  echo "error: $(PYTHON) is not Python 3.11, which the locked packages are for;" \
	    "name one that is: make $(MAKECMDGOALS) PYTHON=python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# What it takes to train and serve; and, above that, what it takes to develop.
$(VENV)/.serve: requirements/serve.txt pyproject.toml | $(BIN)/pip
	$(PIP) install -q --require-hashes -r requirements/serve.txt
	$(PIP) install -q --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/.dev: requirements/dev.txt $(VENV)/.serve
	$(PIP) install -q --require-hashes -r requirements/dev.txt
	@touch $@

.PHONY: install
install: $(VENV)/.serve ## Set up what training and serving need

.PHONY: install-dev
install-dev: $(VENV)/.dev ## Set up what development needs, too

# A model to serve: trained from the digits that scikit-learn carries, if there is none yet.
.PHONY: model
model: install
	@compgen -G "$(MODELS)/*/[0-9]*/saved_model.pb" >/dev/null || $(BIN)/sluice train resnet --data digits --out $(MODELS)

.PHONY: serve
serve: model ## Serve the models in models/ (trains one first if there is none)
	$(BIN)/sluice serve --models $(MODELS)

.PHONY: demo
demo: model ## Serve, post a sample image, print the answer, stop
	$(BIN)/sluice demo --models $(MODELS)

.PHONY: test
test: install-dev ## Run the tests
	$(BIN)/pytest -n 2

.PHONY: test-deps
test-deps: ## Install the system packages that some tests need (as root, Debian)
	@if command -v promtool >/dev/null && command -v chromium >/dev/null; then \
	  echo "prometheus and chromium are there"; \
	else \
	  $(AS_ROOT) sh tests/observability/install_system_packages.sh; \
	fi

.PHONY: format
format: install-dev ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

.PHONY: lint
lint: install-dev ## Format, lint, types, spelling, import contracts; changes nothing
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/codespell
	$(BIN)/mypy
	$(BIN)/lint-imports

.PHONY: protos
protos: install-dev ## Write the descriptor sets in protos/
	$(BIN)/python -m protos.generate

.PHONY: manifests
manifests: install-dev ## Build the Kubernetes manifests and check them against all that they name
	$(BIN)/hadolint Dockerfile
	$(BIN)/python -m k8s.tools.check

.PHONY: image-tree
image-tree: install-dev ## Build the file tree of the gateway's image without an engine, measure it, start it
	$(BIN)/python -m k8s.tools.image_tree

.PHONY: fleet
fleet: model ## Load 3 gateways and 3 model servers in network namespaces while they fail (as root, minutes)
	$(BIN)/python -m k8s.tools.fleet --models $(MODELS)

.PHONY: chaos
chaos: install-dev ## Kill, stop and cut off replicas under load; ask for ten times what can be answered (minutes)
	$(BIN)/pytest tests/chaos
	$(BIN)/python -m tests.chaos.overload

.PHONY: soak
soak: install-dev model ## Send mixed traffic for half an hour with a new version each minute; memory must stay (30 minutes)
	$(BIN)/python -m tests.chaos.soak --models $(MODELS)

.PHONY: profile
profile: install-dev ## Show where the gateway's event loop spends its time under load (needs wrk)
	$(BIN)/python -m tests.bench.profile_gateway

.PHONY: bench
bench: install-dev ## Measure the gateway against its parts and other servers (minutes; needs wrk; BENCH=--help)
	$(BIN)/python -m tests.bench $(BENCH)

.PHONY: bench-model-server
bench-model-server: install-dev ## Measure Predict through the model server against the same model in process (minutes; BENCH=--help)
	$(BIN)/python -m tests.bench.model_server $(BENCH)

.PHONY: rollout-figures
rollout-figures: install-dev ## Simulate 10,000 rollouts of each kind: the figures that plans are held to (minutes)
	$(BIN)/python -m tests.rollout.figures

.PHONY: check
check: lint manifests test ## All that CI checks

# Dev is compiled first; the others are held to its pins, so that every environment agrees.
.PHONY: lock
lock: install-dev ## Write the lock files in requirements/ anew
	env -u PIP_FIND_LINKS $(UV_COMPILE) --extra model-server --extra train --extra traces --extra dev -o requirements/dev.txt
	env -u PIP_FIND_LINKS $(UV_COMPILE) --extra model-server --extra train -c requirements/dev.txt -o requirements/serve.txt
	env -u PIP_FIND_LINKS $(UV_COMPILE) --extra traces -c requirements/dev.txt -o requirements/gateway.txt
	env -u PIP_FIND_LINKS $(UV_COMPILE) --extra model-server -c requirements/dev.txt -o requirements/model-server.txt
	env -u PIP_FIND_LINKS $(UV_COMPILE) --extra train --extra gpu -c requirements/dev.txt -o requirements/training-gpu.txt
	env -u PIP_FIND_LINKS $(subst pyproject.toml,--group image,$(UV_COMPILE)) -o requirements/image.txt

.PHONY: clean
clean: ## Remove what the targets above made, models apart
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
