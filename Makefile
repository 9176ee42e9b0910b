# Two commands do everything on a bare machine with Python 3.11 or newer, in this checkout's own .venv:
#   make demo   train a style on U1-nano, draw with and without it, and show it all on a page
#   make test   all tests, lint and format check
# Windows: the same steps for PowerShell stand in README.md.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: demo test clean

demo: $(READY)
	$(BIN)/python -m tools.demo

test: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest

# Installed again only when what is asked for has changed. The pinned torch comes with the first install, so that pip
# never fetches another one. An older transformers lies beside the newest: the tokenizer is compared with both.
$(READY): pyproject.toml constraints.txt tests/text/transformers-4.57.1.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test,demo]"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target .venv/transformers-4.57.1 \
		-r tests/text/transformers-4.57.1.txt
	touch $@

clean:
	rm -rf .venv demo build dist *.egg-info .pytest_cache .ruff_cache
