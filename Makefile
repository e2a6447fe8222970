# Everything from a bare Python (3.11 or newer) and make: each target sets up what it needs in .venv and says what it does.
# PYTHON=python3.12 names the interpreter of a new .venv; ARGS="..." is passed on to the command of the target.

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check --no-input --progress-bar off -c constraints.txt
CODE := features serving training

# Nothing phones home.
export BENTOML_DO_NOT_TRACK := true
export MLFLOW_DISABLE_TELEMETRY := true
# Waiting threads sleep instead of spinning: on a busy machine that is the difference of a minute to ten.
export OMP_WAIT_POLICY := PASSIVE

.DEFAULT_GOAL := help
.PHONY: help install demo notebook test browser lint check serve bench bench-truth bench-maturity world-picture clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo '  PYTHON=python3.12 chooses the interpreter, ARGS="..." is passed on: make test ARGS="-k snapshot"'

install: $(STAMP)  ## make .venv with everything in it (the other targets do this by themselves)

demo: $(STAMP)  ## a simulated shop from raw tables to an explained risk over HTTP, in demo/
	@$(BIN)/python -m training.demo $(ARGS)

notebook: $(STAMP)  ## run the notebook for data scientists, from tables to promotion, into docs/notebooks/one-round.html
	@$(BIN)/python docs/notebooks/run.py $(ARGS)

test: lint browser  ## lint, types, import contract, then the tests: what CI runs
	$(BIN)/python -m pytest -m "not slow" -n auto --dist loadfile $(ARGS)

check: test  ## the same as test

# The pages are walked in a real browser.
browser:
	@if ! command -v chromium >/dev/null && ! command -v chromium-browser >/dev/null && ! command -v google-chrome >/dev/null; then \
		if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
			echo 'setting up: chromium, for the tests of the pages (some 250 MB)'; \
			apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium >/dev/null; \
		else \
			echo 'There is no chromium: the tests of the pages need one and are left out.' >&2; \
			echo '  Debian: apt-get install chromium    Ubuntu: snap install chromium    Fedora: dnf install chromium' >&2; \
			[ -z "$$CI" ]; \
		fi; \
	fi

lint: $(STAMP)  ## style, types and the import contract only
	$(BIN)/ruff check --quiet .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/mypy $(CODE)
	@$(BIN)/lint-imports > $(VENV)/imports.log || { cat $(VENV)/imports.log; exit 1; }

serve: $(STAMP)  ## serve the published model on port 3000 (else the demo's, else base rates)
	@set -- $(ARGS); \
	if [ -z "$$DOORSTEP_BUNDLE" ] && [ ! -e deploy/bundle ] && [ -e demo/deploy/bundle ]; then \
		echo 'Nothing is published in deploy/: serving the simulated shop that make demo left in demo/.'; \
		set -- --bundle demo/deploy/bundle --snapshot demo/deploy/snapshot --policy demo/policy.toml --diagnosis demo/diagnosis \
			--waiting demo/waiting.db --ledger sqlite:///demo/ledger.db "$$@"; \
	fi; \
	exec $(BIN)/doorstep serve "$$@"

bench: $(STAMP)  ## the speed benchmarks, each one command of benchmarks/, and the slow tests (tens of minutes)
	@failed=; for each in $(filter-out benchmarks/truth.py benchmarks/maturity.py,$(wildcard benchmarks/*.py)); do \
		echo; echo "$$ python $$each"; \
		$(BIN)/python $$each || failed="$$failed $$each"; \
	done; \
	$(BIN)/python -m pytest -m slow || failed="$$failed slow-tests"; \
	if [ -n "$$failed" ]; then echo "not reached:$$failed" >&2; exit 1; fi

bench-truth: $(STAMP)  ## Doorstep against the truth of simulated shops, as tables; into docs/truth.md with ARGS="--write all" (half an hour)
	@$(BIN)/python benchmarks/truth.py $(ARGS)

bench-maturity: $(STAMP)  ## what rows too young to judge are worth, as tables; into docs/maturity.md with ARGS=--write (an hour or two)
	@$(BIN)/python benchmarks/maturity.py $(ARGS)

world-picture: $(STAMP)  ## draw the simulated shop, its tables beside its truth, into docs/world (half a minute)
	@$(BIN)/python -m training.world.picture $(ARGS)
	@$(BIN)/python -m training.docs

clean:  ## remove .venv, caches and what demo and bench made; never runs/, deploy/ or the model registry
	rm -rf $(VENV) build dist demo benchmarks/out docs/notebooks/*.html *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache

# The newest of the inputs decides: change a pin or a dependency and the next target installs it.
$(STAMP): pyproject.toml constraints.txt
	@if [ -n '$(PYTHON)' ]; then set -- '$(PYTHON)'; else set -- python3.11 python3.12 python3.13 python3 python; fi; \
	for python; do \
		if "$$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then break; fi; \
		tried="$$tried $$python ($$("$$python" --version 2>/dev/null || echo 'not found'))"; python=; \
	done; \
	if [ -z "$$python" ]; then \
		echo "Doorstep needs Python 3.11 or newer with its venv module. Tried:$$tried." >&2; \
		echo 'Install one (Debian, Ubuntu: apt-get install python3 python3-venv), or name one: make demo PYTHON=/path/to/python3.11' >&2; \
		exit 1; \
	fi; \
	if ! $(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
		echo "setting up: $(VENV) with $$("$$python" --version)"; \
		"$$python" -m venv --clear $(VENV); \
	fi
	@echo 'setting up: 1 of 3, the installer'
	@$(PIP) pip setuptools
	@echo 'setting up: 2 of 3, what serving needs (numpy, pandas, bentoml ...), about a minute'
	@$(PIP) --no-build-isolation -e .
	@echo 'setting up: 3 of 3, training and tools (mlflow, lightgbm, shap ...), some 400 MB, a minute or two'
	@$(PIP) --no-build-isolation -e '.[dev]'
	@$(BIN)/python -c 'import lightgbm' || { \
		echo 'LightGBM does not load. It needs the OpenMP library of the system:' >&2; \
		echo '  Debian, Ubuntu: apt-get install libgomp1    Fedora: dnf install libgomp    macOS: brew install libomp' >&2; \
		exit 1; \
	}
	@touch $@
