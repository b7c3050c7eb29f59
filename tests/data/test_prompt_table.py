"""Prompts on disk are the list that they were made of, and by id what dicts would give."""

from __future__ import annotations

import pytest

from rlaif.core.records import Prompt, make_prompt
from rlaif.data.prompt_table import PromptsById, PromptTable, sorted_ids

TEXTS = ["One?", "Two?", "\ud800 three?", "Four?"]


def prompt(text: str, reference: str | None = None) -> Prompt:
    return make_prompt([{"role": "user", "content": text}], "here", ["tag"], reference, "g")


PROMPTS = [prompt(text) for text in TEXTS]


def test_a_table_is_the_list_of_its_prompts() -> None:
    table = PromptTable(PROMPTS)
    assert list(table) == PROMPTS and table == PROMPTS and len(table) == 4
    assert table[1:3] == PROMPTS[1:3] and table[-1] == PROMPTS[-1] and table[::-1] == PROMPTS[::-1]
    with pytest.raises(IndexError):
        table[4]
    ordered = sorted(p.prompt_id for p in PROMPTS)
    assert sorted_ids(table) == ordered == sorted_ids(PROMPTS)
    assert list(table.by_id()) == [p.prompt_id for p in PROMPTS]


def test_the_first_of_equal_prompts_is_added_and_the_last_put() -> None:
    other = prompt(TEXTS[0], "an answer")
    table = PromptTable(PROMPTS)
    assert not table.add(other) and table[0] == PROMPTS[0]
    table.put(other)
    assert list(table) == [other, *PROMPTS[1:]]


def test_what_is_taken_out_is_gone() -> None:
    table = PromptTable()
    for number, one in enumerate(PROMPTS):
        assert table.add(one, marked=number > 1)
    marked = sorted(PROMPTS[2:], key=lambda p: p.prompt_id)
    assert table.has_marked()
    assert table.take_smallest(1, marked=True) == marked[:1]
    table.remove_marked()
    assert list(table) == PROMPTS[:2] and not table.has_marked()
    table.keep_first(1)
    assert list(table) == PROMPTS[:1] and len(table) == 1


def test_of_several_sources_the_last_counts_in_the_order_of_the_first() -> None:
    other = prompt(TEXTS[1], "an answer")
    posed: dict[str, Prompt] = {}
    found = PromptsById([PromptTable(PROMPTS[:3]).by_id(), {other.prompt_id: other}, posed])
    assert list(found.values()) == [PROMPTS[0], other, PROMPTS[2]]
    assert len(found) == 3 and PROMPTS[3].prompt_id not in found
    posed[PROMPTS[3].prompt_id] = PROMPTS[3]
    assert found[PROMPTS[3].prompt_id] == PROMPTS[3] and len(found) == 4
    with pytest.raises(KeyError):
        found["p_none"]


def test_values_are_those_that_each_id_gives() -> None:
    others = [prompt(text, "another answer") for text in TEXTS[1:3]]
    tables = [PromptTable(PROMPTS[:3]), PromptTable([*others, PROMPTS[3]]), PromptTable()]
    found = PromptsById(table.by_id() for table in tables)
    assert list(found.values()) == [found[name] for name in found]
    assert list(found.values()) == [PROMPTS[0], *others, PROMPTS[3]]
    assert PROMPTS[3] in found.values() and PROMPTS[1] not in found.values()
    assert len(found.values()) == 4


def test_a_table_counts_what_it_holds_whatever_is_taken_out() -> None:
    table = PromptTable()
    for number, one in enumerate(PROMPTS):
        table.add(one, marked=number == 0)
    table.keep_first(9)
    assert len(table) == 4
    table.remove(["p_0000000000000000", PROMPTS[1].prompt_id, PROMPTS[1].prompt_id])
    assert len(table) == 3 and list(table) == [PROMPTS[0], *PROMPTS[2:]]
    # A prompt that takes the place of another is marked as that was.
    table.put(prompt(TEXTS[0], "an answer"))
    assert table.has_marked() and len(table) == 3
    smallest = sorted(table, key=lambda p: p.prompt_id)
    assert table.take_smallest(9) == smallest and len(table) == 0
    assert not table.has(PROMPTS[0].prompt_id) and table.find(PROMPTS[0].prompt_id) is None
