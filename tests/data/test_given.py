"""Anyone's answers in a file: what is read, in which form, and what is said of wrong rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlaif.core.errors import ConfigError
from rlaif.core.records import Completion, Message, make_prompt, to_json
from rlaif.data.given import holds_answers, holds_records, read_given
from rlaif.data.rows import write_rows

USER: Message = {"role": "user", "content": "2+2?"}
FIRST = {"prompt": "2+2?", "completion": "4"}
TALK: list[Message] = [
    {"role": "user", "content": "Hi."},
    {"role": "assistant", "content": "Hello."},
    USER,
    {"role": "assistant", "content": "4"},
]


def write(folder: Path, *rows: dict[str, Any], name: str = "a.jsonl") -> Path:
    path = folder / name
    write_rows(rows, path)
    return path


def texts(path: Path) -> list[tuple[str, str]]:
    made = read_given(path)
    prompts = {p.prompt_id: p for p in made.prompts}
    return sorted((prompts[c.prompt_id].question, c.text) for c in made.completions)


FORMS: dict[str, dict[str, Any]] = {
    "texts": FIRST,
    "a response": {"prompt": "2+2?", "response": "4"},
    "turns": {"prompt": [USER], "completion": [{"role": "assistant", "content": "4"}]},
    "messages": {"messages": [USER, {"role": "assistant", "content": "4"}]},
    "ShareGPT's names": {
        "conversations": [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}]
    },
    "messages and an answer": {"messages": [USER], "completion": "4"},
    "a prompt that the messages repeat": {"prompt": "2+2?", "messages": [USER, TALK[3]]},
    "columns of their own": FIRST | {"id": 7, "completion_id": "c", "model": "m", "score": 0.5},
    "nulls": FIRST | {"messages": None, "reference": None, "tags": None, "source": None},
}


@pytest.mark.parametrize("row", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "parquet", "jsonl.gz"])
def test_every_form_in_every_file_is_the_same_answer(
    row: dict[str, Any], ending: str, tmp_path: Path
) -> None:
    path = write(tmp_path, row, name=f"given.{ending}")
    assert holds_answers(path)
    plain = read_given(write(tmp_path, FIRST))
    made = read_given(path)
    assert made.completions == plain.completions
    assert [p.prompt_id for p in made.prompts] == [p.prompt_id for p in plain.prompts]
    (answer,) = made.completions
    assert (answer.text, answer.finish_reason, answer.model) == ("4", "stop", "")


def test_earlier_turns_and_the_system_prompt_belong_to_the_prompt(tmp_path: Path) -> None:
    made = read_given(write(tmp_path, {"messages": TALK, "system": "Be brief."}))
    (prompt,) = made.prompts
    assert prompt.messages == [{"role": "system", "content": "Be brief."}, *TALK[:3]]
    assert made.completions[0].messages == [TALK[3]]


def test_reference_tags_and_source_are_kept_and_the_file_is_the_source_otherwise(
    tmp_path: Path,
) -> None:
    rows = (FIRST, FIRST | {"completion": "5", "reference": "4", "tags": ["sum"], "source": "me"})
    (prompt,) = read_given(write(tmp_path, *rows)).prompts
    assert (prompt.reference, prompt.tags, prompt.source) == ("4", ["sum"], "me")
    # Whichever row says it.
    (again,) = read_given(write(tmp_path, *rows[::-1], name="b.jsonl")).prompts
    assert again == prompt
    (bare,) = read_given(write(tmp_path, FIRST)).prompts
    assert (bare.reference, bare.tags, bare.source) == (None, [], "a.jsonl")
    (listed,) = read_given(write(tmp_path, FIRST | {"tags": '["a", "b"]'}, name="c.csv")).prompts
    (one,) = read_given(write(tmp_path, FIRST | {"tags": "a"}, name="d.csv")).prompts
    assert (listed.tags, one.tags) == (["a", "b"], ["a"])


def test_a_prompt_may_look_like_json(tmp_path: Path) -> None:
    path = write(
        tmp_path, {"prompt": "[1, 2]", "completion": "[]"}, {"prompt": "{}", "response": ""}
    )
    assert texts(path) == [("[1, 2]", "[]"), ("{}", "")]


def test_a_prompt_has_several_answers_the_same_twice_too(tmp_path: Path) -> None:
    rows = [FIRST, FIRST, FIRST | {"completion": "5"}]
    made = read_given(write(tmp_path, *rows))
    assert len(made.prompts) == 1
    assert len({c.completion_id for c in made.completions}) == 3
    assert [c.sample_index for c in made.completions] == [0, 1, 2]
    assert sorted(c.text for c in made.completions) == ["4", "4", "5"]


def test_the_same_answer_in_another_file_is_another_record(tmp_path: Path) -> None:
    """A comparison of two files has it on both sides, as a tie."""
    other = write(tmp_path, FIRST, {"prompt": "2+3?", "completion": "5"}, name="b.jsonl")
    ids = [
        {c.completion_id for c in read_given(p).completions}
        for p in (write(tmp_path, FIRST), other)
    ]
    assert not ids[0] & ids[1]


ROWS = st.lists(
    st.fixed_dictionaries(
        {"prompt": st.sampled_from("abc"), "completion": st.sampled_from("xyz ")}
    ),
    min_size=1,
    max_size=8,
)


@given(rows=ROWS, data=st.data())
def test_order_and_names_change_nothing(
    rows: list[dict[str, Any]], data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("given")
    shuffled = data.draw(st.permutations(rows))
    source = {"source": "s"}
    one = read_given(write(folder, *(row | source for row in rows)))
    other = read_given(write(folder, *(row | source for row in shuffled), name="other.jsonl"))
    assert one == other


FAULTS: list[tuple[list[dict[str, Any]], str]] = [
    ([{"prompt": "a"}], r"bad.jsonl:1: not a row of completions: it has no answer.*: prompt$"),
    ([FIRST, {"completion": "4"}], "bad.jsonl:2: .*its prompt is missing"),
    ([FIRST, {"prompt": "a", "completion": 4}], "bad.jsonl:2: completion is 4"),
    ([FIRST, {"prompt": 4, "completion": "a"}], "bad.jsonl:2: prompt is 4"),
    ([{"prompt": " ", "completion": "a"}], "bad.jsonl:1: the prompt must end with a user turn"),
    ([{"messages": [USER]}], "bad.jsonl:1: messages begins with 'user' and ends with 'user'"),
    ([{"messages": []}], r"bad.jsonl:1: messages is \[\]"),
    ([{"messages": [TALK[3]]}], "begins with 'assistant'"),
    ([{"messages": TALK, "completion": "5"}], "must end with a user turn"),
    ([{"prompt": "a", "completion": TALK[2:]}], "one assistant turn was expected"),
    ([FIRST | {"reference": 4}], "bad.jsonl:1: reference is 4; a text was expected"),
    ([FIRST | {"tags": [1]}], r"bad.jsonl:1: tags is \[1\]; a list of texts"),
    ([FIRST | {"source": ["a"]}], r"bad.jsonl:1: source is \['a'\]"),
    (
        [FIRST | {"reference": "4"}, FIRST | {"reference": "5"}],
        "2: reference is '5', and '4' at .*:1",
    ),
    ([FIRST | {"tags": ["a"]}, FIRST | {"tags": ["b"]}], "2: tags is .* same prompt"),
    ([FIRST | {"completion": "\ud800"}], "half a surrogate pair"),
]


@pytest.mark.parametrize(("rows", "message"), FAULTS)
def test_a_fault_names_row_and_column(
    rows: list[dict[str, Any]], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    with pytest.raises(ConfigError, match=message):
        read_given(path)


def test_records_of_ours_are_told_from_answers(tmp_path: Path) -> None:
    prompt = make_prompt([USER])
    answer: list[Message] = [{"role": "assistant", "content": "4"}]
    record = Completion("c", prompt.prompt_id, 0, answer, "m", "", {}, "stop")
    for row, own in (
        (to_json(record), True),
        ({"judgement_id": "j", "prompt": "a", "completion": "b"}, True),
        ({"preference_id": "p", "prompt": [USER], "chosen": answer, "rejected": answer}, True),
        (FIRST | {"completion_id": "c", "prompt_id": "p"}, False),
        ({"messages": TALK, "prompt_id": "p"}, False),
    ):
        path = write(tmp_path, row)
        assert (holds_records(path), holds_answers(path)) == (own, not own)
    assert not holds_records(tmp_path)
    assert not holds_answers(tmp_path)


def test_a_file_that_changed_is_read_again(tmp_path: Path) -> None:
    path = write(tmp_path, FIRST)
    assert texts(path) == [("2+2?", "4")]
    write(tmp_path, FIRST, {"prompt": "3+3?", "completion": "6"})
    assert texts(path) == [("2+2?", "4"), ("3+3?", "6")]


def test_tags_in_another_order_are_the_same_and_a_completion_goes_before_a_response(
    tmp_path: Path,
) -> None:
    rows = [FIRST | {"tags": ["a", "b"], "response": "no"}, FIRST | {"tags": ["b", "a"]}]
    path = write(tmp_path, *rows)
    assert texts(path) == [("2+2?", "4"), ("2+2?", "4")]
    (prompt,) = read_given(path).prompts
    assert sorted(prompt.tags) == ["a", "b"]
