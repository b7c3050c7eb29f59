"""A tiny random Llama with a byte-level tokenizer and a chat template, and preferences for it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rlaif.core.records import Preference

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
def make_model(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Callable[[int], Path]:
    """seed -> folder of a bf16 checkpoint; one folder per seed."""
    from transformers import LlamaConfig, LlamaForCausalLM

    made: dict[int, Path] = {}

    def build(seed: int) -> Path:
        if seed not in made:
            torch.manual_seed(seed)
            config = LlamaConfig(
                vocab_size=len(tokenizer),
                hidden_size=32,
                intermediate_size=48,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=256,
                initializer_range=0.2,
                tie_word_embeddings=True,
                bos_token_id=None,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
            folder = tmp_path_factory.mktemp("tiny") / f"seed{seed}"
            LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
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
