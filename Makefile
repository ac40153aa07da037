# Two commands on a fresh clone: `make demo` and `make test`. Each installs what it needs into .venv; `make paper` needs
# LaTeX too.

VENV := .venv
RUN := $(VENV)/bin/python

SCALE := smoke
MINUTES := 20
WORKERS := 1

.PHONY: demo test lint studies torture paper install clean

demo: $(VENV)/.installed
	$(VENV)/bin/forgetting demo

test: $(VENV)/.installed lint
	HF_HUB_OFFLINE=1 $(RUN) -m pytest -n 2 --dist worksteal

lint: $(VENV)/.installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(RUN) -m mypy

studies: $(VENV)/.installed
	HF_HUB_OFFLINE=1 $(VENV)/bin/forgetting study run --all --scale $(SCALE) --workers $(WORKERS)

torture: $(VENV)/.installed
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(RUN) -m experiments.torture --minutes $(MINUTES)

install: $(VENV)/.installed

paper: $(VENV)/.installed
	$(MAKE) -C paper

# The first of these interpreters that runs and is supported (3.11 or 3.12) makes the environment.
$(VENV)/.installed: pyproject.toml constraints.txt
	@for python in $(PYTHON) python3 python3.12 python3.11; do \
	  if $$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; then \
	    test -x $(RUN) || $$python -m venv $(VENV) || exit 1; break; \
	  fi; \
	done; \
	test -x $(RUN) || { echo "error: needs Python 3.11 or 3.12 with venv; name one: make PYTHON=/path/to/python3.12" >&2; exit 2; }
	@echo "Installing into $(VENV), some minutes: PyTorch alone is about 3 GB"
	$(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) demo build paper/build paper/generated paper/forgetting.pdf *.egg-info .mypy_cache .ruff_cache .pytest_cache
