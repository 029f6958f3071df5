# Everything sets itself up: Python 3.11+ and make are all that a machine needs.
#
#   make demo            a federation on this machine, on real data (NumPy only)
#   make demo TORCH=1    the same with a mixed fleet: half torch, half NumPy
#   make test            the tests, but for those of minutes
#   make test-slow       kills, partitions and audits that take minutes
#   make lint            ruff, mypy, import-linter
#   make chaos           kill everything, fill disks, set clocks and copy stores for SECONDS=60 from SEED=1: is any
#                        update lost or doubled? GATEWAYS=2 kills the parts of two sites and cuts their lines;
#                        SHARDS=2 kills the processes of an aggregator with two shards
#   make rot             kill processes and have their files rot for SECONDS=60 from SEED=1: does anything change unseen?
#   make fuzz            give every decoder bytes that nobody thought of, for SECONDS=60
#   make bench           measure all that docs/performance.md tells, in under 20 minutes, and write the page anew
#   make nightly         soak 3,000 live devices for MINUTES=10, live a year in virtual time, and write the page anew;
#                        the long tests, `make brokers`, and `make home-assistant` where there is Python 3.13
#   make micro           the clients for microcontrollers under resets: 1,000 updates each, against Mosquitto; MICRO=--quick
#                        for a tenth of it
#   make brokers         the contract suite, the demonstration, kills and `midge clean` over Mosquitto, RabbitMQ, ejabberd,
#                        aedes and rumqttd, and 5 MB under the limits of four hosted brokers; BROKERS=--quick for two
#   make home-assistant  a real Home Assistant shows a federation, and its switch pauses it; needs Python 3.13
#   make upgrade         a rolling upgrade from an earlier version, with its real code: BASE=TAG or a commit
#   make mutants         which tests catch which bug that is put in on purpose
#   make docs            the pages as a site, build/site/index.html: a warning is an error, and no link leads nowhere
#   make release         build dist/ and try it: its metadata, two devices and the demonstration from the installed wheel
#   make install         .venv with everything, for work on Midge itself

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check
ARGS ?= --target 0.93 --seconds 120

# Tests and demonstrations start hundreds of processes: each module is compiled once, and not by each of them.
unexport PYTHONDONTWRITEBYTECODE
# Tests wait for about half of their time, so three workers keep two cores busy.
WORKERS ?= 3

CHROMIUM ?= chromium --headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking \
  --disable-component-update --disable-sync --user-data-dir=$(CURDIR)/runs/.chromium --hide-scrollbars

.PHONY: pictures demo test test-slow lint format install clean chaos rot fuzz mutants bench nightly micro brokers home-assistant upgrade release docs
.DELETE_ON_ERROR:

ifdef TORCH
demo: $(VENV)/.demo $(VENV)/.torch
	$(BIN)/midge demo --engine mixed $(ARGS)
else
demo: $(VENV)/.demo
	$(BIN)/midge demo $(ARGS)
endif

LEFT_OUT := $(VENV)/.left-out
PYTEST = $(BIN)/pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder --left-out=$(LEFT_OUT) $(PYTEST_ARGS)

# Tests with processes that mostly wait run after all that compute.
test: MARKED := not slow and not nightly
test-slow: MARKED := slow and not nightly
test test-slow: install
	@rm -f $(LEFT_OUT)
	@code=0; set -x; \
	$(PYTEST) -m '$(MARKED) and not alone' && $(PYTEST) -m '$(MARKED) and alone' || code=$$?; \
	{ set +x; } 2>/dev/null; $(BIN)/python -m tests.left_out $(LEFT_OUT); exit $$code

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

SECONDS ?= 60
SEED ?= 1
GATEWAYS ?= 0
SHARDS ?= 0
chaos: $(VENV)/.demo
	@$(BIN)/python -m tests.harness --seconds $(SECONDS) --seed $(SEED) --gateways $(GATEWAYS) --shards $(SHARDS)

rot: $(VENV)/.demo
	@$(BIN)/python -m tests.harness.rot --seconds $(SECONDS) --seed $(SEED)

fuzz: install
	$(PIP) atheris
	@$(BIN)/python -m tests.fuzz --seconds $(SECONDS)

