"""Where prompts come from: formats, columns, splits, faults named with their place."""

from __future__ import annotations

import codecs
import gzip
import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from rlaif.config.prompts import Columns, PromptsSpec
from rlaif.core.errors import ConfigError
from rlaif.core.records import make_prompt
from rlaif.core.resources import shipped_root
from rlaif.data.prompt_table import PromptsById, PromptTable
from rlaif.data.rows import file_rows, jsonl_rows, rows_hash, source_of
from rlaif.data.sources import PromptSet, load_prompts, split_apart

ROWS: list[dict[str, Any]] = [
    {"prompt": f"Question {i}?", "tags": ["even"] if i % 2 == 0 else []} for i in range(8)
]


def jsonl(folder: Path, rows: list[Any], name: str = "prompts.jsonl") -> Path:
    path = folder / name
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def loaded(path: Path, **keys: Any) -> PromptSet:
    return load_prompts(PromptsSpec(path=str(path), **({"holdout": 3} | keys)))


def refusal(path: Path, **keys: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        loaded(path, **keys)
    return str(caught.value)


def questions(found: PromptSet) -> set[str]:
    return {p.question for p in [*found.train, *found.heldout]}


def test_long_prompts_are_left_out_before_the_split(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    texts = ["one", "one two", "one two three", "one two three four"]
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    found = load_prompts(PromptsSpec(path=str(path), holdout=1, max_words=3))
    every = {p.question for p in [*found.train, *found.heldout]}
    assert every == set(texts[:3])


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz", ".json", ".csv"])
def test_a_byte_order_mark_is_no_part_of_a_file(tmp_path: Path, ending: str) -> None:
    rows = [{"prompt": f"Was ist {n} in Köln?"} for n in range(5)]
    lines = "prompt\n" + "".join(f"{row['prompt']}\n" for row in rows)
    if ending != ".csv":
        lines = json.dumps(rows) if ending == ".json" else "\n".join(map(json.dumps, rows))
    data = codecs.BOM_UTF8 + lines.encode()
    path = tmp_path / f"prompts{ending}"
    path.write_bytes(gzip.compress(data) if ending.endswith(".gz") else data)
    assert questions(loaded(path)) == {row["prompt"] for row in rows}


def test_jsonl_parquet_and_a_dataset_give_the_same_prompts(tmp_path: Path) -> None:
    path = jsonl(tmp_path, ROWS)
    table = pyarrow.Table.from_pylist(ROWS)
    pyarrow.parquet.write_table(table, tmp_path / "prompts.parquet")
    datasets.Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "set"))
    found = loaded(path)
    assert questions(found) == {row["prompt"] for row in ROWS}
    assert {p.question for p in found.train if "even" in p.tags} <= {r["prompt"] for r in ROWS[::2]}
    spec = PromptsSpec(dataset=str(tmp_path / "set"), holdout=3)
    for other in (loaded(tmp_path / "prompts.parquet"), load_prompts(spec)):
        assert [(p.prompt_id, p.tags) for p in other.train] == [
            (p.prompt_id, p.tags) for p in found.train
        ]
        assert [p.prompt_id for p in other.heldout] == [p.prompt_id for p in found.heldout]


def test_chats_keep_their_turns(tmp_path: Path) -> None:
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi!"},
        {"role": "user", "content": "How are you?"},
    ]
    found = loaded(jsonl(tmp_path, [{"messages": turns}, *ROWS]), holdout=1)
    (prompt,) = [p for p in [*found.train, *found.heldout] if len(p.messages) > 1]
    assert prompt.messages == turns
    assert prompt.question == "How are you?"


def test_columns_are_mapped(tmp_path: Path) -> None:
    rows = [
        {"q": f"Q {i}", "topic": ["x"], "gold": "A", "part": "test" if i < 2 else "train"}
        for i in range(5)
    ]
    columns = Columns(prompt="q", tags="topic", reference="gold", split="part")
    found = loaded(jsonl(tmp_path, rows), columns=columns, holdout=2)
    assert {p.question for p in found.heldout} == {"Q 0", "Q 1"}
    assert {p.question for p in found.train} == {"Q 2", "Q 3", "Q 4"}
    assert all(p.tags == ["x"] and p.reference == "A" for p in found.train)


def test_instruction_is_a_known_column(tmp_path: Path) -> None:
    found = loaded(jsonl(tmp_path, [{"instruction": f"Do {i}"} for i in range(3)]), holdout=1)
    assert questions(found) == {"Do 0", "Do 1", "Do 2"}


def test_duplicates_are_counted_and_left_out(tmp_path: Path) -> None:
    found = loaded(jsonl(tmp_path, [*ROWS, ROWS[0], ROWS[5], ROWS[5]]))
    assert found.duplicates == 3
    assert len(found.train) + len(found.heldout) == len(ROWS)


