"""Label probabilities from the likeliest first tokens that a server names, or why none are read."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

from rlaif.config import ThinkingSpec
from rlaif.engines.thinking import opens, thinks_first

ROUNDING = 1e-3
"""A log-prob may be this far above 0: servers round."""
_SPACES = str.maketrans({"\u0120": " ", "\u2581": " ", "\u010a": "\n"})
"""How tokenizers' vocabularies write a space (byte-level BPE, SentencePiece) and a line break."""
_NUMBERED = re.compile(r"token_id:\d+\Z")


def label_probabilities(
    tops: Sequence[tuple[str, float]],
    labels: Mapping[str, Sequence[str]],
    thinking: ThinkingSpec,
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


def _plain(token: str, known: set[str]) -> str:
    """A token as text, where a server gives it as its vocabulary writes it."""
    return token if token in known else token.translate(_SPACES)
