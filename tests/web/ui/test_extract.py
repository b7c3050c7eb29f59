"""What the index keeps of records, by hand."""

from __future__ import annotations

import pytest

from rlaif.core.rowfiles import line_of
from rlaif.web.ui.extract import (
    Answer,
    Opinion,
    Pair,
    Stand,
    Verdict,
    address_of,
    clean_text,
    decode_lines,
    judges_differ,
    key_of,
    length_gap,
    split_address,
    stands_on,
)
from tests.support.browsed import completion, judgement, preference

GOOD, BAD, OTHER = 1, 2, 3


def test_an_address_is_a_place_and_an_offset_in_order() -> None:
    places = [(0, 0), (0, 7), (1, 0), (1, 1 << 39), (2, 5)]
    addresses = [address_of(*place) for place in places]
    assert addresses == sorted(addresses)
    assert [split_address(address) for address in addresses] == places


def test_keys_are_positive_integers_that_tell_names_apart() -> None:
    names = [f"k_{number}" for number in range(1000)] + ["\ud800", "é", ""]
    keys = {key_of(name) for name in names}
    assert len(keys) == len(names) and all(0 <= key < 1 << 63 for key in keys)


def test_lines_say_where_they_begin_also_with_what_strict_utf8_refuses() -> None:
    lines = [line_of(completion("p", f"k{i}", text)) for i, text in enumerate("aé\ud800z")]
    block = b"\n".join(lines) + b"\n"
    found = list(decode_lines(Answer, block, 100))
    ends = [100]
    for line in lines:
        ends.append(ends[-1] + len(line) + 1)
    assert [line.offset for line in found] == ends[:-1]
    assert [line.record.completion_id for line in found] == ["k0", "k1", "k2", "k3"]
    assert found[2].record.messages[0]["content"] == "\ud800"
    assert clean_text("a", None, "\ud800") == "a\n?"
    with pytest.raises(ValueError, match="Expecting"):
        list(decode_lines(Answer, b'{"completion_id"\n', 0))


def test_a_verdict_on_two_answers_compares_and_one_without_a_value_does_not() -> None:
    made = [
        judgement("p", "j1", ["a"], 0.5),
        judgement("p", "j2", ["a", "b"], 0.5),
        judgement("p", "j3", ["a", "b"], None),
    ]
    block = b"".join(line_of(one) + b"\n" for one in made)
    assert [line.record.compares for line in decode_lines(Verdict, block, 0)] == [
        False,
        True,
        False,
    ]


def test_the_gap_is_of_words_and_none_where_a_side_is_missing() -> None:
    long, short = completion("p", "a", "one two three"), completion("p", "b", "one")
    block = line_of(preference("p", "f", long, short)) + b"\n"
    pair: Pair = next(decode_lines(Pair, block, 0)).record
    assert length_gap(pair) == 2
    pair.rejected = []
    assert length_gap(pair) is None


def test_scores_of_one_answer_are_compared_by_their_means() -> None:
    # Means 0.7 and 0.4 by judge 0; judge 5 has nothing of the rejected answer.
    opinions = [
        Opinion(0, 9, GOOD, None, 0.6),
        Opinion(0, 9, GOOD, None, 0.8),
        Opinion(0, 9, BAD, None, 0.4),
        Opinion(0, 9, OTHER, None, 1.0),
        Opinion(5, 9, GOOD, None, 1.0),
    ]
    assert stands_on(GOOD, BAD, opinions) == [Stand(0, 9, pytest.approx(0.3), False)]


def test_probabilities_in_both_orders_are_turned_to_the_chosen_answer() -> None:
    # Shown first 0.9: 2 * 0.9 - 1 = 0.8. Shown second: the other one 0.2, so 1 - 2 * 0.2 = 0.6.
    both = [Opinion(0, 9, GOOD, BAD, 0.9), Opinion(0, 9, BAD, GOOD, 0.2)]
    assert stands_on(GOOD, BAD, both) == [Stand(0, 9, pytest.approx(0.7), False)]
    # The first shown wins both times.
    first = [Opinion(0, 9, GOOD, BAD, 0.9), Opinion(0, 9, BAD, GOOD, 0.9)]
    assert stands_on(GOOD, BAD, first) == [Stand(0, 9, pytest.approx(0.0), True)]
    # A tie in one order contradicts nothing.
    tied = [Opinion(0, 9, GOOD, BAD, 0.9), Opinion(0, 9, BAD, GOOD, 0.5)]
    assert not stands_on(GOOD, BAD, tied)[0].orders
    assert stands_on(GOOD, BAD, [Opinion(0, 9, GOOD, OTHER, 0.9)]) == []


def test_judges_differ_by_the_means_over_their_principles() -> None:
    one = [Stand(0, 1, 0.5, False), Stand(0, 2, -0.2, False)]
    assert not judges_differ(one)
    assert judges_differ([*one, Stand(1, 1, -0.1, False)])
    assert not judges_differ([*one, Stand(1, 1, 0.0, False)])
    assert not judges_differ([])
