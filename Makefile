# make demo     install, then the whole journey from slides to a report, and leave the service up (DEMO_EXIT=1: end after it)
# make test     install what tests need, then the suite; `make test-all` with the slow ones
#
# Settings: PYTHON (interpreter for .venv), INSTALLER=uv, ACINUS_SHARED_DATA (folder of real slides), PYTEST_ARGUMENTS

.DEFAULT_GOAL := help
.PHONY: help install install-test demo test test-all fuzz bench bench-peers lint format clean

python := .venv/bin/python
benchmarks := reader stream remote memory quality stain

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' Makefile | while IFS='|' read -r name text; do printf '%-12s %s\n' "$$name" "$$text"; done

install:  ## make .venv with everything the product needs
	@.ci/install

install-test:
	@.ci/install test

demo: install  ## from slides to a report over HTTP, then serve; DEMO_EXIT=1 ends after the report
	@$(python) -m app.demo

test: install-test  ## the suite without its slow tests
	@$(python) -m pytest -m "not slow" $(PYTEST_ARGUMENTS)

test-all: install-test  ## the whole suite
	@$(python) -m pytest $(PYTEST_ARGUMENTS)

fuzz: install-test  ## damaged slides, 1,000 of each format: opened, or refused with one clear error (half an hour)
	@mkdir -p .bench
	@$(python) -m tests.fuzz --json .bench/fuzz.json

bench: install-test  ## every benchmark of ours, quickly; figures as JSON and plots on one page in .bench/
	@mkdir -p .bench
	@for name in $(benchmarks); do \
		echo "== $$name"; \
		$(python) -m tests.benchmarks.$$name --quick --json .bench/$$name.json || exit 1; \
	done
	@$(python) -m tests.benchmarks.page .bench

bench-peers: install-test  ## our reader beside others, which are installed in .bench/ at first (6 GB)
	@mkdir -p .bench
	@$(python) -m tests.benchmarks.peers --json .bench/peers.json
	@$(python) -m tests.benchmarks.page .bench

lint: install-test  ## style, types and the import rule
	@$(python) -m ruff check .
	@$(python) -m ruff format --check .
	@$(python) -m mypy
	@.venv/bin/lint-imports

format: install-test  ## lay the code out as `lint` wants it
	@$(python) -m ruff check --fix .
	@$(python) -m ruff format .

clean:  ## remove everything that can be made again
	rm -rf .venv .bench .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache cdk.out demo-output build *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
