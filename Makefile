# make demo    build the shipped model, check it against PyTorch, ask it about an image
# make test    the whole test suite (no GPU); installs a tritonserver and, on Debian, Chromium and what libr1v needs first
# make lint    ruff, mypy, import-linter
# make runtime an environment that answers and serves, without torch and the rest of the compiler, in .venv-runtime

PYTHON ?= python3
PRECISION ?= fp8
BUNDLE ?= out/demo
IMAGE ?= examples/images/06-count.png
QUESTION ?= How many objects do you see?
# Processes of the tests; each may take 1.5 GB. They work on one thread each, so that they do not get in each other's way.
# One more than there are CPUs, because the server's soak (tests/serve/test_soak.py) mostly sleeps; four CPUs at most.
WORKERS ?= $(shell $(PYTHON) -c "import os; print(1 + min(4, os.cpu_count() or 1))")
SOAK_SECONDS ?= 300

VENV := .venv
BIN := $(VENV)/bin
RUNTIME := .venv-runtime
INSTALLED := $(VENV)/.installed
TRITON := .venv-triton

# Nothing is compiled when it is installed, which is half of the work of installing it: Python writes the bytecode of what it
# imports, also where the caller forbids it, else each of the hundreds of processes of the tests would compile anew.
unexport PYTHONDONTWRITEBYTECODE
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check --no-compile

.PHONY: demo test environments lint format lock browser engines runtime clean

demo: $(INSTALLED)
	$(BIN)/r1v-export build --precision $(PRECISION) -o $(BUNDLE)
	$(BIN)/r1v-export check $(BUNDLE)
	$(BIN)/r1v-export run $(BUNDLE) --image $(IMAGE) "$(QUESTION)"
	@echo "serve it to OpenAI clients, and to people at http://localhost:8000: $(BIN)/r1v-export serve $(BUNDLE)"

test:
	@$(MAKE) --no-print-directory -j3 environments
	R1V_SOAK_SECONDS=$(SOAK_SECONDS) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(TESTS)

# What the tests need, side by side.
environments: $(INSTALLED) $(TRITON)/.installed browser engines

# The browser of the page's tests. Where it cannot be installed they are skipped, and say so.
browser:
	@command -v chromium > /dev/null || { apt-get update -qq && apt-get install -qq -y --no-install-recommends chromium > /dev/null; } || true

# What builds libr1v, whose tests build and run it. apt works for one at a time.
engines: browser
	engines/install_debian.sh

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The environment: the lock, then the package itself, editable. Remade when either file changes.
$(INSTALLED): requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python $(PIP_INSTALL) -r requirements.lock
	$(BIN)/python $(PIP_INSTALL) --no-deps --no-build-isolation -e .
	touch $@

# A real tritonserver with its Python backend's packages; the package is taken from here.
$(TRITON)/.installed: requirements-triton.lock
	test -x $(TRITON)/bin/python || $(PYTHON) -m venv $(TRITON)
	$(TRITON)/bin/python $(PIP_INSTALL) --no-deps -r requirements-triton.lock
	$(TRITON)/bin/python -c "import pathlib, sysconfig; \
	  pathlib.Path(sysconfig.get_path('purelib'), 'r1v-export.pth').write_text('$(CURDIR)')"
	touch $@

# In the versions of the lock. The old build folder may hold modules that are gone.
runtime:
	test -x $(RUNTIME)/bin/python || $(PYTHON) -m venv $(RUNTIME)
	rm -rf build
	$(RUNTIME)/bin/python -m pip install --quiet --disable-pip-version-check -c requirements.lock ".[onnxruntime,serve]"

lock:
	{ echo "# The exact environment of \`make demo\` and \`make test\`; written by \`make lock\`."; \
	  $(BIN)/python -m pip freeze --all --exclude-editable \
	  | sed -e '/^onnxruntime-genai==/d' -e '/^pip==/d' -e 's/^torch==\([0-9.]*\).*/torch==\1/'; } > requirements.lock.new
	mv requirements.lock.new requirements.lock

clean:
	rm -rf out build *.egg-info .pytest_cache .mypy_cache .ruff_cache
