"""Label probabilities from the likeliest first tokens that a server names, or why none are read."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

from rlaif.core.thinking import Declared, opens

ADVICE = (
    "turn its thinking off (by the chat template's own switch, such as `chat_template_kwargs: "
    "{enable_thinking: false}`, which a server takes in `extra_body`), or let it think and write "
    "its verdict (`verdict: written`, or `expected: false`)"
)
"""What helps where label probabilities are read and the model thinks first."""

THINKS = f"the chat template opens the model's thinking, where no label stands: {ADVICE}"

MOST_OPENING = 0.5
"""More probability than this on a marker that opens thinking is no answer with a label."""

ROUNDING = 1e-3
"""A log-prob may be this far above 0: servers round."""
MOST_MASS = 1.05
"""More probability than this on all labels together is more than rounding."""
_SPACES = str.maketrans({"\u0120": " ", "\u2581": " ", "\u010a": "\n"})
"""How tokenizers' vocabularies write a space (byte-level BPE, SentencePiece) and a line break."""
_NUMBERED = re.compile(r"token_id:\d+\Z")


def label_probabilities(
    tops: Sequence[tuple[str, float]],
    labels: Mapping[str, Sequence[str]],
    thinking: Declared,
) -> dict[str, float] | str:
    """The probability of each label, summed over its surface forms, from the tokens with their
    natural log-probs; or why they are no verdict."""
    wrong = next((p for _, p in tops if not p <= ROUNDING), None)
    if wrong is not None:
        return (
            f"the server gives {wrong:.6g} as a log-prob, which is at most 0: these are no "
            "log-probs (probabilities under that name?), so no label can be read"
        )
    known = {form for forms in labels.values() for form in forms}
    read = [(_plain(token, known), math.exp(min(0.0, p))) for token, p in tops]
    probs = {
        label: math.fsum(p for token, p in read if token in forms)
        for label, forms in labels.items()
    }
    mass = math.fsum(probs.values())
    if mass > MOST_MASS:
        return (
            f"the labels' log-probs add up to a probability of {mass:.3g}: these are no log-probs, "
            "so no label can be read"
        )
    why = thinks_first(math.fsum(p for token, p in read if opens(token, thinking)), mass)
    if why is not None:
        return why
    numbered = next((token for token, _ in read if _NUMBERED.match(token)), None)
    if numbered is not None and not mass:
        return (
            f"the server names tokens by their ids ({numbered}), among which no label can be "
            "found: start it without --return-tokens-as-token-ids"
        )
    return probs


def thinks_first(found: float, labels: float) -> str | None:
    """Why label probabilities are no verdict where `found` is the probability of beginning to think
    and `labels` that of all labels; None where they are one."""
    if found < MOST_OPENING or labels > found:
        return None
    return (
        f"the model thinks before it answers (a marker that opens thinking has probability "
        f"{found:.3g}, all labels together {labels:.2g}): {ADVICE}"
    )


def _plain(token: str, known: set[str]) -> str:
    """A token as text, where a server gives it as its vocabulary writes it."""
    return token if token in known else token.translate(_SPACES)
