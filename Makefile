# Every target sets up what it needs from nothing: a virtual environment in .venv, made by uv.

UV := $(shell command -v uv || echo .uv/bin/uv)
BIN := .venv/bin
READY := .venv/.ready
# Two single-threaded processes are faster on two cores than one process with two threads. Each takes tests in file order,
# so that fixtures are set up once.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal

THREADED := $(addprefix tests/unit/,bulk/test_extraction.py wrappers/test_extractor.py wrappers/test_chain.py bridges/test_norm_maps.py bridges/test_timm_training.py)

# If bytecode is not written, every subprocess compiles all of its imports again, which takes seconds.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-threads sweep durations bridges trained check format lint types docs wheel bench clean constraints

demo: $(READY)
	$(BIN)/python examples/demo.py

test: $(READY)
	$(PYTEST) -m "not sweep and not slow and not bridges"

# extraction, wrappers and bridges, with four threads per operation
test-threads: $(READY)
	OMP_NUM_THREADS=4 $(BIN)/pytest -m "not sweep and not slow and not bridges" $(THREADED)

sweep: $(READY)
	$(PYTEST) -m "sweep or slow"

# after many changes of tests, on an idle machine: writes tests/slow_tests.txt
durations: $(READY)
	$(PYTEST) -m "not sweep and not bridges" --junitxml build/durations.xml
	$(BIN)/python tests/support/slow_tests.py build/durations.xml

bridges: $(READY)
	$(PYTEST) -m bridges

# networks with trained weights, which make test runs too
trained: $(READY)
	$(PYTEST) -m trained

check: format lint types test

format: $(READY)
	$(BIN)/ruff format .

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo

types: $(READY)
	$(BIN)/pyright

docs: $(READY)
	$(BIN)/mkdocs build -q --strict -d build/docs

# what is published, in dist/
wheel: $(UV)
	$(UV) build -q --wheel -o dist .

# writes docs/performance.md
bench: $(READY)
	$(BIN)/python benchmarks/report.py

clean:
	rm -rf .venv .uv demo build dist .pytest_cache .ruff_cache

# after a change of pyproject.toml: the versions that every fresh machine gets
constraints: $(UV)
	$(UV) pip compile -q --universal --no-header --no-annotate --no-emit-index-url --all-extras --group dev pyproject.toml -o constraints.txt

$(READY): pyproject.toml constraints.txt | $(UV)
	test -x $(BIN)/python || $(UV) venv -q --python ">=3.11" .venv
	$(UV) pip install -q --python $(BIN)/python -c constraints.txt --group dev -e ".[all]"
	$(UV) pip install -q --python $(BIN)/python --no-deps --group trained
	touch $@

.uv/bin/uv:
	python3 -m pip install -q --disable-pip-version-check --root-user-action=ignore --target .uv uv