def test_the_split_is_disjoint_and_no_order_of_rows_changes_it(tmp_path: Path) -> None:
    found = loaded(jsonl(tmp_path, ROWS))
    turned = loaded(jsonl(tmp_path, ROWS[::-1], "turned.jsonl"))
    assert [p.prompt_id for p in found.heldout] == [p.prompt_id for p in turned.heldout]
    assert {p.prompt_id for p in found.train} == {p.prompt_id for p in turned.train}
    assert len(found.heldout) == 3
    assert not {p.prompt_id for p in found.train} & {p.prompt_id for p in found.heldout}


def test_declared_held_out_prompts_are_never_trained_on(tmp_path: Path) -> None:
    rows = [row | {"split": "heldout" if i < 4 else "train"} for i, row in enumerate(ROWS)]
    found = loaded(jsonl(tmp_path, rows), holdout=2)
    declared = {row["prompt"] for row in rows[:4]}
    assert len(found.heldout) == 2
    assert {p.question for p in found.heldout} < declared
    assert not {p.question for p in found.train} & declared
    message = refusal(jsonl(tmp_path, rows), holdout=5)
    assert "`holdout: 5`, and there are only 4 prompts marked held out" in message


def test_what_one_set_holds_out_no_other_trains_on() -> None:
    one, two, three, four = (make_prompt([{"role": "user", "content": t}]) for t in "abcd")
    first = PromptSet([one], [two], 0, validation=[three])
    second = PromptSet([two, three, four], [], 0)
    for train in ([one], PromptTable([one])):
        whole = PromptSet(train, [two], 0, validation=[three])
        assert list(whole.every()) == list(PromptsById(whole.by_id()).values()) == [one, two, three]
    found, lost = split_apart({"first": first, "second": second})
    assert found["first"] is first
    assert list(found["second"].train) == [four]
    assert lost == [("second", 2)]
    with pytest.raises(ConfigError, match="'third': all 1 training prompts are held out"):
        split_apart({"first": first, "third": PromptSet([three], [], 0)})


def test_limit_keeps_the_held_out_prompts(tmp_path: Path) -> None:
    path = jsonl(tmp_path, ROWS)
    assert loaded(path, limit=2).train == loaded(path).train[:2]
    assert loaded(path, limit=2).heldout == loaded(path).heldout


def test_too_large_a_holdout_is_refused(tmp_path: Path) -> None:
    message = refusal(jsonl(tmp_path, ROWS), holdout=8)
    assert "8 different prompts, of which 8 are held out: none is left to train on" in message
    assert "only 8 prompts" in refusal(jsonl(tmp_path, ROWS), holdout=9)


@pytest.mark.parametrize("text", ["", "\n\n"])
def test_an_empty_file_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(text)
    assert f"{path}: no prompts in it" in refusal(path)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("{not json", "not valid JSON"),
        ("[1, 2]", "each line must be a JSON object"),
        ({"text": "hello"}, "no prompt found; the row has ['text']"),
        ({"prompt": "   "}, "no prompt found"),
        ({"prompt": 7}, "no prompt found"),
        ({"messages": []}, "`messages` must be a list"),
        ({"messages": "hello"}, "`messages` must be a list"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0] has the role 'robot'"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content is None; a text"),
        ({"messages": ["hello"]}, "messages[0] is 'hello'; a turn"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "last turn must be a user turn"),
        ({"messages": [{"role": "user", "content": " "}]}, "last turn must be a user turn"),
        ({"prompt": "x", "tags": 7}, "tags"),
        ({"prompt": "x", "reference": 7}, "reference"),
    ],
)
def test_a_bad_row_is_named_with_its_line(tmp_path: Path, row: Any, words: str) -> None:
    path = jsonl(tmp_path, [ROWS[0], "", row, ROWS[1]])
    message = refusal(path)
    assert f"{path}:3: " in message
    assert words in message


def test_bad_rows_of_other_formats_are_named_too(tmp_path: Path) -> None:
    rows = [{"prompt": "a"}, {"prompt": ""}]
    path = tmp_path / "prompts.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    assert f"{path}: row 2: no prompt found" in refusal(path)
    path.write_bytes(b"no parquet")
    assert "not a readable Parquet file" in refusal(path)


@pytest.mark.parametrize("state", ["[]", "{}", "null", "3", '{"_data_files": 3}', "{"])
def test_a_damaged_dataset_folder_is_refused_in_words(tmp_path: Path, state: str) -> None:
    datasets.Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "saved"))
    (tmp_path / "saved" / "state.json").write_text(state)
    said = refusal(tmp_path / "saved")
    assert str(tmp_path / "saved") in said and "cannot be read: " in said
    assert said.endswith("was expected.")


def test_a_folder_that_is_no_dataset_is_refused_in_words(tmp_path: Path) -> None:
    for folder in (Path("/"), tmp_path):
        assert "can load, was expected" in refusal(folder)


