# Two commands: `make demo` and `make test`. Both make .venv if it is not there.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# DVC keeps an index of tracked paths outside the repository unless told otherwise.
export DVC_SITE_CACHE_DIR := $(CURDIR)/.slugline/dvc-site-cache
export DVC_NO_ANALYTICS := 1
# Where it is set, every process compiles some 2,000 modules anew: 10 s for a command that loads them all.
unexport PYTHONDONTWRITEBYTECODE
# As pip does: trust what this machine trusts, also behind a company's proxy.
export UV_SYSTEM_CERTS := 1

.PHONY: demo test check install install-dev clean deploy

demo: install
	$(BIN)/slugline demo

# A process for every core; a module's tests stay together, with what it sets up.
test: install-dev
	$(BIN)/python -m pytest -n auto --dist loadscope

# `dvc status` compares every built set and the trained weights with dvc.lock; the bundle must stay small.
check: install-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/dvc pull --quiet
	$(BIN)/dvc status | tee /dev/stderr | grep -q "up to date"
	test $$(du -sm data/store | cut -f1) -le 80

install: $(VENV)/installed
install-dev: $(VENV)/installed-dev

$(BIN)/uv:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet uv

$(VENV)/installed: requirements.txt pyproject.toml | $(BIN)/uv
	VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --quiet -r requirements.txt
	VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --quiet --no-deps -e .
	touch $@

$(VENV)/installed-dev: requirements-dev.txt pyproject.toml | $(BIN)/uv
	VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --quiet -r requirements-dev.txt
	VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --quiet --no-deps -e .
	touch $@ $(VENV)/installed

clean:
	rm -rf $(VENV) .slugline build *.egg-info

# On the server at PREFECT_API_URL; without one Prefect would deploy to a server that ends with the command.
deploy: export PREFECT_SERVER_ALLOW_EPHEMERAL_MODE := false
deploy: install
	$(BIN)/prefect work-pool create slugline --type process --overwrite
	$(BIN)/prefect --no-prompt deploy --all
	$(BIN)/prefect work-queue set-concurrency-limit gpu 1 --pool slugline
