# Needs python3 (3.11 or newer), python3-venv and the package registries; nothing here asks for root.
VENV := .venv
PY := $(VENV)/bin/python
# Each of two workers has a core. Files go in their order: the long ones would come last otherwise, and one worker be idle.
ONE_THREAD := OPENBLAS_NUM_THREADS=1 POLARS_MAX_THREADS=1
STAMP := $(VENV)/.installed
DEV_STAMP := $(VENV)/.installed-dev

.PHONY: demo install test test-slow suite check lint lock clean

$(VENV)/bin/uv:
	python3 -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --require-hashes -r requirements/uv.txt

$(STAMP): $(VENV)/bin/uv requirements/run.txt pyproject.toml
	$(VENV)/bin/uv pip install --quiet --python $(PY) --compile-bytecode --require-hashes -r requirements/run.txt
	$(VENV)/bin/uv pip install --quiet --python $(PY) --no-deps --no-build-isolation -e .
	touch $@

$(DEV_STAMP): $(STAMP) requirements/dev.txt
	$(VENV)/bin/uv pip install --quiet --python $(PY) --compile-bytecode --require-hashes -r requirements/dev.txt
	touch $@

install: $(STAMP)

demo: $(STAMP)
	$(VENV)/bin/steady demo

test: $(DEV_STAMP)
	$(ONE_THREAD) $(VENV)/bin/pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow"

test-slow: $(DEV_STAMP)
	$(VENV)/bin/pytest -m slow

suite: $(STAMP)
	$(VENV)/bin/steady eval run --seeds 1

lint: $(DEV_STAMP)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

check: lint test

lock: $(VENV)/bin/uv
	$(VENV)/bin/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --no-annotate pyproject.toml requirements/build.in -o requirements/run.txt
	$(VENV)/bin/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --no-annotate --extra dev pyproject.toml requirements/build.in -o requirements/dev.txt
	$(VENV)/bin/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --no-annotate requirements/uv.in -o requirements/uv.txt

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
