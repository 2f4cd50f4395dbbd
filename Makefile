# Every target sets up what it needs, so each works on a fresh clone. CI runs these same targets (.ci/run).
# `make serve` installs the service's dependencies only: no torch.
PYTHON ?= python3
VENV   ?= .venv
PORT   ?= 8000
HOST   ?= 127.0.0.1

VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# One thread for each library in each test process: more of them fight over the cores.
ONE_THREAD := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1
# Two test processes, or as many as are asked for: `make test JOBS=8`, `make test JOBS=0` for one process that can be debugged.
JOBS ?= 2

# ONNX Runtime would otherwise report usage to its maker.
export ORT_DISABLE_TELEMETRY ?= 1

.DEFAULT_GOAL := help
.PHONY: help serve test fuzz check audit format bench bench-race bench-bound bench-overload bench-gpu bench-failover bench-scaling bench-ray bench-hotswap bench-fairness bench-styles bench-translation train export docker test-docker test-promtool gpu-env test-gpu test-ray clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

# --- set-up: a stamp under $(VENV) tells what is installed, and the files above it when that is out of date ------------

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Ganymede needs Python 3.11 or newer; $(PYTHON) is older. Name another one: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "On Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }

$(VENV)/.serve: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) install --quiet -c constraints.txt -e .
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) install --quiet -c constraints.txt -e '.[training,dev]'
	@touch $@ $(VENV)/.serve

# --- serving ----------------------------------------------------------------------------------------------------------

serve: $(VENV)/.serve ## serve models/ over HTTP [PORT=8000] [HOST=127.0.0.1]
	$(BIN)/python -m service serve --models models --host $(HOST) --port $(PORT)

# --- checks -----------------------------------------------------------------------------------------------------------

test: $(VENV)/.dev ## run the tests [JOBS=2] [ARGS="-k name"]
	$(ONE_THREAD) $(BIN)/python -m pytest -n $(JOBS) $(ARGS)

fuzz: $(VENV)/.dev ## the long random searches, beyond the short ones in `make test`
	$(ONE_THREAD) $(BIN)/python -m pytest -m fuzz -n $(JOBS) $(ARGS)

test-promtool: $(VENV)/.dev ## hold scrapes, alert rules and every dashboard's queries against a real Prometheus
	@for program in promtool prometheus haproxy; do command -v $$program >/dev/null || \
	  { echo "$$program is missing. On Debian and Ubuntu: apt-get install prometheus haproxy" >&2; exit 1; }; done
	$(ONE_THREAD) $(BIN)/python -m pytest -m promtool -v tests/service tests/deploy tests/benchmarks

check: $(VENV)/.dev ## ruff, mypy and the import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Which database: pypi, osv or esms.
AUDIT_SERVICE ?= pypi
AUDIT := $(BIN)/pip-audit --vulnerability-service $(AUDIT_SERVICE) --no-deps --disable-pip --progress-spinner off

# First a release that has known vulnerabilities: a database that tells of none cannot clear the others.
audit: $(VENV)/.dev ## hold the pinned versions against the known vulnerabilities [AUDIT_SERVICE=pypi|osv|esms]; needs that database's network
	@echo pillow==9.0.0 | $(AUDIT) --requirement /dev/stdin --format json 2>/dev/null | grep -q '"vulns": \[{' || \
	  { echo "Nothing was audited: the vulnerability database '$(AUDIT_SERVICE)' cannot be reached, or does not know what is wrong with pillow 9.0.0." >&2; exit 1; }
	$(AUDIT) --requirement constraints.txt --strict

format: $(VENV)/.dev ## rewrite the code as ruff wants it
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.dev ## measure the server beside its bound [SECONDS=5]; stop everything else first
	PYTHONPATH=. $(BIN)/python benchmarks/server.py --models models --seconds $(or $(SECONDS),5) --append benchmarks/RESULTS.md

bench-race: $(VENV)/.dev ## race the server against its peers on the same models [SECONDS=1] [ROUNDS=2]; stop everything else first
	PYTHONPATH=. $(BIN)/python benchmarks/race.py --models models --seconds $(or $(SECONDS),1) --rounds $(or $(ROUNDS),2) --append benchmarks/RESULTS.md

