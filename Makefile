# Two commands matter: `make report` and `make test`. `make help` lists the rest.
SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
UV := 0.13.9
COMPILE := pip compile pyproject.toml --all-extras --universal --python-version 3.11 \
	--fork-strategy fewest --generate-hashes --no-strip-extras --no-header --no-annotate \
	--prerelease if-necessary-or-explicit --quiet -o requirements.lock

# Without bytecode every command compiles its imports anew, which takes longer than the imports.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help env venv lint test coverage test-slow test-hostile report book pdf capacity publish check bench faults fuzz audit licences readme lock clean live

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

env: $(VENV)/.ready ## make .venv with the exact versions of requirements.lock

# Seen to each time, so that a PYTHON that does not fit is rejected; `PYTHON=python3.13 make env`.
venv:
	@.ci/venv $(VENV) $(UV)

# In compat mode the checkout is on the path of modules: a folder of its name cannot shadow it.
$(VENV)/.ready: requirements.lock pyproject.toml | venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV)
	$(BIN)/uv pip sync --quiet --python $(BIN)/python --require-hashes requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable . \
		--config-settings editable_mode=compat
	@touch $@

lint: env ## check style, types, scripts, spelling, notebooks and declarations
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/nbstripout --verify $(wildcard notebooks/*.ipynb)
	git ls-files '*.py' '*.md' '*.y*ml' '*.ipynb' Makefile | xargs $(BIN)/codespell
	$(BIN)/mypy
	git ls-files '*.sh' .ci/run .ci/large-files postBuild | xargs $(BIN)/shellcheck
	$(BIN)/kvab check >/dev/null
	.ci/large-files

test: env ## run the tests (about five minutes on two cores)
	$(BIN)/pytest -n auto

coverage: env ## run the tests and report which branches of kvab they take, real commands counted
	rm -rf build/coverage && mkdir -p build/coverage
	$(BIN)/coverage run -m pytest -n auto
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

# Dynamo's own processes under real AIPerf: nothing else may run beside them.
REAL_TIME := tests/live tests/cluster/test_end_to_end.py
HOSTILE := tests/faults tests/fuzz tests/test_canaries.py

test-slow: env ## run the long tests: coverage of the intervals, live replays in real time
	$(BIN)/pytest -n auto -m slow $(addprefix --ignore=,$(REAL_TIME) $(HOSTILE))
	$(BIN)/pytest -m slow $(REAL_TIME)

test-kubernetes: env ## run what must hold on any cluster: make test-kubernetes KUBECONFIG=FILE
	@test -f "$(KUBECONFIG)" || { echo "KUBECONFIG: expected the file of a cluster to throw away, got '$(KUBECONFIG)'" >&2; exit 2; }
	KVAB_TEST_KUBECONFIG=$(abspath $(KUBECONFIG)) $(BIN)/pytest --durations=0 tests/cluster/test_any_cluster.py

test-hostile: env ## run the long tests of faults, broken inputs and hostile texts
	$(BIN)/pytest -m slow $(HOSTILE)

report: env ## replay what is missing and build the whole book; ends with the headline
	$(BIN)/kvab report

book: env ## build the book from the published runs: no simulator, no trace
	$(BIN)/kvab report --from book/published

pdf: book ## print the main pages of that book into one PDF, which its first page then links
	$(BIN)/python .ci/pdf.py book/_build/html

capacity: env ## sweep load and split on the simulated cluster (about ten minutes on two cores)
	$(BIN)/kvab capacity

live: env ## replay 60 requests live on this machine and build their book (about ten minutes)
	$(BIN)/kvab report --cluster live-cpu --rows 60 --repeats 1 --out build/live

publish: env ## copy this machine's complete runs to book/published
	$(BIN)/kvab publish

check: lint ## everything that must hold before a change is handed over, but the tests
	$(BIN)/kvab report --from book/published --out build/check

bench: env ## measure speed as ratios within one run, write docs/performance.md
	$(BIN)/python benchmarks/replay.py
	$(BIN)/python benchmarks/records.py
	$(BIN)/python benchmarks/comparison.py
	$(BIN)/python benchmarks/report.py
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/performance.py

faults: env ## kill runs and harm them in other ways, write docs/reliability.md (twenty minutes at most)
	timeout --foreground 20m $(BIN)/python tests/faults/campaign.py; ended=$$?; \
	$(BIN)/python tests/faults/reliability.py; exit $$ended

fuzz: env ## feed each reader 100,000 broken inputs, write docs/reliability.md (a quarter of an hour)
	$(BIN)/python tests/fuzz/fuzz.py --inputs 100000 --out book/published/fuzzing.json; ended=$$?; \
	$(BIN)/python tests/faults/reliability.py; exit $$ended

audit: env ## look for known vulnerabilities in requirements.lock
	$(BIN)/pip-audit --requirement requirements.lock --require-hashes --disable-pip

readme: env ## write the published answer and its picture into README.md
	$(BIN)/python .ci/readme.py

licences: env ## list the licences of all dependencies in docs/licences.md
	$(BIN)/python .ci/licences.py

lock: venv ## resolve requirements.lock anew
	test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet uv==$(UV)
	rm -f requirements.lock
	$(BIN)/uv $(COMPILE)

clean: ## remove the environment, the built book and caches; runs stay
	rm -rf $(VENV) build book/_build .pytest_cache .ruff_cache *.egg-info
