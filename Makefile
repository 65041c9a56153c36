# Two commands for a fresh machine with Python, git and make:
#   make demo   install and run the built-in scenario `demo`
#   make test   install and run every check and test (what CI runs)
# and for those who change things:  make check, make docs, make mutants, make clean
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
EXTRAS := dev,ray,flower,quantize,docs

# Test processes. Each has one thread: more of them would only wait for each other.
JOBS   ?= 2

.PHONY: demo test check docs mutants clean

demo: $(VENV)/.demo
	$(BIN)/airtune run demo --out runs/demo --replace

test: check
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder

check: $(VENV)/.test
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# torch first and alone: left to the dependency resolver, a CUDA build of several GB comes in.
$(VENV)/.torch: constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0
	touch $@

$(VENV)/.demo: $(VENV)/.torch pyproject.toml
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[demo]'
	touch $@

$(VENV)/.test: $(VENV)/.torch pyproject.toml
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]'
	touch $@ $(VENV)/.demo

# Two pages are generated, and tests compare them with the code: the commands' own help and the
# scenario's keys. Then the site, with every warning an error, into build/site.
docs: $(VENV)/.test
	$(BIN)/typer airtune.cli utils docs --name airtune --output docs/cli.md
	$(BIN)/python docs/scenario_keys.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# Mutation tests of the code that joins the rooms: hours on two cores, so not in CI. Parts of it:
#   make mutants MUTANTS='merging bills --sample 80'
MUTANTS :=
mutants: $(VENV)/.test
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[mutants]'
	OMP_NUM_THREADS=1 nice -n 5 $(BIN)/python benchmarks/mutants.py $(MUTANTS)

clean:
	rm -rf $(VENV) build .pytest_cache .mypy_cache .ruff_cache
