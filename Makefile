# SPDX-License-Identifier: Apache-2.0
#
# make demo    from a fresh clone to a real model, quantized and compared
# make test    the same, with every test

PYTHON ?= python3
VENV ?= .venv
# A pip constraints file, e.g. to pin torch; PIP_CONSTRAINT in the environment does as well.
CONSTRAINTS ?=
DEMO_ARGS ?=
PYTEST_ARGS ?=
BENCH_ARGS ?=

# As the `dev` extra names them.
linters := $(shell sed -n 's/.*"\(ruff==[^"]*\)".*"\(clang-format==[^"]*\)".*/\1 \2/p' pyproject.toml)

bin := $(VENV)/bin
bootstrap := $(PYTHON) tools/bootstrap.py --venv $(VENV) $(if $(CONSTRAINTS),--constraints $(CONSTRAINTS))
cpp_sources = $(wildcard csrc/*/*.h csrc/*/*.cuh csrc/*/*.cpp csrc/*/*.cu \
                         tests/cpp/*.h tests/cpp/*.cuh tests/cpp/*.cpp tests/cpp/*.cu)

.PHONY: help demo test bench doctor resources wheel lint format linters clean
.DEFAULT_GOAL := help

help:  ## what there is to make
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo:  ## quantize a real model in every scheme and compare (DEMO_ARGS="--model ...")
	$(bootstrap) demo
	$(bin)/python -m qutlass demo $(DEMO_ARGS)

test:  ## build for 8.0 and 8.6 where there is nvcc, and run the C++ and Python tests
	$(bootstrap) test
	$(bin)/ctest --test-dir build/test -L cpu --output-on-failure --no-tests=error
	@if nvidia-smi -L >/dev/null 2>&1; then \
	  $(bin)/ctest --test-dir build/test -L gpu --output-on-failure; fi
	$(bin)/python -m pytest $(PYTEST_ARGS)

bench:  ## time every product on the GPU of this machine (BENCH_ARGS="--preset targets")
	$(bootstrap) demo
	$(bin)/python -m qutlass bench $(BENCH_ARGS)

doctor:  ## what is installed, what runs where, what is missing
	$(bin)/python -m qutlass doctor

resources:  ## registers, spills, shared memory and instructions of the kernels `make test` built
	$(bin)/python tools/check_resources.py build/test

wheel:  ## sdist and wheel in dist/
	$(bin)/python -m pip install -q build
	$(bin)/python -m build

lint: linters  ## ruff and clang-format, checking only
	$(bin)/ruff check .
	$(bin)/ruff format --check .
	$(bin)/clang-format --dry-run -Werror $(cpp_sources)

format: linters  ## ruff and clang-format, writing
	$(bin)/ruff check --fix .
	$(bin)/ruff format .
	$(bin)/clang-format -i $(cpp_sources)

linters: | $(bin)/python
	@$(bin)/python -m pip install -q $(linters)

$(bin)/python:
	$(PYTHON) -m venv $(VENV)

clean:  ## everything that was built; the virtual environment stays
	rm -rf build dist python/*.egg-info python/qutlass/libqutlass.so .pytest_cache .ruff_cache
