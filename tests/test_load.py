"""load: TRL's formats as preferences, each row checked by its place in the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from rlaif.errors import ConfigError
from rlaif.steps.load import load_trl

USER = [{"role": "user", "content": "Name a fruit."}]
GOOD = [{"role": "assistant", "content": "A plum."}]
BAD = [{"role": "assistant", "content": "No."}]


def written(folder: Path, rows: list[dict[str, Any]], ending: str) -> Path:
    path = folder / f"rows.{ending}"
    if ending == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
@pytest.mark.parametrize("conversation", [False, True])
def test_single_answers_with_and_without_a_label(
    tmp_path: Path, ending: str, conversation: bool
) -> None:
    prompt: Any = USER if conversation else "Name a fruit."
    good, bad = (GOOD, BAD) if conversation else ("A plum.", "No.")
    rows = [
        {"prompt": prompt, "completion": good, "label": True},
        {"prompt": prompt, "completion": bad, "label": False},
    ]
    first, second = load_trl(written(tmp_path, rows, ending))
    assert (first.prompt, first.chosen, first.rejected) == (USER, GOOD, [])
    assert (second.prompt, second.chosen, second.rejected) == (USER, [], BAD)
    assert not first.paired and not second.paired
    assert first.prompt_id == second.prompt_id
    rows = [{"prompt": prompt, "completion": good}]
    (plain,) = load_trl(written(tmp_path, rows, ending))
    assert plain == first


def test_the_two_labels_of_one_answer_and_its_pair_have_ids_of_their_own(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": "q", "completion": "a", "label": True},
        {"prompt": "q", "completion": "a", "label": False},
        {"prompt": "q", "chosen": "a", "rejected": "b"},
    ]
    found = load_trl(written(tmp_path, rows, "jsonl"))
    assert len({p.preference_id for p in found}) == 3
    assert found[0].chosen_id == found[1].rejected_id == found[2].chosen_id
    assert [p.paired for p in found] == [False, False, True]


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "q", "completion": "a", "label": "good"}, "label is 'good'; true or false"),
        ({"prompt": "q", "completion": "a", "label": None}, "label is None; true or false"),
        ({"prompt": "q", "completion": "a", "label": 1}, "label is 1; true or false"),
        ({"prompt": "q", "completion": "", "label": True}, "completion missing or empty"),
        ({"completion": "a", "label": True}, "prompt missing or empty"),
        ({"prompt": "q", "answer": "a"}, "chosen, rejected missing.*or prompt and completion"),
        ({"prompt": "q", "completion": [*USER, *GOOD]}, "has 2 turns; text or one assistant turn"),
        ({"prompt": "q", "completion": USER}, "one assistant turn was expected"),
    ],
)
def test_what_is_wrong_is_named_with_file_and_row(
    tmp_path: Path, row: dict[str, Any], words: str, ending: str
) -> None:
    path = written(tmp_path, [row], ending)
    with pytest.raises(ConfigError, match=words) as refused:
        load_trl(path)
    place = f"{path}:1: " if ending == "jsonl" else f"{path}: row 1: "
    assert str(refused.value).startswith(place)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q \ud800", "chosen": "a", "rejected": "b"},
        {"prompt": "q", "chosen": GOOD, "rejected": [{**BAD[0], "content": "\udfff"}]},
        {"prompt": "q", "completion": "\ud83d", "label": False},
    ],
)
def test_half_a_character_is_refused_by_its_row(tmp_path: Path, row: dict[str, Any]) -> None:
    path = written(tmp_path, [{"prompt": "q", "chosen": "a", "rejected": "b"}, row], "jsonl")
    with pytest.raises(ConfigError, match=r"rows\.jsonl:2: the text has half a surrogate pair"):
        load_trl(path)
