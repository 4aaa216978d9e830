# make demo     install, run the whole journey from slides to a report, and keep serving
#               (DEMO_EXIT=1: end after the report)
# make test     install what the tests need, run the suite; `make test-all` runs the slow tests too
#
# Settings: PYTHON (interpreter for .venv), INSTALLER=uv,
#           ACINUS_SHARED_DATA (folder of real slides), PYTEST_ARGUMENTS,
#           JOBS (processes that share the suite; 0: all in one, as --pdb needs)

.DEFAULT_GOAL := help
.PHONY: help install install-test demo test test-all fuzz bench bench-peers bench-encoders lint format clean

python := .venv/bin/python
benchmarks := first_command reader stream remote memory quality stain encoders
JOBS ?= 2
# A test file stays in one process, so its fixtures are built once. Slow files come first
# (tests/conftest.py).
pytest := $(python) -m pytest --numprocesses $(JOBS) --dist loadscope --no-loadscope-reorder

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' Makefile | \
		while IFS='|' read -r name text; do printf '%-12s %s\n' "$$name" "$$text"; done

install:  ## create .venv with everything the product needs
	@.ci/install

install-test:
	@.ci/install test

demo: install  ## from slides to a report over HTTP, then keep serving (DEMO_EXIT=1: end)
	@$(python) -m app.demo

test: install-test  ## the suite without its slow tests
	@$(pytest) -m "not slow" $(PYTEST_ARGUMENTS)

test-all: install-test  ## the whole suite
	@$(pytest) $(PYTEST_ARGUMENTS)

fuzz: install-test  ## 1,000 damaged slides of each format are opened or refused (half an hour)
	@mkdir -p .bench
	@$(python) -m tests.fuzz --json .bench/fuzz.json

bench: install-test  ## all benchmarks, quickly; JSON files and a page of plots in .bench/
	@mkdir -p .bench
	@for name in $(benchmarks); do \
		echo "== $$name"; \
		$(python) -m tests.benchmarks.$$name --quick --json .bench/$$name.json || exit 1; \
	done
	@$(python) -m tests.benchmarks.page .bench

bench-peers: install-test  ## our reader and others; first installs those in .bench/ (6 GB)
	@mkdir -p .bench
	@$(python) -m tests.benchmarks.peers --json .bench/peers.json
	@$(python) -m tests.benchmarks.page .bench

bench-encoders: install-test  ## published encoders against timm and transformers, installed in .bench/
	@mkdir -p .bench
	@test -d .bench/encoders || $(python) -m venv .bench/encoders
	@$(python) -c "import sysconfig; print(sysconfig.get_path('purelib'))" \
		> $$(.bench/encoders/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/acinus.pth
	@.bench/encoders/bin/python -m pip install --quiet transformers==5.24.0 huggingface_hub==2.4.0
	@.bench/encoders/bin/python -m pip install --quiet --no-deps timm==1.0.31 torchvision==0.29.1
	@.bench/encoders/bin/python -m pytest -q tests/training/test_published_peers.py

lint: install-test  ## style, types and import rules
	@$(python) -m ruff check .
	@$(python) -m ruff format --check .
	@$(python) -m mypy
	@.venv/bin/lint-imports

format: install-test  ## format the code as `lint` requires
	@$(python) -m ruff check --fix .
	@$(python) -m ruff format .

clean:  ## remove everything that can be rebuilt
	rm -rf .venv .bench .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	rm -rf cdk.out demo-output build *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
