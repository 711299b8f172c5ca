# make install   .venv with the pinned requirements and this package (some 7 GB)
# make quick     install, then lint, types and the tests that start no server and take no time
# make test      install, then lint, types and all tests that need only what pip installs
# make test-system   install, then the tests that need programs from elsewhere
# make fuzz      install, then damaged inputs for hours; FUZZ="--seed 1 --start 20000" goes on from there
# make demo      install, then a tour of the service with the bundled checkpoint
# make serve     install, then the service with the default checkpoint, on port 8000
# make image-check   install, then build the container image of a Bento and check it in containers: with Docker,
#                or with OCI=FOLDER, whose build.sh and run.sh do what an engine would
# make wheels    install, then both distributions, florence2-server and florence2-client, as wheels in dist/
# make docs      install, then the documentation in build/docs; a broken link or name is an error
# make lock      requirements.lock and requirements-serve.lock anew from pyproject.toml
# make clean     remove what these commands made

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
PYTEST := $(BIN)/python -m pytest --numprocesses logical --maxprocesses 8 --dist loadscope --no-loadscope-reorder
PIP_OPTIONS := --quiet --no-compile  # Python compiles what is imported; all of it takes 45 s and 0.5 GB
LOCK_VENV := build/lock-venv
unexport PYTHONDONTWRITEBYTECODE  # a test starts many processes: each would compile all modules again
# florence2-client is this project's own: left out of the lock.
COMPILE := $(LOCK_VENV)/bin/uv pip compile --quiet --generate-hashes --no-header --index-strategy unsafe-best-match \
	--no-emit-package florence2-client --find-links build/lock-wheels --constraints build/held.txt
EXTRAS := demo evaluate parquet supervision load test docs dev image
HELD := torch==2.14.1 torchvision==0.29.1

.PHONY: install fuzz quick test test-system lint types pytest demo serve wheels docs image-check lock clean

install: $(INSTALLED)

$(INSTALLED): requirements.lock pyproject.toml deploy/client/pyproject.toml
	@echo "installing some 7 GB into $(VENV), most of it PyTorch with CUDA; it takes minutes"
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "Python 3.11 or later is needed")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $(PIP_OPTIONS) --require-hashes --requirement requirements.lock
	$(BIN)/python -m pip install $(PIP_OPTIONS) --no-deps --no-build-isolation --editable . --editable ./deploy/client
	touch $@

fuzz: install
	$(BIN)/python tests/fuzz.py $(FUZZ)

quick: lint types
	$(PYTEST) -m "not slow and not system and not gpu and not weights and not image"

test: lint types pytest

test-system: install
	$(BIN)/python -m pytest -m system

lint: install
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: install
	$(BIN)/mypy

pytest: install
	$(PYTEST)

demo: install
	$(BIN)/python benchmarks/tour.py

serve: install
	$(BIN)/bentoml serve service:service

wheels: install
	rm -rf dist
	$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist . ./deploy/client

docs: install
	$(BIN)/mkdocs build --strict --site-dir build/docs

image-check: install
	OCI="$(OCI)" $(BIN)/python -m pytest -m image -o log_cli=true -o log_cli_level=INFO tests/test_image.py

# The lock holds versions and hashes, no index: pip takes the files from where it is told to (uv reads UV_DEFAULT_INDEX
# and UV_INDEX). Pins stay as they are unless pyproject.toml asks for others; `make lock UPGRADE=--upgrade` renews them
# all. PyTorch is held at the release that the tests' numbers were made with. The client is built here, for uv to read
# what it needs.
lock:
	$(PYTHON) -m venv $(LOCK_VENV)
	$(LOCK_VENV)/bin/python -m pip install --quiet uv
	$(LOCK_VENV)/bin/python -m pip wheel --quiet --no-deps --wheel-dir build/lock-wheels ./deploy/client
	printf '%s\n' $(HELD) > build/held.txt
	$(COMPILE) $(UPGRADE) $(EXTRAS:%=--extra %) --output-file requirements.lock pyproject.toml
	cp requirements.lock requirements-serve.lock  # the same versions, without the packages that serving needs not
	$(COMPILE) --extra image --output-file requirements-serve.lock pyproject.toml
	for client in tests/clients/*/requirements.in; do \
		$(COMPILE) $(UPGRADE) --output-file $${client%.in}.lock $$client; done
	sed -i '/^$$/,$$d' requirements.lock requirements-serve.lock  # a warning that florence2-client is not in them

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
