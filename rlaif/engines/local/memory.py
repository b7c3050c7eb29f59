"""How many tokens to compute at once, by the memory that there is."""

from __future__ import annotations

from typing import Any

import torch

from rlaif.config.models import ModelSpec
from rlaif.kernels.device import total_memory

CACHE_SHARE = {"cpu": 1 / 8, "cuda": 1 / 2}
"""What part of the memory, on a GPU of what the weights leave, keys and values may take."""
MOST_TOKENS = {"cpu": 16384, "cuda": 1 << 18}
"""Beyond this a batch gets no faster, and a kill loses more of it."""
LEAST_TOKENS = 1024
PASS_TOKENS = {"cpu": 2048, "cuda": 32768}
"""Tokens of one pass that keeps no keys: on a CPU it needs no more to be fast."""


def batch_tokens(spec: ModelSpec, model: Any) -> int:
    """The token budget of a batch that is decoded by a causal language model. `auto` goes by the
    memory that the device has, and not by what is free, so that batches are the same every time."""
    if spec.batch_tokens != "auto":
        return spec.batch_tokens
    device: torch.device = model.device
    memory = total_memory(device)
    if device.type == "cuda":
        memory -= sum(parameter.nbytes for parameter in model.parameters())
    share = CACHE_SHARE.get(device.type, CACHE_SHARE["cpu"]) * memory
    tokens = int(share / token_bytes(model.config.get_text_config(), model.dtype))
    most = MOST_TOKENS.get(device.type, MOST_TOKENS["cpu"])
    return min(most, max(LEAST_TOKENS, 1 << max(0, tokens.bit_length() - 1)))


def pass_tokens(spec: ModelSpec, device: torch.device) -> int:
    """The token budget of one forward pass."""
    most = PASS_TOKENS.get(device.type, PASS_TOKENS["cpu"])
    return most if spec.batch_tokens == "auto" else min(most, spec.batch_tokens)


def token_bytes(config: Any, dtype: torch.dtype) -> int:
    """Bytes of one token's keys and values in all layers."""
    heads = config.num_attention_heads
    groups = getattr(config, "num_key_value_heads", None) or heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    return int(2 * config.num_hidden_layers * groups * width * dtype.itemsize)
