# One command each: set up, try, test, check.
PYTHON ?= $(firstword $(shell command -v python3.11 python3 2>/dev/null))

VENV := .venv
BIN := $(VENV)/bin
LOCK := requirements/cpu.lock
PIP := PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip install -qq --no-deps
TORCH_INDEX := https://download.pytorch.org/whl/cpu
BUILD_INPUTS := setup.py CMakeLists.txt $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu')
CPP_SOURCES := $(filter csrc/%,$(BUILD_INPUTS)) $(wildcard tests/cuda_emulation/*.h tests/cuda_emulation/*.cpp)
WHEEL := build/wheel
# The versions of torch that a wheel is tried under: ours and the oldest.
TORCHES = $(patsubst torch==%,%,$(call pin,torch)) 2.6.0
# The pin of a package in the lock file, as pip takes it.
pin = $(shell grep '^$(1)==' $(LOCK))

# A Python that is named for `make gpu` brings its torch and stays as it is: what it lacks goes into build/gpu. If none
# is named, it is that of .venv.
GPU_PYTHON = $(if $(filter file,$(origin PYTHON)),$(BIN)/python,$(PYTHON))
GPU_SITE := $(CURDIR)/build/gpu
GPU_RUN = PYTHONPATH=$(GPU_SITE) PATH="$(GPU_SITE)/bin:$$PATH" $(GPU_PYTHON) -P
GPU_PIP = PIP_DISABLE_PIP_VERSION_CHECK=1 $(GPU_RUN) -m pip install -qq --no-deps --upgrade --target $(GPU_SITE)
GPU_TOOLS := setuptools wheel pybind11 cmake ninja pytest pytest-timeout iniconfig pluggy packaging Pygments hypothesis \
	sortedcontainers rich markdown-it-py mdurl matplotlib contourpy cycler fonttools kiwisolver numpy pillow pyparsing \
	python-dateutil six
MISSING := import re, sys; from importlib.metadata import distributions; \
	plain = lambda name: re.sub("[-_.]+", "-", name).lower(); have = {plain(d.name) for d in distributions()}; \
	print(*(pin for pin in sys.argv[1:] if plain(pin.split("==")[0]) not in have))

.DEFAULT_GOAL := help
.PHONY: help setup quickstart smollm2 test bench gpu lint format wheel clean
.DELETE_ON_ERROR:

help: ## Show this list
	@sed -n 's/^\([a-z0-9]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 20

setup: $(VENV)/.built ## Make .venv, install the locked packages, build the kernels

quickstart: setup ## Train a small model with PPO on this machine; ARGS="..." are passed on
	@$(BIN)/python -P tools/quickstart.py $(ARGS)

smollm2: setup ## Train SmolLM2-135M-Instruct with GRPO on this machine; ARGS="..." are passed on
	@$(BIN)/python -P tools/smollm2.py $(ARGS)

test: setup ## Run all tests; ARGS="-k gae" picks some
	@$(BIN)/python -P -m pytest --durations=15 $(ARGS)

bench: setup ## Measure every kernel next to torch and others; writes benchmarks/cpu.json and .png
	@$(BIN)/python -P tools/bench.py --device cpu --shapes real --peers --json benchmarks/cpu.json

# A failing test does not keep the figures back: who has a GPU may have it for a short time only.
gpu: ## Build with CUDA, test and measure on the GPU here; PYTHON=python3 takes a Python that has its own torch
	@$(GPU_PYTHON) -P -c 'import torch; assert torch.cuda.is_available()' 2>/dev/null || \
		{ echo "$(GPU_PYTHON) has no torch that finds a GPU. Name one that has: make gpu PYTHON=/path/to/python3"; exit 1; }
	@missing="$$($(GPU_RUN) -c '$(MISSING)' $(foreach tool,$(GPU_TOOLS),$(call pin,$(tool))))"; test -z "$$missing" || \
		{ echo "gpu: installing $$missing into $(GPU_SITE)"; $(GPU_PIP) $$missing; }
	@echo "gpu: building areal_mega with CUDA kernels into $(GPU_SITE)"
	@AREAL_MEGA_CUDA=1 $(GPU_PIP) --no-build-isolation .
	@name="$$($(GPU_RUN) -c 'import torch; print(torch.cuda.get_device_name().lower().replace(" ", "-"))')"; status=0; \
		$(GPU_RUN) -m pytest -m gpu tests/ops tests/bench $(ARGS) || status=$$?; \
		$(GPU_RUN) tools/bench.py --device cuda --shapes real --peers --json "benchmarks/$$name.json" || status=$$?; \
		exit $$status

lint: setup ## Check style, types, the direction of imports and the C++ format
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/clang-format --dry-run -Werror $(CPP_SOURCES)

format: setup ## Format Python and C++, and fix what can be fixed
	@$(BIN)/ruff check --fix --quiet
	@$(BIN)/ruff format
	@$(BIN)/clang-format -i $(CPP_SOURCES)

# auditwheel leaves libgomp out: the OpenMP runtime is torch's, and one of our own would be a second.
wheel: $(VENV)/.wheel ## Build a wheel into dist/, audited and tried under two versions of torch; AREAL_MEGA_CUDA=1 adds CUDA
	@rm -rf $(WHEEL) && mkdir -p dist
	@echo "wheel: building"
	@$(BIN)/python -m pip wheel -qq --no-deps --no-build-isolation --wheel-dir $(WHEEL) .
	@PATH="$(CURDIR)/$(BIN):$$PATH" auditwheel repair --exclude libgomp.so.1 --wheel-dir $(WHEEL)/audited $(WHEEL)/*.whl
	@$(BIN)/python -P tests/wheels/empty_environment.py $(WHEEL)/audited/*.whl $(TORCHES) --torch-index $(TORCH_INDEX)
	@mv -v $(WHEEL)/audited/*.whl dist/

clean: ## Remove .venv and everything that was built
	@rm -rf $(VENV) build dist *.egg-info areal_mega/_C.*.so

$(BIN)/python:
	@echo "setup: making $(VENV)"
	@test -n "$(PYTHON)" || { echo "No python3 found. Install Python 3.11, or name one: make setup PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || \
		{ echo "$(PYTHON) is $$($(PYTHON) -V 2>&1), but the pinned packages are for Python 3.11. Name one: make setup PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
		{ rm -rf $(VENV); echo "$(PYTHON) cannot make virtual environments. On Debian and Ubuntu: apt install python3.11-venv"; exit 1; }

# torch comes from the CPU index; where that is out of reach, from wherever pip is set up to look.
$(VENV)/.locked: $(LOCK) | $(BIN)/python
	@echo "setup: installing torch (CPU)"
	@$(PIP) --retries 1 --timeout 20 --index-url $(TORCH_INDEX) $(call pin,torch) 2>/dev/null || $(PIP) $(call pin,torch)
	@echo "setup: installing the packages of $(LOCK)"
	@$(PIP) $(call pin,setuptools) $(call pin,wheel)
	@$(PIP) --no-build-isolation -r $(LOCK)
	@$(BIN)/python -c 'import torch' || \
		{ echo "torch does not load: is it a CUDA build? The CPU build: pip install --index-url $(TORCH_INDEX) $(call pin,torch)"; exit 1; }
	@touch $@

$(VENV)/.wheel: requirements/wheel.txt $(VENV)/.built
	@$(PIP) -r $<
	@touch $@

$(VENV)/.built: $(BUILD_INPUTS) | $(VENV)/.locked
	@echo "setup: building areal_mega._C"
	@command -v "$${CXX:-c++}" >/dev/null || \
		{ echo "No C++ compiler found. On Debian and Ubuntu: apt install g++; or name one: make setup CXX=/path/to/clang++"; exit 1; }
	@$(PIP) --no-build-isolation --editable .
	@touch $@
	@echo "setup: done"
