"""Near-duplicates and overlaps, against the definitions computed in full."""

from __future__ import annotations

import random

import numpy as np
import pytest

from rlaif.constitution import textstats as ts
from rlaif.data.near import (
    PERMUTATIONS,
    eval_items,
    minhash_signatures,
    near_duplicates,
    ngram_hashes,
    rows_per_band,
    word_hashes,
)

WORDS = [f"word{i}" for i in range(400)]


def text_of(rng: random.Random, count: int = 60) -> str:
    return " ".join(rng.choices(WORDS, k=count))


def edited(text: str, changes: int, rng: random.Random) -> str:
    words = text.split()
    for place in rng.sample(range(len(words)), changes):
        words[place] = f"changed{rng.random()}"
    return " ".join(words)


def jaccard(one: str, two: str, n: int) -> float:
    """The definition, over tuples of words and no hash."""
    sets = []
    for text in (one, two):
        words = [w.casefold() for w in ts.words(text)]
        sets.append({tuple(words[i : i + n]) for i in range(max(1, len(words) - n + 1))})
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def test_signatures_estimate_the_jaccard_similarity() -> None:
    rng = random.Random(3)
    errors = []
    for changes in range(0, 40, 2):
        one = text_of(rng)
        two = edited(one, changes, rng)
        ((first, second),) = minhash_signatures([one, two], 3)
        errors.append(float((first == second).mean()) - jaccard(one, two, 3))
    # The standard error of one estimate is at most 0.5 / sqrt(128) = 0.044.
    assert max(map(abs, errors)) < 4 * 0.5 / np.sqrt(PERMUTATIONS)
    assert abs(float(np.mean(errors))) < 0.03


def test_planted_near_duplicates_are_found_and_nothing_else() -> None:
    rng = random.Random(5)
    texts = [text_of(rng) for _ in range(300)]
    copies = [edited(texts[i], 1, rng) for i in range(0, 300, 10)]
    found = near_duplicates([*texts, *copies], threshold=0.8)
    assert found == {300 + k: 10 * k for k in range(30)}


@pytest.mark.parametrize("threshold", [0.3, 0.4, 1.0])
@pytest.mark.parametrize("words", [6, 300])
def test_each_text_is_compared_to_every_kept_one_that_shares_a_band(
    words: int, threshold: float
) -> None:
    rng = random.Random(0)
    texts = [" ".join(rng.choices(WORDS[:words], k=rng.randrange(30))) for _ in range(250)]
    texts += [edited(t, rng.randrange(len(t.split()) // 2 + 1), rng) for t in texts[:100] if t]
    signatures = np.concatenate(list(minhash_signatures(texts, 2)))
    rows = rows_per_band(threshold)
    bands = signatures[:, : PERMUTATIONS // rows * rows].reshape(len(texts), -1, rows)
    kept: list[int] = []
    wanted = {}
    for place, own in enumerate(bands):
        near = [k for k in kept if (bands[k] == own).all(axis=1).any()]
        alike = [float((signatures[k] == signatures[place]).mean()) for k in near]
        if alike and max(alike) >= threshold:
            wanted[place] = near[alike.index(max(alike))]
        else:
            kept.append(place)
    assert len(wanted) > 3 and near_duplicates(texts, threshold, 2) == wanted


def test_a_dropped_text_resembles_one_that_is_kept() -> None:
    rng = random.Random(7)
    texts = [text_of(rng)]
    for _ in range(60):
        # A chain: each resembles the one before it, and the last has nothing of the first.
        texts.append(edited(texts[-1], 2, rng))
    found = near_duplicates(texts, threshold=0.7)
    assert found
    for place, kept in found.items():
        assert kept not in found and kept < place
        assert jaccard(texts[place], texts[kept], 3) > 0.7 - 4 * 0.041
    assert len(found) < 60, "the chain is not one text"


def test_short_and_empty_texts_are_compared_as_wholes() -> None:
    assert near_duplicates(["Hi", "hi!", "", "?", "", "Hello"]) == {1: 0, 4: 2}
    assert near_duplicates([]) == {}


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7, 0.8, 0.9, 1.0])
def test_bands_let_hardly_any_pair_at_the_threshold_escape(threshold: float) -> None:
    rows = rows_per_band(threshold)
    bands = PERMUTATIONS // rows
    assert 1 - (1 - threshold**rows) ** bands >= 0.99
    more = rows + 1
    if more <= PERMUTATIONS:
        assert 1 - (1 - threshold**more) ** (PERMUTATIONS // more) < 0.99


def test_ngrams_tell_the_order_of_words() -> None:
    one, two = word_hashes("a b c d"), word_hashes("d c b a")
    assert not set(ngram_hashes(one, 2).tolist()) & set(ngram_hashes(two, 2).tolist())
    assert len(ngram_hashes(one, 9)) == 1


QUESTION = "What did the old ferryman tell the two travellers about the bridge above the mill"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (QUESTION, 0),
        (f"Please answer this: {QUESTION.upper()}?!", 0),
        # Half of its 15 words and a bit, after other words.
        ("Note the old ferryman tell the two travellers about the bridge and so on", 0),
        ("Note the old ferryman tell the two", None),
        (" ".join(reversed(QUESTION.split())), None),
        ("Name a red fruit", 1),
        ("name a RED fruit.", 1),
        ("Name a red fruit or two", None),
        ("", None),
    ],
)
def test_what_an_evaluation_asks_is_found(text: str, found: int | None) -> None:
    held = eval_items([QUESTION, "Name a red fruit."], 8)
    assert held.matched(text, 0.5) == found


def test_reordered_halves_are_found() -> None:
    words = QUESTION.split()
    # Both halves are whole n-grams of 7; which comes first changes nothing.
    turned = " ".join([*words[7:], "and", *words[:7]])
    assert eval_items([QUESTION], 7).matched(turned, 0.9) == 0


def test_the_item_that_is_held_most_is_named_and_no_evaluation_is_no_overlap() -> None:
    other = " ".join([*QUESTION.split()[:8], *["and", "now", "for", "something", "else"]])
    assert eval_items([other, QUESTION], 8).matched(QUESTION, 0.5) == 1
    assert eval_items([], 8).matched(QUESTION, 0.5) is None


def test_of_equal_items_the_first_is_named_and_the_share_is_reached_at_its_bound() -> None:
    assert eval_items([QUESTION, QUESTION], 8).matched(QUESTION, 0.5) == 0
    # 8 of 16 words: one n-gram covers exactly half.
    item = f"{QUESTION} once"
    part = " ".join([*item.split()[:8], "and", "more"])
    assert eval_items([item], 8).matched(part, 0.5) == 0
    assert eval_items([item], 8).matched(part, 0.51) is None
