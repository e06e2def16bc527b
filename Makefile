.DEFAULT_GOAL := help
# uv copies where its cache lies on another disk; that is no reason to warn. It trusts whom the
# system trusts, as behind a proxy with a certificate of its own.
export UV_LINK_MODE ?= copy
export UV_SYSTEM_CERTS ?= 1
.PHONY: help demo test test-faults test-airflow test-cluster up down lint docs bench bench-endpoint bench-scale faults lock faults-endpoint soak
PYTHON ?= python3.11
KILLS ?= 300
UV := .uv/bin/uv
UV_VERSION := 0.13.8

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' Makefile

demo: .venv/.installed  ## install, load 14 months of three workspaces, build, tie out, purge, show
	.venv/bin/tidemark demo

# A file's tests share a home, so they stay together, in the order in which they are listed.
SIDE_BY_SIDE := --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

test: .venv/.installed  ## install if needed and run every test
	.venv/bin/pytest $(SIDE_BY_SIDE)

test-faults: .venv/.installed  ## kills at every step, and loads of clients, some minutes
	.venv/bin/pytest -m faults $(SIDE_BY_SIDE)

test-airflow: .venv/.installed  ## the DAGs on the real scheduler, outages too, many minutes
	.venv/bin/pytest -m airflow tests/dags

test-cluster: .venv/.installed  ## the profile of a cluster on stand-ins for its hosts, many minutes
	.venv/bin/pytest -m cluster tests/integration/test_cluster.py

up: .venv/.installed  ## start the engines and Airflow
	.venv/bin/tidemark up

down: .venv/.installed  ## stop Airflow and the engines
	.venv/bin/tidemark down

lint: .venv/.installed  ## check style, types and SQL
	.venv/bin/ruff check . && .venv/bin/ruff format --check . && .venv/bin/mypy
	PYTHONPATH=tests .venv/bin/python tests/lint_sql.py

docs: .venv/.installed  ## build the dbt docs site, and name it and the Data Docs
	.venv/bin/tidemark docs

bench: .venv/.installed  ## measure, print a table and keep it in bench/results/
	.venv/bin/python -m bench && .venv/bin/python -m bench.retention

bench-endpoint: .venv/.installed  ## measure the HTTP endpoint against the engine in process
	.venv/bin/python -m bench.endpoint

bench-scale: .venv/.installed  ## measure what grows with events and workspaces, for docs/scale.md
	.venv/bin/python -m bench.scale

faults: .venv/.installed  ## kill the purge again and again, and see that nothing is lost
	PYTHONPATH=tests .venv/bin/python -m faults --kills $(KILLS)

faults-endpoint: .venv/.installed  ## kill the ClickHouse endpoint 100 times and count
	.venv/bin/python -m bench.faults_endpoint

soak: .venv/.installed  ## 32 clients at once on the ClickHouse endpoint, ten minutes
	.venv/bin/python -m bench.soak_endpoint

# uv comes from the package index like everything else, into a corner of its own.
$(UV):
	$(PYTHON) -m venv .uv && .uv/bin/pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)

.venv/.installed: pyproject.toml requirements.lock | $(UV)
	$(UV) venv --quiet --allow-existing --no-python-downloads --python $(PYTHON) .venv
	$(UV) pip sync --quiet --require-hashes --compile-bytecode --python .venv requirements.lock
	$(UV) pip install --quiet --no-deps --no-build-isolation --python .venv --editable .
	@touch $@

# Exact versions and hashes of everything, for every platform.
lock: | $(UV)  ## resolve requirements.lock anew
	$(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate --group dev --group bench --output-file requirements.lock pyproject.toml
	$(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate --group cluster --output-file deploy/requirements.lock pyproject.toml
