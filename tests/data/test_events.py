"""The rows of an events file: every column's type and range, and what an impression is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from rlaif.core.errors import ConfigError
from rlaif.data.events import read_events
from rlaif.data.readers import read_answers

ROW = {"impression": 1, "prompt": "Hello?", "response": "Hi.", "position": 1}


def events_file(folder: Path, *rows: dict[str, Any]) -> Path:
    file = folder / "events.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_a_row_says_what_was_done_and_what_nobody_recorded(tmp_path: Path) -> None:
    done = {"clicked": True, "shared": 0, "thumbs": "down", "dwell": 2.5, "propensity": 0.25}
    file = events_file(tmp_path, {**ROW, **done, "random": True, "user": "u1"})
    ((one,),) = read_events(file, False).impressions.values()
    assert (one.clicked, one.liked, one.shared, one.thumbs) == (True, None, False, False)
    assert (one.dwell, one.propensity, one.random, one.examined) == (2.5, 0.25, True, False)
    assert one.prompt.question == "Hello?" and one.answer.text == "Hi."


def test_other_tables_hold_the_same(tmp_path: Path) -> None:
    rows = [
        {**ROW, "clicked": True, "thumbs": "up", "dwell": None},
        {**ROW, "position": 2, "response": "No.", "clicked": False, "thumbs": None, "dwell": 3.0},
    ]
    wanted = read_events(events_file(tmp_path, *rows), False).impressions["1"]
    table = pd.DataFrame(rows)
    table.to_csv(tmp_path / "events.csv", index=False)
    table.to_parquet(tmp_path / "events.parquet")
    for name in ("events.csv", "events.parquet"):
        found = read_events(tmp_path / name, False).impressions["1"]
        for one, other in zip(wanted, found, strict=True):
            assert (one.clicked, one.thumbs, one.dwell) == (
                other.clicked,
                other.thumbs,
                other.dwell,
            )


def test_what_was_not_shown_is_left_out_and_the_rest_stands_by_position(tmp_path: Path) -> None:
    rows = [
        {**ROW, "position": 3, "response": "c"},
        {**ROW, "position": 1, "response": "a"},
        {**ROW, "position": 2, "response": "b", "shown": False},
    ]
    (shown,) = read_events(events_file(tmp_path, *rows), False).impressions.values()
    assert [one.answer.text for one in shown] == ["a", "c"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"position": 0}, "position is 0; a whole number from 1"),
        ({"position": 1.5}, "position is 1.5"),
        ({"position": None}, "position is missing. A row of events has impression"),
        ({"response": None}, "response is missing"),
        ({"impression": None}, "impression is missing"),
        ({"clicked": "perhaps"}, "clicked is 'perhaps'; true or false"),
        ({"clicked": 2}, "clicked is 2"),
        ({"thumbs": "sideways"}, "thumbs is 'sideways'; up or down"),
        ({"thumbs": True}, "thumbs is True; up or down"),
        ({"propensity": 0}, "propensity is 0; more than 0"),
        ({"propensity": 1.2}, "propensity is 1.2"),
        ({"dwell": -1}, "dwell is -1; seconds from 0"),
    ],
    ids=lambda value: "" if isinstance(value, dict) else value,
)
def test_a_wrong_cell_names_its_row(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    file = events_file(tmp_path, ROW, {**ROW, "position": 2, "response": "No.", **changed})
    with pytest.raises(ConfigError, match=rf"jsonl:2: {message}"):
        read_events(file, False)
    found = read_events(file, True)
    assert len(found.skipped) == 1 and len(found.impressions["1"]) == 1


def test_an_impression_has_one_prompt_and_one_answer_at_a_position(tmp_path: Path) -> None:
    for changed, message in (
        ({"prompt": "Bye?", "position": 2}, "has another prompt at .*:1"),
        ({"response": "No."}, "another answer at position 1 already"),
    ):
        with pytest.raises(ConfigError, match=message):
            read_events(events_file(tmp_path, ROW, {**ROW, **changed}), False)


def test_a_file_without_a_shown_answer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no row of an answer that was shown"):
        read_events(events_file(tmp_path, {**ROW, "shown": False}), False)


def test_shown_answers_are_not_taken_for_good_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no known format has the columns"):
        list(read_answers(events_file(tmp_path, ROW)))


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        ({"clicked": "TRUE", "liked": "False", "thumbs": 1}, (True, False, True)),
        ({"clicked": 0.0, "liked": "", "thumbs": -1}, (False, None, False)),
        ({"clicked": None, "liked": 1, "thumbs": 0}, (None, True, None)),
        ({"clicked": False, "liked": True, "thumbs": ""}, (False, True, None)),
    ],
)
def test_yes_and_no_have_several_forms(
    tmp_path: Path, cells: dict[str, Any], expected: tuple[bool | None, ...]
) -> None:
    ((one,),) = read_events(events_file(tmp_path, {**ROW, **cells}), False).impressions.values()
    assert (one.clicked, one.liked, one.thumbs) == expected


def test_the_ends_of_the_ranges_are_in_them(tmp_path: Path) -> None:
    row = {**ROW, "propensity": 1, "dwell": 0, "examined": True, "shown": None, "position": "2.0"}
    ((one,),) = read_events(events_file(tmp_path, row), False).impressions.values()
    assert (one.propensity, one.dwell, one.position) == (1.0, 0.0, 2)
    assert (one.examined, one.random) == (True, False)


def test_impressions_are_in_the_order_of_their_names_with_their_own_prompts(
    tmp_path: Path,
) -> None:
    rows = [
        {**ROW, "impression": "b"},
        {**ROW, "impression": "a", "prompt": "Bye?", "system": "Be brief."},
        {**ROW, "impression": "b", "position": 2, "response": "No."},
    ]
    found = read_events(events_file(tmp_path, *rows), False).impressions
    assert [(name, len(shown)) for name, shown in found.items()] == [("a", 1), ("b", 2)]
    assert [turn["content"] for turn in found["a"][0].prompt.messages] == ["Be brief.", "Bye?"]


def test_a_file_of_faulty_rows_alone_says_the_first_fault(tmp_path: Path) -> None:
    rows = [{**ROW, "position": 0}, {**ROW, "dwell": -1}]
    with pytest.raises(ConfigError, match=r"shown; the first fault: .*:1: position is 0"):
        read_events(events_file(tmp_path, *rows), True)
