# make install | demo | test. The demo and the tests install what they need first; a second install takes no time.
PYTHON ?= python3.11
ALGO ?= ppo
# Where the package index has no CPU build of torch, name PyTorch's: make install TORCH_ARGS="--index-url https://download.pytorch.org/whl/cpu"
TORCH_ARGS ?=
BIN := .venv/bin
# Every package has to have one of the hashes in its lock. The locks name all that is installed, so nothing is resolved here.
LOCKED := install -q --disable-pip-version-check --no-deps --require-hashes
# A worker more than cores, at most 4: tests of servers wait, and those of others go on meanwhile.
WORKERS ?= $(shell cores=$$(getconf _NPROCESSORS_ONLN); echo $$((cores < 3 ? cores + 1 : 4)))
LABELING := $(CURDIR)/.venv-labeling/bin/python

.PHONY: install demo test test-fast test-labeling test-triton lint lock chromium clean

install: .venv/.installed

.venv/.installed: requirements/torch.txt requirements/build.txt requirements/cpu.txt pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) not found: install Python 3.11 or say make PYTHON=python3.12"; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing torch (CPU build) ..."
	@$(BIN)/pip $(LOCKED) $(TORCH_ARGS) -r requirements/torch.txt || { echo "error: no build of torch that requirements/torch.txt locks."; \
	  echo "The index may have no CPU build: make install TORCH_ARGS=\"--index-url https://download.pytorch.org/whl/cpu\""; \
	  echo "Another build, unchecked: $(BIN)/pip install $$(grep -o '^torch==[0-9.]*' requirements/torch.txt), then make install again"; exit 2; }
	@echo "installing the locked environment (about two minutes) ..."
	@$(BIN)/pip $(LOCKED) -r requirements/build.txt
	@$(BIN)/pip $(LOCKED) --no-build-isolation -r requirements/cpu.txt
	@$(BIN)/pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@
	@echo "installed into .venv"

demo: install
	$(BIN)/python pipelines/rlhf.py --config examples/demo.yaml --algo $(ALGO)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo --no-cache

# What takes one core runs beside another such, and then the tests that share all cores.
test: install
	@$(MAKE) --no-print-directory -j2 --output-sync=target lint test-labeling test-triton chromium
	PREFLOOP_LABELING_PYTHON=$(LABELING) $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

# What most changes break: rows, losses, statistics, settings, the loop. No server, no browser, no run of the pipeline.
FAST := base stats objectives config data commands rollouts training
test-fast: install
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m "not slow" --ignore tests/rollouts/test_vllm.py $(addprefix tests/,$(FAST))

test-labeling: .venv-labeling/.installed
	cd labeling && PYTHONPATH=$(CURDIR)/labeling/src $(LABELING) -m pytest

test-triton: .venv/triton
	TRITON_INTERPRET=1 PYTHONPATH=.venv/triton $(BIN)/python -m pytest tests/models/test_triton_kernels.py

# The labeling server has an environment of its own: Argilla's pins fit no trainer's.
.venv-labeling/.installed: labeling/requirements.txt labeling/requirements-test.txt
	@echo "installing the labeling server's environment (about a minute) ..."
	@test -x $(LABELING) || $(PYTHON) -m venv .venv-labeling
	@$(LABELING) -m pip $(LOCKED) -r labeling/requirements.txt -r labeling/requirements-test.txt
	@touch $@

# GPU kernels run on a CPU in Triton's interpreter, in a place of its own: nothing else here should think that there is a GPU compiler.
.venv/triton: .venv/.installed requirements/triton.txt
	@echo "installing triton for the kernel tests ..."
	@$(BIN)/pip $(LOCKED) --target .venv/triton.partial -r requirements/triton.txt
	@rm -rf .venv/triton && mv .venv/triton.partial .venv/triton

# Remake the locks from the *.in files. What is locked stays where it fits; make lock UPGRADE=--upgrade takes the newest.
RESOLVE := $(BIN)/uv pip compile -q --generate-hashes --universal --python-version 3.11 --fork-strategy fewest --custom-compile-command "make lock" $(UPGRADE)
lock: install
	$(RESOLVE) -o requirements/build.txt requirements/build.in
	$(RESOLVE) -o requirements/triton.txt requirements/triton.in
	$(RESOLVE) -o requirements/cpu.txt pyproject.toml requirements/cpu.in --extra bench --extra trackers \
	  --constraints requirements/build.txt --excludes requirements/cpu-excludes.txt --overrides requirements/cpu-overrides.txt
	$(RESOLVE) -o labeling/requirements.txt labeling/requirements.in --overrides labeling/overrides.txt
	$(RESOLVE) -o labeling/requirements-test.txt labeling/requirements-test.in --constraints labeling/requirements.txt

# The report is opened in a real browser; without one (and without the right to install it) those tests are skipped and say so.
chromium:
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null || \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    echo "installing chromium for the browser tests ..."; apt-get update -qq && apt-get install -y -qq chromium >/dev/null; \
	  else echo "no chromium found: the browser tests will be skipped"; fi

clean:
	rm -rf .venv .venv-labeling runs