bench-bound: $(VENV)/.dev ## measure the server beside bare loops and a null route, and batching on against off [SECONDS=1.5] [ROUNDS=3]
	PYTHONPATH=. $(BIN)/python benchmarks/bound.py --models models --seconds $(or $(SECONDS),1.5) --rounds $(or $(ROUNDS),3) --append benchmarks/RESULTS.md

bench-overload: $(VENV)/.dev ## three times the load that a server can bear, and what it does to it [SECONDS=20]; stop everything else first
	PYTHONPATH=. $(BIN)/python benchmarks/overload.py --seconds $(or $(SECONDS),20) --append benchmarks/RESULTS.md

bench-hotswap: $(VENV)/.dev ## swap a model again and again under load [SWAPS=200]; stop everything else first
	PYTHONPATH=. $(BIN)/python benchmarks/hotswap.py --swaps $(or $(SWAPS),200) --append benchmarks/RESULTS.md

bench-translation: $(VENV)/.dev ## our Pix2Pix and CycleGAN beside the authors' code, in PEER=a checkout of it [MINUTES=6]
	for job in pix2pix cycle_gan; do PYTHONPATH=. $(BIN)/python benchmarks/translation.py $$job --peer $(PEER) --minutes $(or $(MINUTES),6) --append benchmarks/RESULTS.md; done

bench-fairness: $(VENV)/.dev ## one client at ten times its share, and what the others feel [SECONDS=10]; stop everything else first
	PYTHONPATH=. $(BIN)/python benchmarks/fairness.py --seconds $(or $(SECONDS),10) --append benchmarks/RESULTS.md

bench-codec: $(VENV)/.dev ## measure the PNG writer beside Pillow's; photographs from `python -m training data landscapes`
	PYTHONPATH=. $(ONE_THREAD) $(BIN)/python benchmarks/codec.py --models models --append benchmarks/RESULTS.md

bench-styles: $(VENV)/.dev ## a StyleGAN through HTTP beside a bare loop, and an animation's frames [SECONDS=3]
	PYTHONPATH=. $(BIN)/python benchmarks/styles.py --seconds $(or $(SECONDS),3) --append benchmarks/RESULTS.md

bench-versions: $(VENV)/.dev ## OLD= and NEW= version of a model that should draw the same, by turns
	PYTHONPATH=. $(BIN)/python benchmarks/versions.py $(OLD) $(NEW) --append benchmarks/RESULTS.md

bench-gpu: $(VENV)/.dev ## pixels, the seed promise, speed, memory and the server on a GPU [PROVIDER=cuda] [SECONDS=40]
	PYTHONPATH=. $(BIN)/python benchmarks/gpu.py --models models --provider $(or $(PROVIDER),cuda) --seconds $(or $(SECONDS),40) --limit 180

bench-failover: $(VENV)/.dev ## lose replicas behind HAProxy, each way so many times [ROUNDS=50] [REPLICAS="2 3"]
	PYTHONPATH=. $(BIN)/python benchmarks/failover.py --models models --rounds $(or $(ROUNDS),50) --replicas $(or $(REPLICAS),2 3) --append benchmarks/RESULTS.md

bench-scaling: $(VENV)/.dev ## one replica and two, each held to 0.7 of a core [SECONDS=5]; needs root and cgroups; stop everything else first
	PYTHONPATH=. $(BIN)/python benchmarks/scaling.py --models models --seconds $(or $(SECONDS),5) --append benchmarks/RESULTS.md

bench-soak: $(VENV)/.dev ## mixed load with faults injected [MINUTES=30]; stop everything else first
	PYTHONPATH=. $(BIN)/python benchmarks/soak.py --models models --minutes $(or $(MINUTES),30) --append benchmarks/RESULTS.md

# --- training ---------------------------------------------------------------------------------------------------------

