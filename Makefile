# Two commands from a fresh clone: `make example` and `make test`.
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin

.PHONY: example examples test lint clean

example: $(VENV)/.ready
	$(BIN)/python examples/ms1m.py

examples: $(VENV)/.ready
	for file in examples/[a-z]*.py; do $(BIN)/python $$file || exit 1; done

test: $(VENV)/.ready
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/mypy

# torch comes first and alone, so that no other package chooses its build.
$(VENV)/.ready: setup.cfg pyproject.toml tests/constraints.txt Makefile
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "torch_sdt needs Python 3.11 or newer: make PYTHON=..."; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--constraint tests/constraints.txt --editable ".[full,dev]"
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info out
