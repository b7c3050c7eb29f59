"""What a model can take, by its config: how many positions, and which token ids."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len")
RECURRENT = frozenset(
    {"inkling_text", "inkling2_text", "jamba", "kimi_linear", "nemotron_h", "rwkv", "zamba"}
)
"""Models whose number of positions is that of their training, and no size of a table."""


@dataclass(frozen=True, slots=True)
class Limits:
    """`positions`: how long a sequence may be, None where the config does not say. `table`: more
    have no entry in the model; else the model computes on, where it was not trained (RoPE).
    `vocabulary`: how many token ids have an embedding."""

    positions: int | None = None
    table: bool = False
    vocabulary: int | None = None

    def unknown(self, ids: Iterable[int]) -> int | None:
        """The highest token id, where it has no embedding; None where each has one."""
        if self.vocabulary is None:
            return None
        highest = max(ids, default=-1)
        return highest if highest >= self.vocabulary else None


NO_LIMITS = Limits()


def limits_of(config: Any) -> Limits:
    """The limits of a model by its transformers config."""
    text = config.get_text_config()
    found = (getattr(text, name, None) for name in POSITIONS)
    positions = next((n for n in found if isinstance(n, int) and n > 0), None)
    relative = any(key.startswith("rope") for key in text.to_dict())
    table = positions is not None and not relative and text.model_type not in RECURRENT
    return Limits(positions, table, getattr(text, "vocab_size", None))


def no_embedding(token: int, text: str, limits: Limits) -> str:
    """Why a token id cannot be used, and what to do."""
    return (
        f"the tokenizer gives {text!r} the id {token}, and the model has {limits.vocabulary} "
        "embeddings. Take the tokenizer that belongs to the model, or enlarge its embeddings first "
        "(transformers' `resize_token_embeddings`)"
    )
