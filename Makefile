# Two commands for a newcomer: `make demo` and `make test`. Each sets up all it needs in .venv.
# Needs Python >= 3.10 with venv, and a C/C++ compiler (llama-cpp-python is built on this machine, about 5 minutes).

PYTHON ?= python3
BIN := .venv/bin
SOURCES := $(shell git ls-files '*.py' '*.c' '*.h' pyproject.toml 2>/dev/null)
MODEL := examples/nano-nb-7m

.PHONY: demo test lint sanitize clean
demo: .venv/installed
	@mkdir -p demo
	$(BIN)/borealis-gguf quantize Q4_K_M Q8_0 -m $(MODEL) -o demo
	$(BIN)/borealis-gguf modelfile demo/nano-nb-7m-Q8_0.gguf -o demo/Modelfile
	$(BIN)/borealis-gguf run demo/nano-nb-7m-Q8_0.gguf "Skriv om Norge." --seed 2

test: .venv/installed
	$(BIN)/python -m pytest

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

.venv/installed: $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	CMAKE_ARGS="$$($(PYTHON) runtime/build_flags.py)" $(BIN)/pip install --quiet ".[dev]"
	@touch $@

sanitize: .venv/installed
	$(BIN)/python -m tests.quantize.sanitize_kernels

clean:
	rm -rf .venv build demo *.egg-info