def test_missing_files_and_datasets(tmp_path: Path) -> None:
    assert "not found; looked in" in refusal(tmp_path / "absent.jsonl")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_prompts(PromptsSpec(dataset=str(tmp_path / "absent")))


def test_line_separators_inside_a_text_do_not_end_a_row(tmp_path: Path) -> None:
    texts = ["one\u2028two", "one\u0085two"]
    path = jsonl(tmp_path, [{"prompt": text} for text in texts])
    assert [row["prompt"] for _, row in jsonl_rows(path)] == texts


def test_a_single_tag_may_be_plain_text(tmp_path: Path) -> None:
    found = loaded(
        jsonl(tmp_path, [{"prompt": str(i), "tags": "maths"} for i in range(2)]), holdout=1
    )
    assert found.train[0].tags == ["maths"]


def test_lone_surrogates_of_scraped_text_are_read(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "half a \\ud83d smile"}\n{"prompt": "b"}\n', encoding="utf-8")
    assert "half a \ud83d smile" in questions(loaded(path, holdout=1))


def test_the_shipped_prompts_load() -> None:
    found = loaded(shipped_root() / "prompts" / "seeds" / "everyday.jsonl", holdout=64)
    assert len(found.heldout) == 64
    assert found.duplicates == 0


def test_a_group_is_read_where_it_is_named_or_the_row_is_a_prompt_of_a_run(tmp_path: Path) -> None:
    rows = [{"prompt": f"{i}?", "group": f"g{i}", "of": f"h{i}"} for i in range(2)]

    def groups(path: Path, **keys: Any) -> dict[str, str | None]:
        return {p.question: p.group for p in loaded(path, holdout=1, **keys).every()}

    path = jsonl(tmp_path, rows)
    assert groups(path) == {"0?": None, "1?": None}
    named = Columns(group="of")
    assert groups(path, columns=named) == {"0?": "h0", "1?": "h1"}
    own = jsonl(tmp_path, [row | {"prompt_id": "p"} for row in rows], "own.jsonl")
    assert groups(own) == {"0?": "g0", "1?": "g1"}
    wrong = jsonl(tmp_path, [rows[0] | {"of": 3}], "wrong.jsonl")
    assert "wrong.jsonl:1: `group` must be a text" in refusal(wrong, columns=named)


def test_validation_prompts_are_the_smallest_after_those_held_out(tmp_path: Path) -> None:
    found = loaded(jsonl(tmp_path, ROWS), holdout=2, validation=3)
    ids = sorted(p.prompt_id for p in found.every())
    assert [p.prompt_id for p in found.heldout] == ids[:2]
    assert [p.prompt_id for p in found.validation] == ids[2:5]
    message = refusal(jsonl(tmp_path, ROWS), holdout=2, validation=7)
    assert "`validation: 7`, and there are only 6 prompts that are not held out" in message


def test_rows_of_a_large_table_are_numbered_on(tmp_path: Path) -> None:
    path = tmp_path / "many.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"n": list(range(1001))}), path)
    *_, last = file_rows(path)
    assert last == (f"{path}: row 1001", {"n": 1000})


def test_a_csv_has_nothing_in_an_empty_cell_and_no_column_twice(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text('a,b\n"x\ny",\n0,z\n')
    assert [row for _, row in file_rows(path)] == [{"a": "x\ny", "b": None}, {"a": "0", "b": "z"}]
    path.write_text("a,a\n1,2\n")
    with pytest.raises(ConfigError, match="two columns are called 'a'"):
        list(file_rows(path))


def test_the_hash_of_rows_is_of_what_they_hold_in_their_order() -> None:
    def hashed(*rows: dict[str, Any], place: str = "x") -> str:
        return rows_hash((f"{place}:{n}", row) for n, row in enumerate(rows))

    one, two = {"a": 1, "b": 2}, {"a": 3}
    assert hashed(one, two) == hashed({"b": 2, "a": 1}, two, place="y")
    assert len({hashed(one, two), hashed(two, one), hashed(one), hashed(one, {"a": "3"})}) == 4


@pytest.mark.parametrize("name", ["me/plums.jsonl", "me/plums.gz", "plums", "a/b/c"])
def test_a_name_that_is_no_id_of_the_hub_is_a_missing_file(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not found"):
        source_of(name, beside=tmp_path / "e.yaml")


def test_validation_prompts_are_none_of_those_declared_held_out(tmp_path: Path) -> None:
    rows = [row | {"split": "test" if i < 4 else "train"} for i, row in enumerate(ROWS)]
    found = loaded(jsonl(tmp_path, rows), holdout=2, validation=2)
    declared = {row["prompt"] for row in rows[:4]}
    assert len(found.validation) == len(found.train) == 2
    assert not {p.question for p in [*found.validation, *found.train]} & declared
