# make run                 install, then a first night on synthetic cells; again: the next night
# make run CELLS=FOLDER    the same on real cells, <Class>/<name>.png (or a zip, s3://...; or nlm, the public archive);
#                          LABELS=FILE if a CSV or Parquet table labels them
# make test                install, then the tests
#                          WITH="fastai keras", "fastai keras-cpu", one of them, or none: what else to install than make
#                          chooses for this machine; TORCH_INDEX=URL: torch from there, for instance without CUDA
# make quick               the tests of rules, words and stages: no server, no browser, no framework
# make test-all            make test, then what takes longest: kills at random moments, the soak, production, images
# make check               linter and types
# make docs                the documents as a site, in site/; a link that leads nowhere is an error
# make deploy              update the server that PREFECT_API_URL names: deployments, schedules, alerts
# make audit               ask PyPI's vulnerability database about every locked package (needs uv)
# make sbom                write sbom.json, the bill of materials (CycloneDX; needs uv)
# make lock                resolve all versions again (needs uv)

VENV := .venv
BIN := $(VENV)/bin
USABLE := import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
# The environment's own Python if there is one, else the first with which one can be made.
ifndef PYTHON
PYTHON := $(shell for python in $(BIN)/python python3.11 python3.12 python3.13 python3; do \
  "$$python" -c '$(USABLE)' 2>/dev/null && { command -v "$$python"; break; }; done)
endif

.PHONY: help run test quick test-all test-longest check docs install install-dev deploy audit sbom lock
.DEFAULT_GOAL := help

help:
	@sed -n 's/^# //p' Makefile

# Every package is pinned with its hashes, so the same command gives the same system a year from now.
INSTALL = @"$(PYTHON)" -c '$(USABLE)' 2>/dev/null || { echo "Python 3.11, 3.12 or 3.13 with venv is needed" \
  "(Debian, Ubuntu: python3-venv); PYTHON=/path/to/python3 names another" >&2; exit 2; }; \
  "$(PYTHON)" -m infra.deploy.install --venv $(VENV) $${WITH:+--with "$$WITH"} $${TORCH_INDEX:+--torch-index "$$TORCH_INDEX"}

install:
	$(INSTALL)

install-dev:
	$(INSTALL) --dev

run: install
	@$(BIN)/retrain demo $${CELLS:+--cells "$$CELLS"} $${LABELS:+--labels "$$LABELS"}

# More at a time than cores: much of what tests do is wait, for servers and deadlines. A module's tests stay together, they
# share what they start. Without bytecode each process would rewrite all assertions: two fifths of the time of collecting.
PROCESSES := 3
PYTEST := PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest --numprocesses $(PROCESSES) --dist loadfile --no-loadscope-reorder

test: install-dev
	$(PYTEST) -m "not longest" $(ARGS)

quick: install-dev
	$(PYTEST) -m "not longest and not slow and not server and not thorough" $(ARGS)

test-all: test test-longest

test-longest: install-dev
	$(PYTEST) -m longest $(ARGS)

check: install-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: install-dev
	$(BIN)/python -m docs.site site

deploy: install
	MALARIA_CODE="$${MALARIA_CODE:-$(CURDIR)}" $(BIN)/python -m flows.unattended.deploy

# --strict: a package that the database does not know, as on a mirror, is a failure and not good news.
audit:
	uvx pip-audit==2.10.1 --strict --disable-pip --require-hashes --progress-spinner off -r requirements.txt

sbom:
	uvx --from cyclonedx-bom==7.5.0 cyclonedx-py requirements --sv 1.6 --output-reproducible \
	  --pyproject pyproject.toml --output-file sbom.json requirements.txt

lock:
	uv pip compile pyproject.toml --extra fastai --extra keras --extra keras-cpu --extra dev --generate-hashes \
	  --universal --python-version 3.11 --fork-strategy fewest --no-emit-index-url \
	  --annotation-style line --custom-compile-command "make lock" --quiet -o requirements.txt
