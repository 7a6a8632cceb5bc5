# Two commands for a newcomer: `make demo` and `make test`. Each sets up all it needs in .venv.
# Needs Python >= 3.10 with venv, and a C/C++ compiler (llama-cpp-python is compiled on this machine).

PYTHON ?= python3
BIN := .venv/bin
SOURCES := $(shell git ls-files '*.py' '*.c' '*.h' pyproject.toml constraints.txt 2>/dev/null)
MODEL := examples/nano-nb-7m
PIP = CMAKE_ARGS="$$($(PYTHON) runtime/build_flags.py)" $(BIN)/pip install --quiet

.PHONY: demo test lint sanitize fuzz docs clean
demo: .venv/installed
	@mkdir -p demo
	$(BIN)/borealis-gguf quantize Q4_K_M Q8_0 -m $(MODEL) -o demo
	$(BIN)/borealis-gguf modelfile demo/nano-nb-7m-Q8_0.gguf -o demo/Modelfile
	$(BIN)/borealis-gguf run demo/nano-nb-7m-Q8_0.gguf "Skriv om Norge." --seed 2

test: .venv/dev
	$(BIN)/python -m pytest

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

sanitize: .venv/dev
	$(BIN)/python -m tests.quantize.sanitize_kernels

# Every reader of files on mutated ones; the tests run a minute of it
SECONDS ?= 60
fuzz: .venv/dev
	$(BIN)/python -m tests.fuzz --seconds $(SECONDS)

# Writes what docs/ shows of benchmarks/records
docs:
	$(PYTHON) -m benchmarks.write_docs

# The package alone, as users install it.
.venv/installed: $(SOURCES)
	@echo "Setting up .venv: the first time this compiles llama.cpp and our encoders, 5 to 7 minutes on two cores."
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(PIP) .
	@touch $@

# And what the tests and linters use: the extra of the package that is installed already.
.venv/dev: .venv/installed
	@echo "Installing the tools of the tests and linters into .venv."
	@$(PIP) -c constraints.txt "borealis-gguf[dev]"
	@touch $@

clean:
	rm -rf .venv build demo *.egg-info
