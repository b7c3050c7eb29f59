"""Labelled pairs: what is swapped with the answers."""

from __future__ import annotations

from dataclasses import replace

from rlaif.core.labelled import LabelledPair
from rlaif.core.records import Completion, make_prompt

PROMPT = make_prompt([{"role": "user", "content": "Name a red fruit."}])


def test_swapping_the_answers_swaps_all_that_is_said_of_them() -> None:
    first, second = (
        Completion(name, PROMPT.prompt_id, n, [], "m", "w", {}, "stop")
        for n, name in enumerate("ab")
    )
    pair = LabelledPair(
        "l", PROMPT, first, second, 0.75, authors=("one", "two"), scores=(5.0, 2.0), margin=1.0
    )
    turned = pair.swap()
    assert (turned.first, turned.second, turned.label) == (second, first, 0.25)
    assert (turned.authors, turned.scores) == (("two", "one"), (2.0, 5.0))
    assert turned.margin == 1.0 and turned.swap() == pair
    bare = replace(pair, label=None, authors=None, scores=None).swap()
    assert (bare.label, bare.authors, bare.scores) == (None, None, None)
