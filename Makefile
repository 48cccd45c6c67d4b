# make run                 install, then a first night on synthetic cells; again: the next night
# make run CELLS=FOLDER    the same on real cells, <Class>/<name>.png (or a zip, s3://...; or nlm, the public archive);
#                          LABELS=FILE if a CSV or Parquet table labels them
# make test                install, then the tests
# make quick               the tests of rules, words and stages: no server, no browser, no framework
# make test-all            make test, then what takes longest: real CNNs killed, the soak, trainings on several devices
# make check               linter and types
# make deploy              update the server that PREFECT_API_URL names: deployments, schedules, alerts
# make audit               ask PyPI's vulnerability database about every locked package (needs uv)
# make sbom                write sbom.json, the bill of materials (CycloneDX; needs uv)
# make lock                resolve all versions again (needs uv)

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: run test quick test-all test-longest check install deploy audit sbom lock
.DEFAULT_GOAL := help

help:
	@sed -n 's/^# //p' Makefile

install: $(INSTALLED)

# Every package is pinned with its hashes, so the same command gives the same system a year from now.
$(INSTALLED): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || \
	  { echo "Python 3.11 is needed, $(PYTHON) is $$($(PYTHON) -V 2>&1); set PYTHON=/path/to/python3.11" >&2; exit 2; }
	@echo "installing into $(VENV) (about 9 GB with the CUDA libraries; minutes, depending on the network)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

run: install
	@$(BIN)/retrain demo $${CELLS:+--cells "$$CELLS"} $${LABELS:+--labels "$$LABELS"}

# Two at a time: half of what tests do is to wait for servers. A module's tests stay together, they share what they start.
PYTEST := $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

test: install
	$(PYTEST) -m "not longest" $(ARGS)

quick: install
	$(PYTEST) -m "not longest and not slow and not server and not thorough" $(ARGS)

test-all: test test-longest

test-longest: install
	$(PYTEST) -m longest $(ARGS)

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

deploy: install
	MALARIA_CODE="$${MALARIA_CODE:-$(CURDIR)}" $(BIN)/python -m flows.unattended.deploy

# --strict: a package that the database does not know, as on a mirror, is a failure and not good news.
audit:
	uvx pip-audit==2.10.1 --strict --disable-pip --require-hashes --progress-spinner off -r requirements.txt

sbom:
	uvx --from cyclonedx-bom==7.5.0 cyclonedx-py requirements --sv 1.6 --output-reproducible \
	  --pyproject pyproject.toml --output-file sbom.json requirements.txt

lock:
	uv pip compile pyproject.toml --extra dev --generate-hashes --universal --python-version 3.11 \
	  --no-emit-index-url --annotation-style line --custom-compile-command "make lock" --quiet -o requirements.txt
