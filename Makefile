# make example: install the reading part and read the photographs in examples/ (make demo is the same; mien demo is a page in the browser)
# make test: install what the tests need as well, and run them
# make quick: the tests of the parts that everything stands on, in less than a minute
# make docs: the documentation as a site, in site/index.html; it asks nothing of the network. Its search wants a server:
#   python3 -m http.server --directory site
# make web: put together the static page that reads faces in the visitor's own browser, in web/dist (needs npm)
# make train-default: train the default model anew, on two cores in about three and a half hours; run it again after a cut. DATA is a folder
#   with fer2013.csv and fer2013new.csv, or a parquet of them; IDENTITY is mobilefacenet.pt of foamliu/MobileFaceNet; TRAIN is
#   options of every run, on a processor without bf16 TRAIN="--trainer.precision 32-true"; DEFAULT is where the model goes
# make release: a source archive and a wheel in dist/, checked, from what is committed
# make campaign: the plan for a better default model, on one GPU, in parts; recipes/campaign.mk says how
PYTHON ?= python3
DATA ?= data/fer2013plus/train_validation.parquet
IDENTITY ?= weights/mobilefacenet.pt
PIP := .venv/bin/python -m pip --disable-pip-version-check --quiet
TORCH := $(shell grep '^torch==' constraints.txt)

DEFAULT ?= src/mien/models/mobilefacenet_ferplus
LAST := runs/mobilefacenet_ferplus_3/best.safetensors

QUICK := $(addprefix tests/test_,outputs.py output_measures.py targets.py files.py checkpoint_header.py classifier.py reader.py track.py)

# What is imported is compiled once, also where the environment asks Python to write no byte code: the tests start many processes.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: example demo test lint suite quick docs web release train-default clean

example: .venv/reading
	.venv/bin/mien read examples --annotate out/example

demo: example

test: .venv/testing
	$(MAKE) -j 2 lint suite

lint: .venv/testing
	.venv/bin/ruff check .
	.venv/bin/lint-imports
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 .venv/bin/pyright --pythonpath .venv/bin/python

suite: .venv/testing
	env -u MAKEFLAGS -u MFLAGS -u MAKELEVEL OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n 2 --dist worksteal

quick: .venv/testing
	.venv/bin/ruff check .
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n 2 -q $(QUICK)

docs: .venv/reading
	$(PIP) install -c constraints.txt -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 .venv/bin/python -m mkdocs build --quiet

web: .venv/reading
	$(PIP) install -c constraints.txt onnx
	.venv/bin/python web/build.py

release: .venv/testing
	$(PIP) install -c constraints.txt build twine
	rm -rf build/release dist && mkdir -p build/release && git archive HEAD | tar -x -C build/release
	.venv/bin/python -m build --outdir dist build/release
	.venv/bin/twine check --strict dist/*
	.venv/bin/python tools/check_release.py dist

train-default: .venv/testing weights/mobilefacenet.safetensors
	for phase in "" _2 _3; do \
		.venv/bin/mien train recipes/mobilefacenet_ferplus$$phase.yaml --data.path $(DATA) $(TRAIN) || exit; done
	.venv/bin/mien calibrate $(LAST) --data $(DATA) --split validation
	.venv/bin/mien export $(DEFAULT) --model $(LAST) --calibrate $(DATA) --measure $(DATA)
	.venv/bin/mien eval $(DEFAULT) --data $(DATA) --split validation --precision fp32 --out out/default
	cp out/default/calibration.png $(DEFAULT)

weights/mobilefacenet.safetensors: | .venv/testing
	.venv/bin/mien convert mobilefacenet $(IDENTITY) $@

include recipes/campaign.mk

clean:
	rm -rf .venv out build dist site web/dist web/node_modules

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "mien needs Python 3.11 or newer and $(PYTHON) is not: make PYTHON=/path/to/python3.11 ..." >&2; exit 1; }
	$(PYTHON) -m venv .venv

.venv/reading: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) install -c constraints.txt -e .
	@touch $@

# The CPU build of torch first: the one on PyPI brings gigabytes of CUDA packages that no test uses.
.venv/testing: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) install --no-compile -c constraints.txt --no-deps $(TORCH)+cpu 2>/dev/null || \
		$(PIP) install --no-compile -c constraints.txt --no-deps $(TORCH) --index-url https://download.pytorch.org/whl/cpu
	$(PIP) install --no-compile -c constraints.txt -e '.[test]'
	@touch $@ .venv/reading
