# Everything a user needs: `make run` (the main job) and `make test`. Both set everything up first.
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: setup run test test-cluster test-services lint ui bench docs constraints clean

setup: $(VENV)/.installed

$(VENV)/bin/python:
	scripts/make_venv.sh $(VENV)

$(VENV)/.installed: $(VENV)/bin/python constraints.txt pyproject.toml
	$(PIP) --editable .
	scripts/register_profile.sh
	@touch $@

$(VENV)/.developer: $(VENV)/.installed
	$(PIP) --editable ".[dev]"
	@touch $@

run: setup
	RELENT_SUMMARY_LATER=1 snakemake
	@snakemake --report results/report.zip --quiet all >/dev/null 2>&1 && echo "  results/report.zip (the report of the whole workflow, to send to a colleague)"
	@relent summary

test: $(VENV)/.developer
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder --hypothesis-profile=ci

# Real services, installed from Debian where they are missing and root may: minutes, and never part of `make test`.
test-cluster: $(VENV)/.developer
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 pytest -m cluster tests/cluster

test-services: $(VENV)/.developer
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 pytest -m "services or browser" tests/tracking_server

lint: $(VENV)/.developer
	ruff check --no-cache .
	ruff format --no-cache --check .
	mypy
	snakefmt --check Snakefile workflow
	relent docs --check
	snakemake --lint

ui: setup
	mlflow ui --backend-store-uri sqlite:///mlflow/mlflow.db --host 127.0.0.1 --port 5000

$(VENV)/.peers: $(VENV)/.developer benchmarks/peers.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $(VENV)/peers -r benchmarks/peers.txt
	@touch $@

bench: $(VENV)/.peers
	PYTHONPATH=$(CURDIR)/$(VENV)/peers python benchmarks/run.py

docs: $(VENV)/.installed
	relent docs

constraints:
	scripts/make_constraints.sh

clean:
	rm -rf $(VENV) .snakemake logs
