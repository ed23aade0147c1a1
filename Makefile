# Two commands on a bare machine with python3, gcc and make: `make demo` and `make test`.
# PYTHON=python3.13 picks another interpreter, VENV=dir another place for its environment.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --quiet --disable-pip-version-check
SOURCES := pyproject.toml meson.build LICENSE README.md $(shell find src include -type f -not -name '*.pyc')
# Those that start tasks in the test's own process, which is the one that is instrumented.
SANITIZED := tests/test_child.py tests/test_clone.py tests/test_fallback.py tests/test_flags.py tests/test_lowlevel.py \
    tests/test_orphans.py tests/test_pointers.py tests/test_probe.py tests/test_program.py tests/test_stacks.py \
    tests/test_steps.py tests/test_threads.py
NATIVE := $(shell find src/native include tests examples benchmarks -name '*.[ch]')

.DEFAULT_GOAL := help
.PHONY: help demo test test-peers test-sanitizers lint types format bench docs clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.installed ## Build, then run C functions, program files and sandboxes, and show what became of them
	$(BIN)/python examples/quickstart.py
	$(BIN)/python examples/spawning.py
	$(BIN)/python examples/sandboxing.py

test: $(VENV)/.test ## Build, then run all tests
	$(BIN)/python -m pytest -q

test-peers: $(VENV)/.test ## Run all of CPython's own tests with ramet in the place of what they are for (4 minutes)
	RAMET_PEERS=all $(BIN)/python -m pytest -q -rs tests/peers

test-sanitizers: $(VENV)/.test build/asan ## Run the core, and the extension, under ASan and UBSan, and valgrind
	$(BIN)/python -m pytest -q tests/native/test_sanitizers.py
	PYTHONPATH=build/asan $(BIN)/python -c "import importlib.util as u; assert 'asan' in u.find_spec('ramet').origin"
	LD_PRELOAD="$$($(CC) -print-file-name=libasan.so) $$($(CC) -print-file-name=libubsan.so)" \
	ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1 PYTHONMALLOC=malloc PYTHONPATH=build/asan \
	$(BIN)/python -m pytest -q $(SANITIZED)

lint: $(VENV)/.lint build/lint/build.ninja ## Check style and look for mistakes: ruff, clang-format, clang-tidy, gcc -fanalyzer
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/clang-format --dry-run --Werror $(NATIVE)
	$(BIN)/clang-tidy --quiet --extra-arg=-Qunused-arguments -p build/lint src/native/*.c
	$(MAKE) --no-print-directory build/analyzed

types: $(VENV)/.lint ## Check types: mypy --strict
	$(BIN)/mypy

format: $(VENV)/.lint ## Put all sources into shape
	$(BIN)/ruff check --fix --select I
	$(BIN)/ruff format
	$(BIN)/clang-format -i $(NATIVE)

bench: $(VENV)/.bench ## Measure against C, os.fork, multiprocessing, subprocess and bubblewrap
	$(BIN)/python benchmarks/clone_latency.py
	$(BIN)/python benchmarks/spawn.py
	$(BIN)/python benchmarks/functions.py
	$(BIN)/python benchmarks/sandbox.py

docs: $(VENV)/.installed ## Write the generated pages of docs/
	$(BIN)/python docs/generate.py

clean: ## Remove everything that was built
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/.venv:
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --upgrade pip meson-python meson ninja
	touch $@

# The package is installed, not linked to: what is tested is what a user gets.
$(VENV)/.installed: $(VENV)/.venv $(SOURCES)
	PATH="$(abspath $(BIN)):$$PATH" $(PIP) install --no-build-isolation --force-reinstall --no-deps .
	touch $@

$(VENV)/.test: $(VENV)/.installed
	$(PIP) install --group test
	touch $@

$(VENV)/.lint: $(VENV)/.test
	$(PIP) install --group lint --group bench
	touch $@

build/asan: $(VENV)/.venv $(SOURCES)
	rm -rf $@
	PATH="$(abspath $(BIN)):$$PATH" $(PIP) install --no-build-isolation --no-deps --target $@ . \
	    -Csetup-args=-Db_sanitize=address,undefined -Csetup-args=-Db_lundef=false

build/lint/build.ninja: $(VENV)/.venv meson.build
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/meson setup --wipe $(@D) >/dev/null 2>&1 || \
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/meson setup $(@D) >/dev/null
	sed -i 's/ -fno-tree-loop-distribute-patterns//' $(@D)/compile_commands.json  # gcc only

# gcc's analyser, with all its warnings as errors.
build/analyzed: $(VENV)/.venv $(NATIVE)
	rm -rf build/analyze
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/meson setup -Dwerror=true -Dc_args=-fanalyzer build/analyze >/dev/null
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/meson compile -C build/analyze >/dev/null
	touch $@

$(VENV)/.bench: $(VENV)/.installed
	$(PIP) install --group bench
	-$(PIP) install --only-binary :all: --group peers  # the benchmark says which are missing
	touch $@
