# Everything here sets itself up on a machine that has only Python 3.11 or 3.12.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Large activations cost page faults unless glibc keeps its memory; read at process start.
export MALLOC_MMAP_THRESHOLD_ = 4294967296
export MALLOC_TRIM_THRESHOLD_ = 4294967296
# Nothing is fetched at run time.
export HF_HUB_OFFLINE = 1

.PHONY: setup demo test check results clean

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	touch $@

demo: setup
	$(BIN)/python -m studio.demo

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright

test: check
	$(BIN)/python -m pytest

results: setup
	$(BIN)/python -m trainers.pretrain score
	$(BIN)/studio score --all-held-out

clean:
	rm -rf $(VENV) outputs
