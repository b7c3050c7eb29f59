"""Tiny models for the experiments of the sweep."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any


def write_models(folder: Path) -> None:
    """Two small policies, `tiny` and `small`, and two reward models, `rewards` and `rivals`."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

    from tests.conftest import make_tokenizer

    tokenizer = make_tokenizer()
    shape: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "initializer_range": 0.3,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    for seed, name in enumerate(("tiny", "small", "rewards", "rivals")):
        torch.manual_seed(seed)
        if name in ("tiny", "small"):
            module: Any = LlamaForCausalLM(LlamaConfig(**shape))
        else:
            module = LlamaForSequenceClassification(LlamaConfig(**shape, num_labels=1))
        module.to(torch.bfloat16).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    shutil.copytree(folder / "tiny", folder / "strict")
    stern = "messages[0]['role'] == 'system' and 'kind' in messages[0]['content']"
    refusal = f"{{% if {stern} %}}{{{{ raise_exception('No') }}}}{{% endif %}}"
    (folder / "strict" / "chat_template.jinja").write_text(refusal + tokenizer.chat_template)
