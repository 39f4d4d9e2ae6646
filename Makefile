# make demo: install the reading part and read the photographs in examples/
# make test: install what the tests need as well, and run them
PYTHON ?= python3
PIP := .venv/bin/python -m pip --disable-pip-version-check --quiet
TORCH := $(shell grep '^torch==' constraints.txt)

.PHONY: demo test clean

demo: .venv/reading
	.venv/bin/mien read examples --annotate out/demo

test: .venv/testing
	.venv/bin/ruff check .
	.venv/bin/lint-imports
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n 2

clean:
	rm -rf .venv out build dist

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "mien needs Python 3.11 or newer and $(PYTHON) is not: make PYTHON=/path/to/python3.11 ..." >&2; exit 1; }
	$(PYTHON) -m venv .venv

.venv/reading: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) install -c constraints.txt -e .
	@touch $@

# The CPU build of torch first: the one on PyPI brings gigabytes of CUDA packages that no test uses.
.venv/testing: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) install -c constraints.txt --no-deps $(TORCH)+cpu 2>/dev/null || \
		$(PIP) install -c constraints.txt --no-deps $(TORCH) --index-url https://download.pytorch.org/whl/cpu
	$(PIP) install -c constraints.txt -e '.[test]'
	@touch $@ .venv/reading
