"""PPE's correctness sets: K responses to a prompt, and pairs of which one is right."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rlaif.core.errors import ConfigError
from rlaif.core.labelled import LabelledPair
from rlaif.data.readers.base import (
    Format,
    label_higher,
    make_pair,
    name_of,
    text_of,
    try_read,
    user,
)
from rlaif.data.rows import Row
from rlaif.data.turns import brief


def read_pair(row: Row, place: str) -> Iterator[LabelledPair | ConfigError]:
    """Each of the `sampled_conflict_pairs`: two responses of which one is right."""
    pairs, scores = row.get("sampled_conflict_pairs"), row.get("scores")
    if not isinstance(pairs, list) or not isinstance(scores, list):
        raise ConfigError(
            f"{place}: sampled_conflict_pairs is {brief(pairs)} and scores {brief(scores)}; lists "
            "were expected"
        )
    for both in pairs:
        yield try_read(_read_conflict, row, both, scores, place)


def _read_conflict(row: Row, both: Any, scores: list[Any], place: str) -> LabelledPair:
    fits = isinstance(both, list) and len(both) == 2 and all(isinstance(i, int) for i in both)
    if not fits or not all(0 <= i < len(scores) for i in both):
        raise ConfigError(
            f"{place}: a pair is {brief(both)}; two places below {len(scores)} were expected"
        )
    first, second = (float(scores[i]) for i in both)
    author = name_of(row, "model_name", place)
    return make_pair(
        place,
        user(text_of(row, "prompt", place)),
        (
            text_of(row, f"response_{both[0] + 1}", place),
            text_of(row, f"response_{both[1] + 1}", place),
        ),
        label_higher(first, second),
        authors=(author, author),
        annotator_kind="rule",
    )


FORMAT = Format(
    about="PPE correctness: prompt, response_1 to response_K, scores, sampled_conflict_pairs",
    columns=("prompt", "response_1", "scores", "sampled_conflict_pairs"),
    optional=("response_*", "model_name"),
    read=read_pair,
)
