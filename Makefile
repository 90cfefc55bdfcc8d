# The everyday doors. Each makes .venv first if need be; nothing but Python >= 3.11, make and git is assumed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# uv does not read pip's variable for local package files; without one, the option is empty and harmless.
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
export PATH := $(CURDIR)/$(BIN):$(PATH)
export MLFLOW_DISABLE_TELEMETRY := true
PORT ?= 5000
KILLS ?= 50

.DEFAULT_GOAL := help
.PHONY: help setup study serve test test-all lint docs mlflow mirror benchmark torture clean

help: ## show this list
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(VENV)/.installed ## make .venv and install everything, pinned: the core and the extras study, serve, export and dev

# The stamp is written last, so that a broken installation is begun anew. Compiled at once, since each of the many stages
# pays for what is not, and some environments forbid compiling on first import.
$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed, and $(PYTHON) is $$($(PYTHON) --version 2>&1): make PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
		{ echo "$(PYTHON) cannot make a virtual environment: install its venv package (Debian: python3-venv)"; exit 1; }
	@$(BIN)/python -m pip install --quiet uv && \
		$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python -c constraints.txt -e '.[dev]' || \
		{ echo "The packages could not be installed. A package index must be reachable for this step (later ones need none):"; \
		  echo "check the network or pip's index settings, then run make again. Plain pip works too, if slower:"; \
		  echo "  $(BIN)/python -m pip install -c constraints.txt -e '.[dev]'"; exit 1; }
	@touch $@

study: setup ## run the whole study of params.yaml (the embedded demo by default)
	@git rev-parse --git-dir >/dev/null 2>&1 || grep -qs 'no_scm *= *true' .dvc/config.local .dvc/config || \
		{ echo "This folder is no git clone, and DVC wants one: run 'git init' here, or tell it to do without:"; \
		  echo "  $(BIN)/dvc config --local core.no_scm true"; exit 1; }
	@$(BIN)/python -m pipeline.cli plan --short || true
	@$(BIN)/python -m dvc repro
	@echo; echo "Done. Open reports/study/index.html; browse the runs with: make mlflow; score images of your own with: $(BIN)/agiqa score PATHS"

serve: setup ## score images of your own in a web page at http://127.0.0.1:8000
	@$(BIN)/python -m pipeline.cli serve

# A process a core, each with one thread; a module's tests stay together, since they share what was costly to make.
PARALLEL ?= -n logical --dist loadfile
test: setup ## run the quick tests
	@$(BIN)/python -m pytest $(PARALLEL)

test-all: setup ## run all tests, the slow ones, too
	@$(BIN)/python -m pytest -m ''

lint: setup ## check style
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

docs: setup ## build the pages of docs/ as a site that needs no network, into site/
	@$(BIN)/python -m mkdocs build --quiet --strict && echo "Open site/index.html"

# The store's address comes from the code that writes it: a folder's name may hold blanks, percent and number signs. From
# a path with a percent sign MLflow cannot open a database (see store.py), so there it is imported through a link.
mlflow: setup ## browse the runs in MLflow (PORT=5000)
	@if [ -d runs ]; then $(BIN)/python -m stages.mirror; fi
	@echo "MLflow starts (10 to 30 seconds); the link to this study's runs follows. Ctrl-C stops it."
	@case "$$PWD" in *%*) plain=$$(mktemp -d) && trap 'rm -rf "$$plain"' EXIT && export PYTHONPATH="$$plain" && \
		ln -s "$$PWD/$(VENV)"/lib/python*/site-packages/mlflow "$$plain/mlflow";; esac; \
	$(BIN)/python -m pipeline.tracking.view --address http://127.0.0.1:$(PORT) & \
	MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false $(BIN)/python -m mlflow server --workers 1 --host 127.0.0.1 --port $(PORT) \
		--backend-store-uri "$$($(BIN)/python -c 'from pipeline.tracking import store; print(store.tracking_uri("."))')" \
		--artifacts-destination "$$PWD/mlartifacts"

mirror: setup ## rebuild MLflow's database from the files
	@$(BIN)/python -m stages.mirror

benchmark: setup ## time scoring and training against the predecessor's procedure, plain open_clip and the machine's rate
	@$(BIN)/python benchmarks/speed.py && $(BIN)/python benchmarks/startup.py

torture: setup ## kill a stage of the smoke study KILLS=50 times, and hold what comes out to an undisturbed run
	@$(BIN)/python benchmarks/torture.py --kills $(KILLS)

clean: ## remove caches and resume states; keeps data, runs and reports
	@rm -rf .work .pytest_cache .ruff_cache build site && find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
