# Every target is one line that CI can run too. PYTHON names a Python 3.11.
CONFIG ?= configs/demo.yaml
ARGS   ?=
PORT   ?= 8000
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN    := .venv/bin
STAMP  := .venv/.ready
SPARK  := .venv/.spark
# Threads of OpenMP that wait must not burn the core that a neighbour needs.
export OMP_WAIT_POLICY ?= PASSIVE
export MLFLOW_DISABLE_TELEMETRY ?= true

.DEFAULT_GOAL := help
.PHONY: help setup train serve mlflow test test-slow lint audit bench notebooks lock clean

help: ## show the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-11s %s\n", $$1, $$2}'

setup: $(STAMP) ## make .venv from requirements.lock

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || { echo "Python 3.11 is needed; name one with make PYTHON=/path/to/python3.11"; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@echo "Installing the locked dependencies into .venv ..."
	@$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python -r requirements.lock
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps -e .
	@touch $(STAMP)

train: $(STAMP) ## transactions -> features -> models -> gate -> MLflow [CONFIG=...] [ARGS="--set key=value"]
	@$(BIN)/python -m training train --config $(CONFIG) $(ARGS)
	@$(BIN)/python -m benchmarks.truth --config $(CONFIG) $(ARGS)

serve: $(STAMP) ## build the snapshot if it is missing and start the scorer on port 8000 [CONFIG=...] [PORT=...]
	@$(BIN)/python -m serving api --config $(CONFIG) --port $(PORT) $(ARGS)

mlflow: $(STAMP) ## MLflow UI on port 5000 over mlruns/
	@$(BIN)/mlflow ui --backend-store-uri sqlite:///mlruns/mlflow.db --default-artifact-root mlruns/artifacts --port 5000

# Where there is no Java, or pyspark cannot be had, the tests of Spark are skipped and say so.
$(SPARK): $(STAMP) requirements-spark.lock
	@if command -v java >/dev/null; then \
	  echo "Installing pyspark into .venv ..."; \
	  $(BIN)/uv pip install --quiet --python $(BIN)/python -r requirements-spark.lock && touch $@ || true; \
	fi

# Files go to the workers in their order; else those of one long test come last, and one core waits.
test: $(STAMP) $(SPARK) ## all tests but the slow truth simulations, on all cores
	@$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder $(ARGS)

test-slow: $(STAMP) $(SPARK) ## truth simulations that take minutes
	@$(BIN)/python -m pytest -m slow -s $(ARGS)

lint: $(STAMP) ## ruff, mypy --strict, import layers
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/lint-imports

audit: $(STAMP) ## known vulnerabilities of the locked packages, where an advisory service answers
	@$(BIN)/python .ci/audit.py $(ARGS)

bench: $(STAMP) ## this project and its peers side by side in one run
	@$(BIN)/python -m benchmarks $(ARGS)

notebooks: $(STAMP) ## execute the notebooks into notebooks/executed [CONFIG=...] [HILLSTROM_FILE=...]
	@$(BIN)/jupyter nbconvert --to notebook --execute --output-dir notebooks/executed notebooks/*.ipynb

lock: $(STAMP) ## renew the lock files from pyproject.toml
	@$(BIN)/uv pip compile --quiet --upgrade --no-emit-index-url --no-annotate --no-header --python-version 3.11 --extra dev --extra notebooks pyproject.toml -o requirements.lock
	@$(BIN)/uv pip compile --quiet --no-emit-index-url --no-annotate --no-header --python-version 3.11 --extra spark -c requirements.lock pyproject.toml | grep -vxFf requirements.lock > requirements-spark.lock

clean: ## remove everything that can be made again, models included
	rm -rf .venv build dist *.egg-info data mlruns/mlflow.db mlruns/artifacts .mypy_cache .ruff_cache .pytest_cache
