"""People's votes on pairs: the rows of a database that `rlaif annotate` made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from statistics import fmean

from rlaif.core.errors import ConfigError
from rlaif.core.labelled import LabelledPair
from rlaif.data.readers.base import Format, list_of, make_pair, one_answer, turns
from rlaif.data.rows import Row

VALUES: Mapping[str, float] = {"a": 1.0, "b": 0.0, "tie": 0.5}
"""P(a is better) by verdict. `both_bad` and `skip` say nothing of it: they are missing."""


def read_pair(row: Row, place: str) -> Iterator[LabelledPair]:
    """One pair, whose label is the share of people for the first answer, a tie counting for both
    sides; without one where nobody decided. Who is named as its annotator is the one person who
    voted, or how many people did."""
    if row.get("kind") == "rating":
        raise ConfigError(
            f"{place}: a rating of a single answer, and a pair was expected; `load: {{type: "
            "judgements}` reads ratings"
        )
    votes = list_of(row["votes"], "votes", place)
    said = [VALUES[vote["verdict"]] for vote in votes if vote["verdict"] in VALUES]
    names = [vote["annotator"] for vote in votes if vote["verdict"] in VALUES]
    sides = [one_answer(turns(row, key, "assistant", place), key, place) for key in ("a", "b")]
    yield make_pair(
        place,
        turns(row, "prompt", "user", place),
        (sides[0], sides[1]),
        fmean(said) if said else None,
        annotator=names[0] if len(names) == 1 else f"{len(names)} people" if names else None,
        weight=1.0 / row["probability"],
    )


FORMAT = Format(
    about="a votes database of `rlaif annotate`: the share of people for each answer",
    columns=("item_id", "votes", "a", "b"),
    optional=(
        *("kind", "prompt", "prompt_id", "a_id", "b_id", "probability", "tags", "scale"),
        *("gold", "principles"),
    ),
    read=read_pair,
    fits=lambda row: isinstance(row["votes"], list) and "probability" in row,
    left="gold answers, principles, who voted what (`load: {type: pairs}` keeps that)",
)
