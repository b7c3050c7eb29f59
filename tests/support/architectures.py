"""Tiny random models of the architectures that training claims to know, and examples for them."""

from __future__ import annotations

import torch

CPU = torch.device("cpu")
SMALL = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
    "head_dim": 8,
    "pad_token_id": 0,
}
SLIDING = {
    "sliding_window": 4,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}
ALIKE = [
    ([1, 2, 3, 4], [[7, 8, 9, 10, 11], [12, 13]]),
    ([1, 2, 3, 5, 6, 7, 8], [[23, 24, 25], [31], [32, 33, 34]]),
    ([1, 2, 3, 4], [[41, 42], [43]]),
]
EXAMPLES = [
    ([1, 2, 3, 4, 5, 6], [[7, 8, 9, 10, 11], [12, 13]]),
    ([20, 21, 22], [[23, 24, 25, 26, 27, 28, 29, 30], [31], [32, 33, 34]]),
    ([40], [[41, 42], [43]]),
]
ARCHITECTURES = {
    "llama": ("LlamaConfig", {}),
    "llama_tied": ("LlamaConfig", {"tie_word_embeddings": True, "mlp_bias": True}),
    "qwen2": ("Qwen2Config", {}),
    "qwen2_sliding": ("Qwen2Config", {"use_sliding_window": True, **SLIDING}),
    "qwen3": ("Qwen3Config", {}),
    "gemma2": ("Gemma2Config", {**SLIDING, "query_pre_attn_scalar": 8}),
    "gemma3": ("Gemma3TextConfig", {**SLIDING, "query_pre_attn_scalar": 8}),
    "mistral": ("MistralConfig", {"sliding_window": None}),
    "mistral_window": ("MistralConfig", {"sliding_window": 4}),
}


def build(name, seed=0):
    import transformers

    kind, options = ARCHITECTURES[name]
    config = getattr(transformers, kind)(**{**SMALL, **options})
    config._attn_implementation = "eager" if "gemma2" in name else "sdpa"
    torch.manual_seed(seed)
    return transformers.AutoModelForCausalLM.from_config(
        config, attn_implementation=config._attn_implementation
    ).eval()
