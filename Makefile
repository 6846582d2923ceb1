# Everything here sets itself up on a machine that has only Python 3.11 or 3.12.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Large activations cost page faults unless glibc keeps its memory; read at process start.
export MALLOC_MMAP_THRESHOLD_ = 4294967296
export MALLOC_TRIM_THRESHOLD_ = 4294967296
# Nothing is fetched at run time.
export HF_HUB_OFFLINE = 1

.PHONY: setup browser demo test check docs torture results pictures bench clean

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' || \
		{ echo "Python 3.11 or 3.12 is needed: make PYTHON=python3.11 ..."; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check $(PIP_FLAGS) --constraint constraints.txt --editable ".[dev]"
	touch $@

demo: setup
	$(BIN)/python -m studio.commands.demo

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright

# The studio's pages are tested in Debian's browser; where it cannot be installed the tests say so.
browser:
	@for one in chromium chromium-browser google-chrome; do command -v $$one >/dev/null && exit 0; done; \
	if command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then apt-get update -qq && apt-get install -y -qq chromium; \
	else echo "No chromium is here; as root: apt-get install chromium"; fi

# Two processes of one thread each: a file of tests is run by one of them. A process that was ended for a test that hangs
# is replaced once; xdist begins with the same test again. Files come as they are collected: those of the browser, few
# tests that take long, would else come last and leave one process without work.
test: check browser
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 1

# The site, into outputs/site; a link that leads nowhere is an error (with --quiet it would not be).
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	@echo "outputs/site/index.html"

$(VENV)/.docs: $(VENV)/.ready
	$(BIN)/pip install --quiet --disable-pip-version-check $(PIP_FLAGS) --constraint constraints.txt --editable ".[docs]"
	touch $@

# What the suite does in small: trainings killed at random moments, mutated concept files, hostile requests; and a real
# server whose page is sent hostile values, whose processes are killed and whose disk is filled (as root).
torture: setup
	$(BIN)/python -m tests.torture.kills --kills 200
	$(BIN)/python -m tests.torture.fuzz --files 10000
	$(BIN)/python -m tests.torture.requests --requests 10000
	$(BIN)/python -m tests.torture.page --values 3000
	$(BIN)/python -m tests.torture.faults --rounds 40

# Every figure of the docs, kept in docs/results.json; some hours on two cores.
results: setup
	$(BIN)/python -m benchmarks.results

# Pictures of the docs that are no figures of a measurement.
pictures: setup
	$(BIN)/python -m benchmarks.pictures

# Side by side with the programs it is compared to; see benchmarks/README.md.
bench: setup
	$(BIN)/python -m benchmarks.boxes

# Leaves outputs/ alone: concepts and training states live there.
clean:
	rm -rf $(VENV) .ruff_cache .pytest_cache
