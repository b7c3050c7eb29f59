"""What each format writes of one pair whose second answer is the better one: every part under its
column and on its side; and what is read of the formats that are made for it."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import pytest

from rlaif.core.labelled import LabelledPair
from rlaif.core.records import content_hash
from rlaif.data.convert import written
from rlaif.data.readers import FORMATS
from rlaif.data.readers.base import make_pair, user
from rlaif.data.readers.icai import wrap_rows

PAIR = make_pair(
    "f:7",
    user("Name a fruit."),
    ("No.", "A plum."),
    0.0,
    subset="food",
    authors=("x", "y"),
    annotator="ann",
    annotator_kind="ai",
    scores=(1.0, 4.0),
    margin=2.5,
)
ASKED = {"role": "user", "content": "Name a fruit."}
BETTER = {"role": "assistant", "content": "A plum."}
WORSE = {"role": "assistant", "content": "No."}
BY = content_hash("ann", "ai", length=8)
HASH = hashlib.sha256(b"Name a fruit.").hexdigest()
PKU = {
    "prompt": "Name a fruit.",
    "response_0": "No.",
    "response_1": "A plum.",
    "prompt_source": "food",
    "response_0_source": "x",
    "response_1_source": "y",
}
BINARISED = {
    "prompt": "Name a fruit.",
    "prompt_id": HASH,
    "chosen": [ASKED, BETTER],
    "rejected": [ASKED, WORSE],
}
WRITTEN: dict[str, dict[str, Any]] = {
    "autoj": {
        "scenario": "food",
        "label": 1,
        "prompt": "Name a fruit.",
        "response 1": "No.",
        "response 2": "A plum.",
    },
    "alpaca_eval": {
        "instruction": "Name a fruit.",
        "dataset": "food",
        "output_1": "No.",
        "generator_1": "x",
        "output_2": "A plum.",
        "generator_2": "y",
        "annotator": "ann",
        "preference": 2.0,
    },
    "pku": PKU | {"better_response_id": 1},
    "pku_safer": PKU | {"safer_response_id": 1},
    "icai": {
        "id": PAIR.pair_id,
        "prompt": "Name a fruit.",
        "response_a": {"text": "No.", "model": "x"},
        "response_b": {"text": "A plum.", "model": "y"},
        "annotations": {BY: {"pref": "b"}},
        "metadata": {"subset": "food"},
        "document": {"annotators": {BY: {"name": "ann", "description": "", "type": "ai"}}},
    },
    "argilla": {
        "prompt": "Name a fruit.",
        "response1": "No.",
        "response2": "A plum.",
        "preference.responses": [],
        "preference.responses.users": [],
        "preference.responses.status": [],
        "preference.suggestion": "response2",
        "preference.suggestion.agent": "ann",
    },
    "ultrafeedback_binarized": BINARISED
    | {"messages": [ASKED, BETTER], "score_chosen": 4.0, "score_rejected": 1.0},
    "distilabel": BINARISED
    | {"chosen_model": "y", "chosen_rating": 4.0, "rejected_model": "x", "rejected_rating": 1.0},
    "verl": {
        "data_source": "food",
        "prompt": [ASKED],
        "ability": "chat",
        "reward_model": {"style": "model", "ground_truth": "A plum."},
        "extra_info": {"index": PAIR.pair_id, "rejected": "No."},
    },
    "llama_factory": {
        "conversations": [{"from": "human", "value": "Name a fruit."}],
        "chosen": {"from": "gpt", "value": "A plum."},
        "rejected": {"from": "gpt", "value": "No."},
        "system": "",
    },
    "openrlhf": {"chosen": [ASKED, BETTER], "rejected": [ASKED, WORSE], "margin": 2.5},
    "rewardbench": {
        "id": PAIR.pair_id,
        "prompt": "Name a fruit.",
        "chosen": "A plum.",
        "chosen_model": "y",
        "rejected": "No.",
        "rejected_model": "x",
        "subset": "food",
    },
    "hh": {
        "chosen": "\n\nHuman: Name a fruit.\n\nAssistant: A plum.",
        "rejected": "\n\nHuman: Name a fruit.\n\nAssistant: No.",
    },
    "trl": {
        "prompt": [ASKED],
        "chosen": [BETTER],
        "rejected": [WORSE],
        "score_chosen": 4.0,
        "score_rejected": 1.0,
        "margin": 2.5,
    },
}
# What a format has no place for.
LOST = {
    "autoj": "authors annotator scores margin",
    "alpaca_eval": "scores margin",
    "pku": "annotator scores margin",
    "pku_safer": "annotator scores margin",
    "icai": "scores margin",
    "argilla": "subset authors scores margin",
    "ultrafeedback_binarized": "subset authors annotator margin",
    "distilabel": "subset annotator margin",
    "verl": "authors annotator scores margin",
    "llama_factory": "subset authors annotator scores margin",
    "openrlhf": "subset authors annotator scores",
    "rewardbench": "annotator scores margin",
    "hh": "subset authors annotator scores margin",
    "trl": "subset authors annotator",
}


def test_every_format_that_is_written_is_here() -> None:
    assert WRITTEN.keys() == {n for n, f in FORMATS.items() if f.write is not None} == LOST.keys()


@pytest.mark.parametrize("name", WRITTEN)
def test_a_pair_is_written_and_read_with_everything_on_its_side(name: str) -> None:
    row, back = written(PAIR, FORMATS[name], name)
    assert row == WRITTEN[name]
    lost = LOST[name].split()
    if (back.first.text, back.second.text) == ("A plum.", "No."):
        back = back.swap()
    assert (back.first.text, back.second.text, back.label) == ("No.", "A plum.", 0.0)
    for part in ("subset", "authors", "annotator", "scores", "margin"):
        kept = getattr(PAIR, part)
        assert getattr(back, part) == (None if part in lost else kept), part
    assert back.prompt == PAIR.prompt and back.place == "f:7"


def test_whole_documents_keep_every_annotator_of_a_comparison() -> None:
    """Two people on one pair, and one of them on another."""
    write = FORMATS["icai"].write
    assert write is not None
    other = make_pair("f:8", user("And a root?"), ("A beet.", "No."), None, annotator="bob")
    pairs: list[LabelledPair] = [PAIR, replace(PAIR, annotator="bob", label=0.5), other]
    found = wrap_rows([write(pair) for pair in pairs])
    assert [c["id"] for c in found["comparisons"]] == [PAIR.pair_id, other.pair_id]
    assert [len(c["annotations"]) for c in found["comparisons"]] == [2, 1]
    assert {a["name"] for a in found["annotators"].values()} == {"ann", "bob"}
    assert found["metadata"]["default_annotator"] is None and found["metadata"]["version"]
    said = [list(c["annotations"].values()) for c in found["comparisons"]]
    assert said[0] == [{"pref": "b"}, {"pref": None, "no_pref_reason": "tie"}]
    assert said[1][0]["no_pref_reason"] not in (None, "tie")
    alone = wrap_rows([write(PAIR)])
    assert alone["metadata"]["default_annotator"] == BY