micro: install
	@.ci/packages mosquitto gcc arm-none-eabi-gcc qemu-system-arm
	@$(BIN)/python -m tests.micro $(MICRO)

# What cannot be installed is a row that says so.
AEDES := $(VENV)/node/node_modules/aedes
brokers: install
	@.ci/packages mosquitto
	@$(if $(findstring --quick,$(BROKERS)),,.ci/packages node npm rabbitmq-server ejabberdctl || true)
	@$(BIN)/python -c 'import iotcore' 2>/dev/null || $(PIP) --constraint constraints.txt --editable '.[brokers]' || true
	@$(if $(findstring --quick,$(BROKERS)),,test -d $(AEDES) || npm install --silent --no-audit --no-fund --prefix $(VENV)/node aedes@1.2.0 || true)
	@$(BIN)/python -m tests.brokers $(BROKERS)

# In an environment of its own: it pins what it needs, and needs a newer Python than Midge does.
HOME_ASSISTANT ?= .venv-home-assistant
HOME_ASSISTANT_PYTHON ?= $(firstword $(wildcard $(HOME)/.pyenv/versions/3.13.*/bin/python3.13) python3.13)
home-assistant: install
	@.ci/packages mosquitto
	@test -x $(HOME_ASSISTANT)/bin/python || $(HOME_ASSISTANT_PYTHON) -m venv $(HOME_ASSISTANT)
	@$(HOME_ASSISTANT)/bin/pip install --quiet --disable-pip-version-check homeassistant==2025.4.4 paho-mqtt==2.1.0
	MIDGE_HOME_ASSISTANT=$(HOME_ASSISTANT)/bin/python $(BIN)/pytest tests/operations/home_assistant.py

BASE ?= $(shell git describe --tags --abbrev=0 2>/dev/null)
upgrade: install
	@test -n "$(BASE)" || { echo "No version is tagged yet: say which commit is the earlier one, make upgrade BASE=COMMIT" >&2; exit 1; }
	@.ci/packages mosquitto
	MIDGE_UPGRADE_BASE=$(BASE) $(BIN)/pytest tests/operations/upgrade.py

mutants: install
	@$(BIN)/python -m tests.mutants

bench: install
	@$(BIN)/python -m benchmarks.suite
	@$(BIN)/python docs/performance.py

MINUTES ?= 10
nightly: install
	@.ci/packages mosquitto
	@code=0; $(BIN)/python -m benchmarks.soak --minutes $(MINUTES) --store || code=$$?; \
	$(BIN)/python -m benchmarks.soak_year --store || code=$$?; \
	$(BIN)/python docs/performance.py; \
	$(BIN)/pytest --numprocesses 2 -m nightly || code=$$?; \
	$(MAKE) brokers BROKERS="--out benchmarks/results/brokers.json" || code=$$?; \
	$(BIN)/python docs/brokers.py; exit $$code
	@! { test -x $(HOME_ASSISTANT)/bin/python || command -v $(HOME_ASSISTANT_PYTHON) >/dev/null; } || \
	$(MAKE) home-assistant

docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

release: install
	@.ci/packages mosquitto
	$(PIP) --constraint constraints.txt --editable '.[release]'
	@$(BIN)/python -m tools.release

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

install: $(VENV)/.dev

$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Midge needs Python 3.11 or newer; this is $$($(PYTHON) --version). Say which: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
	  { echo "Python's venv module is missing here. On Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(BIN)/pip pyproject.toml
	$(PIP) --editable '.[demo]'
	@touch $@

# torch first and from the constraints file: alone, a newer one may bring gigabytes of CUDA with it.
$(VENV)/.torch: $(BIN)/pip constraints.txt
	$(PIP) --constraint constraints.txt torch
	@touch $@

$(VENV)/.dev: $(VENV)/.torch pyproject.toml
	$(PIP) --constraint constraints.txt --editable '.[dev]'
	@touch $(VENV)/.demo $@

# The pictures of the README, from a real run.
pictures: install
	rm -rf runs/pictures runs/.chromium
	$(BIN)/python docs/film.py
	$(BIN)/midge demo --name pictures --target 0.93 --seconds 120
	$(CHROMIUM) --screenshot=docs/pictures/report.png --window-size=1200,1180 file://$(CURDIR)/runs/pictures/report.html

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