train: $(VENV)/.dev ## train a model: MODEL=fashion-28 FAMILY=cgan DATA=fashion-mnist [ARGS=...]
	$(BIN)/python -m training train --family $(FAMILY) --data $(DATA) --run runs/$(MODEL) $(ARGS)

export: $(VENV)/.dev ## export runs/MODEL into models/: MODEL=fashion-28 [ARGS=...]
	$(BIN)/python -m training export --run runs/$(MODEL) --name $(MODEL) $(ARGS)

# --- containers -------------------------------------------------------------------------------------------------------

docker: ## build the serving image [ONNXRUNTIME='onnxruntime-gpu[cuda,cudnn]']
	docker build --build-arg 'ONNXRUNTIME=$(or $(ONNXRUNTIME),onnxruntime)' -t ganymede:$(VERSION) .

test-docker: $(VENV)/.dev ## build, start and try the composed service (needs a Docker engine)
	tests/docker/base-images
	$(BIN)/python -m pytest -m docker -v -s tests/docker

# --- a GPU provider without a GPU ---------------------------------------------------------------------------------------

# ONNX Runtime's WebGPU build is the same Python module as the usual one: it needs an environment of its own.
GPU_VENV ?= .venv-gpu
# The software device that tests/gpu/device installs; set the variable to another driver's file to run on real hardware.
VK_DRIVER_FILES ?= /usr/lib/chromium/vk_swiftshader_icd.json

$(GPU_VENV)/.gpu: pyproject.toml constraints.txt tests/gpu/requirements.py
	@$(PYTHON) -m venv $(GPU_VENV)
	@grep -v '^onnxruntime' constraints.txt > $(GPU_VENV)/constraints.txt
	@$(GPU_VENV)/bin/python tests/gpu/requirements.py > $(GPU_VENV)/requirements.txt
	$(GPU_VENV)/bin/python -m pip --disable-pip-version-check install --quiet -c $(GPU_VENV)/constraints.txt -r $(GPU_VENV)/requirements.txt
	@touch $@

gpu-env: $(GPU_VENV)/.gpu ## set up the environment of `make test-gpu`

test-gpu: $(GPU_VENV)/.gpu ## run the engine and one server on a GPU provider, over a software device where there is no GPU
	tests/gpu/device
	folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && \
	  $(ONE_THREAD) XDG_RUNTIME_DIR=$$folder VK_DRIVER_FILES=$(VK_DRIVER_FILES) VK_ICD_FILENAMES=$(VK_DRIVER_FILES) \
	  $(GPU_VENV)/bin/python -m pytest -m gpu -v tests/gpu

# --- a cluster ----------------------------------------------------------------------------------------------------------

# Ray brings some fifty packages of its own: it, too, gets an environment for itself.
RAY_VENV ?= .venv-ray

$(RAY_VENV)/.ray: pyproject.toml constraints.txt benchmarks/peers/ray.txt
	@$(PYTHON) -m venv $(RAY_VENV)
	$(RAY_VENV)/bin/python -m pip --disable-pip-version-check install --quiet -c constraints.txt -e . "$$(grep '^ray==' benchmarks/peers/ray.txt | sed 's/==/[serve]==/')" httpx hypothesis onnx pytest pytest-asyncio
	@touch $@

test-ray: $(RAY_VENV)/.ray ## serve and draw in bulk on two Ray nodes of this machine, one of which is killed
	$(ONE_THREAD) RAY_USAGE_STATS_ENABLED=0 $(RAY_VENV)/bin/python -m pytest -m ray -v -s tests/cluster

bench-ray: $(VENV)/.dev $(RAY_VENV)/.ray ## one and two replicas behind Ray Serve beside the plain server [SECONDS=3] [ROUNDS=2]; stop everything else first
	PYTHONPATH=. $(BIN)/python benchmarks/cluster.py --models models --ray $(RAY_VENV) --seconds $(or $(SECONDS),3) --rounds $(or $(ROUNDS),2) --append benchmarks/RESULTS.md

clean: ## remove the environment and every cache
	rm -rf $(VENV) $(GPU_VENV) $(RAY_VENV) .venv-peers .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
