"""A small config that computes as a large one does: few layers of every kind, the same heads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

WINDOW = 8
"""The window and chunk of the copy: shorter than the probe, so that a lost window shows."""
MOST_LAYERS = 4


def shrink(config: Any) -> None:
    """Make a config small in place: few layers of every kind, a short vocabulary and window, narrow
    feed-forward parts. Heads and their sizes stay."""
    text = config.get_text_config()
    nested: list[Any] = [value for value in vars(config).values() if hasattr(value, "to_dict")]
    for other in nested:
        if other is not text and getattr(other, "num_hidden_layers", None):
            other.num_hidden_layers = 1
    layers = int(text.num_hidden_layers)
    by_layer = {
        name: value
        for name, value in vars(text).items()
        if isinstance(value, list | tuple) and len(value) == layers > 1
    }
    reuses = _reusing(text, layers)
    kept = _kept_layers(layers, [*by_layer.values(), *([reuses] if any(reuses) else [])])
    text.num_hidden_layers = len(kept)
    if any(reuses):
        text.num_kv_shared_layers = sum(reuses[i] for i in kept)
    for name, value in by_layer.items():
        setattr(text, name, [value[i] for i in kept])
    for name, value in list(vars(text).items()):
        if not isinstance(value, int) or isinstance(value, bool):
            continue
        if name.startswith("vocab_size"):
            setattr(text, name, min(value, 512))
        elif name in ("sliding_window", "attention_chunk_size"):
            setattr(text, name, min(value, WINDOW))
        elif name.endswith("intermediate_size"):
            setattr(text, name, min(value, 128))
        elif name == "first_k_dense_replace":
            setattr(text, name, min(value, 1))
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        if getattr(text, name, None) is not None:
            setattr(text, name, 0)


def _reusing(text: Any, layers: int) -> list[bool]:
    """Of each layer whether it uses the keys of an earlier one: in some models the last ones do."""
    first = layers - int(getattr(text, "num_kv_shared_layers", None) or 0)
    return [index >= first for index in range(layers)]


def _kept_layers(layers: int, lists: Sequence[Sequence[Any]]) -> list[int]:
    """Which layers a copy has: the first of each kind, two at least."""
    seen: dict[str, int] = {}
    for index in range(layers):
        seen.setdefault(str([values[index] for values in lists]), index)
    kept = sorted(seen.values())[:MOST_LAYERS]
    more = [i for i in range(layers) if i not in kept]
    least = 2 if lists or layers <= 2 else MOST_LAYERS
    return sorted([*kept, *more[: max(0, min(least, layers) - len(kept))]])
