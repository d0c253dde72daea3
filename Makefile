# What CI runs is `make test`. Everything works from a fresh clone with Python 3.11 or newer.

PYTHON ?= $(firstword $(foreach p,python3.11 python3.12 python3.13 python3,$(shell command -v $(p))))
BIN := .venv/bin
# Two workers share two cores: one thread each.
QUIET_THREADS := OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1
PYTEST := $(QUIET_THREADS) $(BIN)/pytest -q -n 2 --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help venv lock audit sbom release demo check test test-all format bench native sanitize docs clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

venv: .venv/installed ## make .venv with the pinned packages of requirements.lock

.venv/installed: requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "error: no Python found; install Python 3.11 or newer"; exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and f"error: Python {v.major}.{v.minor} is too old, edgesparse needs 3.11 or newer; make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv .venv
	@# torch alone and first: with it there, nothing below asks the index for another build of it.
	$(BIN)/pip install --disable-pip-version-check -q "$$(grep '^torch==' requirements.lock)"
	@# The others exactly as they were when they were locked: pip refuses a file of another hash.
	@grep -v '^torch==' requirements.lock > .venv/hashed.lock
	$(BIN)/pip install --disable-pip-version-check -q --no-deps --require-hashes -r .venv/hashed.lock
	$(BIN)/pip install --disable-pip-version-check -q --no-deps --no-build-isolation -e .
	@touch $@

# uv, which writes locks, and what looks at them, in an environment of their own.
TOOLS := build/tools
$(TOOLS)/installed: requirements-tools.lock
	$(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/pip install --disable-pip-version-check -q --no-deps --require-hashes -r $<
	@touch $@

lock: $(TOOLS)/installed ## write requirements.lock, with hashes, from what .venv holds
	@$(BIN)/pip freeze --all --exclude-editable | sed 's/+cpu$$//' > build/frozen.txt
	@grep -v '^torch==' build/frozen.txt > build/others.txt
	@$(TOOLS)/bin/uv pip compile -q --no-deps --generate-hashes --no-header --no-annotate \
		--python-version 3.11.9 -o build/others.lock build/others.txt
	@{ sed -n '/^#/p' requirements.lock; grep '^torch==' build/frozen.txt; cat build/others.lock; } > build/whole.lock
	@mv build/whole.lock requirements.lock

# make audit ADVISORIES=DIR asks a checkout of github.com/pypa/advisory-database, without a network.
ADVISORIES ?=

ifdef ADVISORIES
audit: venv ## look up known vulnerabilities of every package of .venv
	$(BIN)/python bench/advisories.py $(ADVISORIES)
else
audit: venv $(TOOLS)/installed
	$(TOOLS)/bin/pip-audit --strict --progress-spinner off --path $$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
endif

sbom: venv $(TOOLS)/installed ## write dist/: bill of materials (CycloneDX) and licences of every package
	@mkdir -p dist
	$(TOOLS)/bin/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible \
		--of JSON -o dist/edgesparse.cdx.json $(BIN)/python
	$(TOOLS)/bin/pip-licenses --python=$(BIN)/python --order=license --with-urls \
		--format=markdown --output-file=dist/licences.md

release: sbom ## write dist/: wheel, source archive, bill of materials, licences
	$(BIN)/python -m hatchling build -d dist

demo: venv ## compress the bundled model to a budget, export it twice, prove both files
	$(BIN)/edgesparse demo

format: venv ## format and fix what can be fixed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

check: venv ## format, lint, types, import rules: a minute
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: check ## everything CI runs
	$(PYTEST)

test-all: check ## the slow tests too
	$(PYTEST) -m "not gpu and not mac"

# make bench MODEL=… CALIBRATION=… VALIDATION=… measures another model; ROWS is a regular expression.
MODEL ?= examples/models/classics-4m
CALIBRATION ?= examples/data/calibration.txt
VALIDATION ?= examples/data/validation.txt
ROWS ?= gptq$$

# PARTS is a regular expression over the parts of kernels/bench/table.py, '' is all of them, GGML its
# peer llama.cpp (kernels/bench/README.md).
PARTS ?= (1024x1024 cached|4096x4096 streamed) batch 1 threads 1
GGML ?=

bench: venv ## the speed of packed products on this machine, and what each method costs a model
	$(BIN)/python kernels/bench/table.py --only '$(PARTS)' $(if $(GGML),--ggml $(GGML))
	$(BIN)/python bench/accuracy.py $(MODEL) --calibration $(CALIBRATION) \
		--validation $(VALIDATION) --rows '$(ROWS)' --output out/bench.json
	$(BIN)/python bench/accuracy_table.py out/bench.json

native: venv ## build the C++ kernels, and the ExecuTorch operators over them for this machine
	cmake -S kernels/native -B build/native -DCMAKE_BUILD_TYPE=Release
	cmake --build build/native --parallel 2
	$(BIN)/python -m edgesparse_converters.executorch.native

docs: venv ## the documents as a site: build/site/docs/site/index.html
	$(BIN)/sphinx-build -q -W --keep-going -b html -c docs/site . build/site

sanitize: venv ## the C++ kernels under the address and undefined behaviour sanitizers, hostile bytes too
	EDGESPARSE_SANITIZE=1 $(BIN)/pytest -q kernels/tests/test_native.py -k "not aarch64"

clean: ## remove what was built; keep .venv
	rm -rf build dist out .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
