"""verl's rows: a prompt and what a reward needs. The chosen answer is the `ground_truth`, and the
rejected one lies in `extra_info`."""

from __future__ import annotations

from collections.abc import Iterator

from rlaif.core.errors import ConfigError
from rlaif.core.labelled import LabelledPair
from rlaif.data.readers.base import (
    Format,
    chosen_first,
    make_pair,
    name_of,
    refuse_equal,
    text_of,
    turns,
)
from rlaif.data.rows import Row
from rlaif.data.turns import brief

UNNAMED = "preferences"
"""The `data_source` of a pair without a subset: verl needs a name to choose the reward by."""


def read_pair(row: Row, place: str) -> Iterator[LabelledPair]:
    """The pair in a row; `first` is the chosen answer."""
    reward, extra = row.get("reward_model"), row.get("extra_info")
    if not isinstance(reward, dict) or not isinstance(extra, dict) or "rejected" not in extra:
        raise ConfigError(
            f"{place}: reward_model is {brief(reward)} and extra_info {brief(extra)}; a pair needs "
            "reward_model.ground_truth and extra_info.rejected"
        )
    answers = (text_of(reward, "ground_truth", place), text_of(extra, "rejected", place))
    source = name_of(row, "data_source", place)
    yield make_pair(
        place,
        turns(row, "prompt", "user", place),
        refuse_equal(*answers, place),
        1.0,
        subset=None if source == UNNAMED else source,
    )


def write_pair(pair: LabelledPair) -> Row:
    """`style: model`: no program can check the answer, a model has to reward it."""
    chosen, rejected = chosen_first(pair)
    return {
        "data_source": pair.subset or UNNAMED,
        "prompt": [dict(turn) for turn in pair.prompt.messages],
        "ability": "chat",
        "reward_model": {"style": "model", "ground_truth": chosen.text},
        "extra_info": {"index": pair.pair_id, "rejected": rejected.text},
    }


FORMAT = Format(
    about="verl: data_source, prompt, reward_model with the chosen answer, extra_info",
    columns=("data_source", "prompt", "reward_model", "extra_info"),
    optional=("ability",),
    read=read_pair,
    write=write_pair,
)
