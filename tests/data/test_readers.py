"""Every format is read as its makers mean it, found from its columns, and faults are named."""

from __future__ import annotations

import gzip
import json
import math
import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from pydantic import ValidationError

from rlaif.config.columns import LabelColumns
from rlaif.core.errors import ConfigError
from rlaif.core.labelled import LabelledPair
from rlaif.data.readers import (
    FORMATS,
    argilla,
    detect_format,
    icai,
    load_columns,
    read_labelled,
)
from rlaif.data.readers.base import make_pair
from rlaif.data.readers.singles import read_completion
from rlaif.data.readers.ultrafeedback import mean_rating

Row = dict[str, Any]


def turn(role: str, content: str) -> Row:
    return {"role": role, "content": content}


def rated(model: str, response: str, *ratings: str) -> Row:
    aspects = ("instruction-following", "honesty", "truthfulness", "helpfulness")
    annotations = {
        aspect: {"Rating": rating, "Rationale": "."}
        for aspect, rating in zip(aspects, ratings, strict=True)
    }
    return {"model": model, "response": response, "annotations": annotations, "overall_score": 10}


CHAT = [turn("user", "Hi"), turn("assistant", "Hello."), turn("user", "Name a fruit.")]
HH = "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: Name a fruit.\n\nAssistant: "
ICAI: Row = {
    "metadata": {"version": "2.0", "default_annotator": None},
    "annotators": {
        "h": {"name": "ann", "description": "", "type": "human"},
        "m": {"name": "judge", "description": "", "type": "ai"},
        "p": {"name": "brief", "description": "", "type": "principle"},
    },
    "comparisons": [
        {
            "id": "1",
            "prompt": "Name a fruit.",
            "response_a": {"text": "A plum.", "model": "x"},
            "response_b": {"text": "No.", "model": "y"},
            "annotations": {
                "h": {"pref": "a"},
                "m": {"pref": None, "no_pref_reason": "tie"},
                "p": {"pref": "b"},
            },
            "metadata": {"subset": "food"},
        }
    ],
}
ICAI_ROW = ICAI["comparisons"][0] | {"document": {k: ICAI[k] for k in ("metadata", "annotators")}}

ASKED = {"role": "user", "content": "Name a fruit."}

# name -> (a row; what is read of it: (first, second, label, subset, authors, annotator, its kind))
SAMPLES: dict[str, tuple[Row, list[tuple[Any, ...]]]] = {
    "trl": (
        {"prompt": "Name a fruit.", "chosen": "A plum.", "rejected": "No."},
        [("A plum.", "No.", 1.0, None, None, None, "human")],
    ),
    "hh": (
        {"chosen": HH + "A plum.", "rejected": HH + "No."},
        [("A plum.", "No.", 1.0, None, None, None, "human")],
    ),
    "hhh": (
        {
            "prompt": "...",
            "corrects": [" (B)"],
            "incorrects": [" (A)"],
            "text_correct": HH + "A plum.",
            "text_incorrect": HH + "No.",
        },
        [("No.", "A plum.", 0.0, None, None, None, "human")],
    ),
    "openrlhf": (
        {
            "chosen": [ASKED, {"role": "assistant", "content": "A plum."}],
            "rejected": [ASKED, {"role": "assistant", "content": "No."}],
            "margin": 0.5,
        },
        [("A plum.", "No.", 1.0, None, None, None, "human")],
    ),
    "llama_factory": (
        {
            "conversations": [{"from": "human", "value": "Name a fruit."}],
            "chosen": {"from": "gpt", "value": "A plum."},
            "rejected": {"from": "gpt", "value": "No."},
        },
        [("A plum.", "No.", 1.0, None, None, None, "human")],
    ),
    "verl": (
        {
            "data_source": "food",
            "prompt": [ASKED],
            "reward_model": {"style": "model", "ground_truth": "A plum."},
            "extra_info": {"rejected": "No."},
        },
        [("A plum.", "No.", 1.0, "food", None, None, "human")],
    ),
    "autoj": (
        {
            "scenario": "food",
            "label": 2,
            "prompt": "Name a fruit.",
            "response 1": "A plum.",
            "response 2": "A fig.",
        },
        [("A plum.", "A fig.", 0.5, "food", None, None, "human")],
    ),
    "alpaca_eval": (
        {
            "instruction": "Name a fruit.",
            "output_1": "No.",
            "generator_1": "base",
            "output_2": "A plum.",
            "generator_2": "mine",
            "annotator": "gpt",
            "preference": 1.75,
            "dataset": "food",
        },
        [("No.", "A plum.", 0.25, "food", ("base", "mine"), "gpt", "ai")],
    ),
    "pku": (
        {
            "prompt": "Name a fruit.",
            "response_0": "No.",
            "response_1": "A plum.",
            "is_response_0_safe": True,
            "is_response_1_safe": True,
            "better_response_id": 1,
            "safer_response_id": 0,
        },
        [("No.", "A plum.", 0.0, None, None, None, "human")],
    ),
    "icai": (
        ICAI_ROW,
        [
            ("A plum.", "No.", 1.0, "food", ("x", "y"), "ann", "human"),
            ("A plum.", "No.", 0.5, "food", ("x", "y"), "judge", "ai"),
        ],
    ),
    "argilla": (
        {
            "prompt": "Name a fruit.",
            "response1": "A plum.",
            "response2": "No.",
            "preference.responses": ["response1", "tie", "response2"],
            "preference.responses.users": ["u1", "u2", "u3"],
            "preference.responses.status": ["submitted", "submitted", "discarded"],
            "preference.suggestion": "response2",
        },
        [
            ("A plum.", "No.", 1.0, None, None, "u1", "human"),
            ("A plum.", "No.", 0.5, None, None, "u2", "human"),
        ],
    ),
    "ultrafeedback": (
        {
            "source": "food",
            "instruction": "Name a fruit.",
            "completions": [
                rated("x", "No.", "1", "N/A", "2", "1"),
                rated("y", "A plum.", "5", "5", "4", "4"),
                rated("z", "?", "N/A", "N/A", "N/A", "N/A"),
            ],
        },
        [
            ("No.", "A plum.", 0.0, "food", ("x", "y"), None, "ai"),
            ("No.", "?", None, "food", ("x", "z"), None, "ai"),
            ("A plum.", "?", None, "food", ("y", "z"), None, "ai"),
        ],
    ),
    "ultrafeedback_binarized": (
        {
            "prompt": "Name a fruit.",
            "prompt_id": "0",
            "chosen": [turn("user", "Name a fruit."), turn("assistant", "A plum.")],
            "rejected": [turn("user", "Name a fruit."), turn("assistant", "No.")],
            "score_chosen": 8.0,
            "score_rejected": 2.0,
        },
        [("A plum.", "No.", 1.0, None, None, None, "ai")],
    ),
    "distilabel": (
        {
            "prompt": "Name a fruit.",
            "chosen": [turn("assistant", "A plum.")],
            "rejected": [turn("assistant", "No.")],
            "chosen_rating": 4.0,
            "rejected_rating": 4.0,
            "chosen_model": "x",
            "rejected_model": "y",
        },
        [("A plum.", "No.", 0.5, None, ("x", "y"), None, "ai")],
    ),
    "rewardbench": (
        {
            "id": 3,
            "prompt": "Name a fruit.",
            "chosen": "A plum.",
            "rejected": "No.",
            "subset": "food",
            "chosen_model": "x",
            "rejected_model": "y",
        },
        [("A plum.", "No.", 1.0, "food", ("x", "y"), None, "human")],
    ),
    "rewardbench_v2": (
        {
            "prompt": "Name a fruit.",
            "chosen": ["A plum."],
            "rejected": ["No.", "A car."],
            "num_correct": 1,
            "total_completions": 3,
            "subset": "food",
        },
        [
            ("A plum.", "No.", 1.0, "food", None, None, "human"),
            ("A plum.", "A car.", 1.0, "food", None, None, "human"),
        ],
    ),
}


def seen(pair: LabelledPair) -> tuple[Any, ...]:
    said = (pair.label, pair.subset, pair.authors, pair.annotator, pair.annotator_kind)
    return (pair.first.text, pair.second.text, *said)


def jsonl(path: Path, rows: list[Row]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("name", SAMPLES)
def test_a_row_is_found_and_read(name: str, tmp_path: Path) -> None:
    row, expected = SAMPLES[name]
    path = jsonl(tmp_path / "pairs.jsonl", [row])
    reading = read_labelled(path)
    pairs = list(reading)
    assert reading.name == name
    assert [seen(pair) for pair in pairs] == expected
    assert [seen(pair) for pair in read_labelled(path, name)] == expected
    assert {pair.prompt.question for pair in pairs} == {"Name a fruit."}
    assert {pair.place for pair in pairs} == {f"{path}:1"}
    assert all(p.first.prompt_id == p.prompt.prompt_id for p in pairs)


def test_conversations_keep_their_turns(tmp_path: Path) -> None:
    rows = [
        {"prompt": CHAT, "chosen": [turn("assistant", "a")], "rejected": [turn("assistant", "b")]},
        {"chosen": [*CHAT, turn("assistant", "a")], "rejected": [*CHAT, turn("assistant", "b")]},
    ]
    explicit, implicit = read_labelled(jsonl(tmp_path / "trl.jsonl", rows))
    (transcript,) = read_labelled(
        jsonl(tmp_path / "hh.jsonl", [{"chosen": HH + "a", "rejected": HH + "b"}])
    )
    assert explicit.prompt.messages == CHAT
    assert explicit.pair_id == implicit.pair_id == transcript.pair_id


def test_pku_has_a_second_label(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "pku.jsonl", [SAMPLES["pku"][0]])
    assert [pair.label for pair in read_labelled(path, "pku_safer")] == [1.0]


def test_icai_prefers_its_default_annotator(tmp_path: Path) -> None:
    path = tmp_path / "icai.json"
    path.write_text(json.dumps(ICAI | {"metadata": {"default_annotator": "m"}}))
    assert [(p.annotator, p.label) for p in read_labelled(path)] == [("judge", 0.5)]


@pytest.mark.parametrize(("reason", "label"), [("tie", 0.5), ("invalid", None), (None, None)])
def test_without_a_preference_only_a_tie_is_one(reason: str | None, label: float | None) -> None:
    said = {"pref": None} | ({"no_pref_reason": reason} if reason else {})
    (pair,) = icai.read_pair(ICAI_ROW | {"annotations": {"h": said}}, "here")
    assert isinstance(pair, LabelledPair) and pair.label == label


@pytest.mark.parametrize(
    "states", [["discarded"] * 3, ["draft"] * 3, ["draft", "discarded", "draft"]]
)
def test_a_suggestion_counts_where_nobody_answered(tmp_path: Path, states: list[str]) -> None:
    row = SAMPLES["argilla"][0] | {"preference.responses.status": states}
    (pair,) = read_labelled(jsonl(tmp_path / "a.jsonl", [row]))
    assert (pair.label, pair.annotator_kind) == (0.0, "ai")


def test_ratings_that_are_not_there_leave_the_mean() -> None:
    assert mean_rating(rated("m", "r", "1", "N/A", "2", "3"), "here") == 2.0
    assert mean_rating(rated("m", "r", "N/A", "N/A", "N/A", "N/A"), "here") is None
    with pytest.raises(ConfigError, match="here: honesty has Rating 10; 1 to 5"):
        mean_rating(rated("m", "r", "1", "10", "2", "3"), "here")


@pytest.mark.parametrize(
    ("preference", "label"), [(1, 1.0), (2, 0.0), (1.5, 0.5), (0, 0.5), (None, None)]
)
def test_a_preference_of_alpaca_eval(
    preference: float | None, label: float, tmp_path: Path
) -> None:
    row = SAMPLES["alpaca_eval"][0] | {"preference": preference}
    assert [p.label for p in read_labelled(jsonl(tmp_path / "a.jsonl", [row]))] == [label]


def test_outputs_need_the_baselines_beside_them(tmp_path: Path) -> None:
    row = {"instruction": "Hi", "generator": "mine", "output": "b", "preference": 1.0}
    path = jsonl(tmp_path / "annotations.jsonl", [row, row | {"instruction": "Bye"}])
    with pytest.raises(ConfigError, match="put the baseline's outputs"):
        read_labelled(path)
    base = {"instruction": "Hi", "generator": "base", "output": "a"}
    jsonl(tmp_path / "the_baseline.jsonl", [base])
    reading = read_labelled(path, on_error="skip")
    assert [seen(p)[:5] for p in reading] == [("a", "b", 1.0, None, ("base", "mine"))]
    assert reading.skipped == [f"{path}:2: the baseline has no output for this instruction"]


COLUMNS = LabelColumns(
    prompt="q",
    first="one",
    second="two",
    label="won",
    labels={"first": ["A", 1], "second": "B", "tie": "both"},  # type: ignore[arg-type]
    annotator="who",
)
TABLE = [
    {"q": "Hi", "one": "a", "two": "b", "won": won, "who": "ann"} for won in ("A", "B", "both")
]


@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz", "json", "csv", "parquet", "folder"])
def test_any_table_by_a_column_map(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"table.{ending}"
    if ending == "folder":
        datasets.Dataset.from_list(TABLE).save_to_disk(str(path))
    elif ending == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(TABLE), path)
    elif ending == "csv":
        path.write_text("q,one,two,won,who\n" + "".join(f"Hi,a,b,{r['won']},ann\n" for r in TABLE))
    elif ending == "json":
        path.write_text(json.dumps(TABLE))
    else:
        data = "".join(json.dumps(row) + "\n" for row in TABLE).encode()
        path.write_bytes(gzip.compress(data) if ending.endswith("gz") else data)
    pairs = list(read_labelled(path, columns=COLUMNS))
    assert [p.label for p in pairs] == [1.0, 0.0, 0.5]
    assert {p.annotator for p in pairs} == {"ann"}
    assert len({p.pair_id for p in pairs}) == 1


def test_a_label_column_without_values_is_a_probability(tmp_path: Path) -> None:
    columns = LabelColumns(prompt="q", first="one", second="two", label="won")
    rows = [TABLE[0] | {"won": won} for won in (0.7, "0.2", None, math.nan, 3)]
    reading = read_labelled(jsonl(tmp_path / "t.jsonl", rows), columns=columns, on_error="skip")
    assert [p.label for p in reading] == [0.7, 0.2, None, None]
    assert "t.jsonl:5: won is 3; without `labels`" in reading.skipped[0]


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"chosen": "a"}, "give `chosen` and `rejected`; or"),
        ({"chosen": "a", "rejected": "b", "label": "c"}, "give `chosen` and `rejected`; or"),
        ({"chosen": "a", "rejected": "b", "labels": {"first": 1, "second": 0}}, "give `label` too"),
        (
            {"first": "a", "second": "b", "label": "c", "labels": {"first": 1, "second": "1"}},
            "must differ",
        ),
    ],
)
def test_a_column_map_that_cannot_be_meant(keys: Row, words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        LabelColumns(prompt="q", **keys)


def test_a_column_map_file_names_its_faults(tmp_path: Path) -> None:
    path = tmp_path / "map.yaml"
    path.write_text("prompt: q\nchosen: a\nrejectd: b\n")
    with pytest.raises(ConfigError, match=r"map\.yaml:3: unknown key 'rejectd'; did you mean"):
        load_columns(path)


def test_unknown_columns_are_listed_with_how_to_map_them() -> None:
    with pytest.raises(ConfigError) as caught:
        detect_format({"question": "?", "good": "a", "bad": "b"}, "x.jsonl")
    message = str(caught.value)
    assert message.startswith(
        "x.jsonl: no known format has the columns ['bad', 'good', 'question']"
    )
    assert all(f"  {name}: " in message for name in FORMATS)
    assert "prompt: COLUMN" in message
    with pytest.raises(ConfigError, match="no format is called 'alpca_eval'; did you mean 'alpaca"):
        read_labelled(Path("x.jsonl"), "alpca_eval")


def test_one_bad_row_stops_or_is_skipped(tmp_path: Path) -> None:
    good = SAMPLES["trl"][0]
    path = jsonl(tmp_path / "t.jsonl", [good, good | {"chosen": 3}, good])
    with pytest.raises(ConfigError, match=r"t\.jsonl:2: chosen is 3; text or a list"):
        list(read_labelled(path))
    reading = read_labelled(path, on_error="skip")
    assert len(list(reading)) == 2
    assert [message.split(": ")[0] for message in reading.skipped] == [f"{path}:2"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", b"", "no rows in this file"),
        ("a.jsonl", b"{\n", "no row that could be used .of 1.\n.*a.jsonl:1: not valid JSON"),
        ("a.jsonl.gz", b"no gzip", "cannot be read: Not a gzipped file"),
        ("a.json", b"{}", "expected a list of objects"),
        ("a.csv", b"a,b\n1\n", "row 1: not as many cells as columns"),
        ("a.parquet", b"no parquet", "not a readable Parquet file"),
    ],
)
def test_files_that_cannot_be_read(name: str, content: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=words):
        read_labelled(path, on_error="skip")
    with pytest.raises(ConfigError, match="no such file"):
        read_labelled(tmp_path / "absent.jsonl")


def test_the_shared_files_are_read_as_given(real_data: Path) -> None:
    expected = {
        "hhh_eval_dev": ("hhh", 219, {1.0: 116, 0.0: 103}),
        "hh_harmless_dev": ("hh", 1599, {1.0: 1599}),
        "autoj_pairwise_dev": ("autoj", 900, {0.0: 337, 1.0: 320, 0.5: 243}),
    }
    for name, (kind, count, labels) in expected.items():
        reading = read_labelled(real_data / f"{name}.jsonl.gz", on_error="skip")
        pairs = list(reading)
        assert (reading.name, len(pairs), Counter(p.label for p in pairs)) == (kind, count, labels)
        assert len(reading.skipped) == reading.rows - count
    outputs = read_labelled(real_data / "alpaca_eval_gpt4_annotations.jsonl.gz")
    assert sum(1 for pair in outputs if pair.authors) == 11268


JUNK: tuple[Any, ...] = (
    None, True, -1, 7.5, math.nan, "", " ", "nonsense", "\ud800", [], [None], ["x", 3], {}, [[]],
    {"role": "user"}, [turn("user", "x")], [turn("robot", "x")], [turn("assistant", "\udfff")],
    [turn("assistant", "x")] * 2, {"Rating": {}}, {"text": 5, "model": []}, 10**400,
)  # fmt: skip


def broken(row: Row, draw: random.Random) -> str:
    """A row as a line of JSON with one or two of its cells spoilt, or the line itself."""
    spoilt = dict(row)
    for key in draw.sample(sorted(row), min(len(row), draw.randint(1, 2))):
        if draw.random() < 0.3:
            del spoilt[key]
        else:
            spoilt[key] = draw.choice(JUNK)
    line = json.dumps(spoilt)
    if draw.random() < 0.15:
        line = draw.choice([line[: draw.randrange(1, len(line))], f"[{line}]", "\\x" + line])
    return line


def test_ten_thousand_malformed_rows_are_named_each(tmp_path: Path) -> None:
    draw = random.Random(11)
    named = 0
    for name, (row, _) in SAMPLES.items():
        needed = {k: v for k, v in row.items() if k in FORMATS[name].columns or "respon" in k}
        path = tmp_path / f"{name}.jsonl"
        lines = [json.dumps(row), *(broken(needed, draw) for _ in range(1300))]
        path.write_text("\n".join(lines) + "\n")
        reading = read_labelled(path, name, on_error="skip")
        places = {int(pair.place.rpartition(":")[2]) for pair in reading}
        for message in reading.skipped:
            place, _, reason = message.removeprefix(f"{path}:").partition(": ")
            assert reason
            places.add(int(place))
        # Every line was read or named.
        assert places == set(range(1, len(lines) + 1)), name
        named += len(reading.skipped)
    assert named >= 10_000


BAD_PARTS: dict[str, tuple[Row, str, set[tuple[str, str]]]] = {
    "ultrafeedback": (
        {
            "instruction": "Name a fruit.",
            "completions": [
                rated("x", "No.", "1", "1", "1", "1"),
                rated("y", "A plum.", "5", "9", "5", "5"),
                {"model": "w", "response": None, "annotations": {}},
                rated("v", "half \ud800", "5", "5", "5", "5"),
                rated("z", "A fig.", "4", "4", "4", "4"),
            ],
        },
        "Rating 9|response is missing|half a surrogate",
        {("No.", "A fig.")},
    ),
    "rewardbench_v2": (
        {
            "prompt": "Name a fruit.",
            "chosen": ["A plum.", None],
            "rejected": ["No.", "A plum.", 3],
            "subset": "food",
        },
        r"chosen\[1\] is None|rejected\[2\] is 3|the same text",
        {("A plum.", "No.")},
    ),
    "argilla": (
        {
            "prompt": "Name a fruit.",
            "response1": "A plum.",
            "response2": "No.",
            "preference.responses": ["neither", "response1"],
        },
        "preference is 'neither'",
        {("A plum.", "No.")},
    ),
    "icai": (
        ICAI_ROW | {"annotations": {"h": {"pref": "c"}, "m": {"pref": "a"}}},
        "pref is 'c'",
        {("A plum.", "No.")},
    ),
}


@pytest.mark.parametrize("name", BAD_PARTS)
def test_one_bad_part_of_a_row_leaves_the_others(name: str, tmp_path: Path) -> None:
    row, words, expected = BAD_PARTS[name]
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n")
    reading = read_labelled(path, name, on_error="skip")
    assert {(p.first.text, p.second.text) for p in reading} == expected
    assert len(reading.skipped) == len(words.split("|"))
    for said, wanted in zip(reading.skipped, words.split("|"), strict=True):
        assert said.startswith(f"{path}:1: ")
        assert re.search(wanted, said)
    with pytest.raises(ConfigError, match=words.split("|")[0]):
        list(read_labelled(path, name))


@pytest.mark.parametrize("name", ["ultrafeedback", "ultrafeedback_binarized", "distilabel"])
def test_who_rated_is_the_rows_own_word_or_nobodys(name: str, tmp_path: Path) -> None:
    row, _ = SAMPLES[name]
    for more, expected in (({}, None), ({"labelling_model": "judge-9b"}, "judge-9b")):
        found = read_labelled(jsonl(tmp_path / "rows.jsonl", [row | more]))
        assert found.name == name
        assert {pair.annotator for pair in found} == {expected}


ARGILLA: Row = {"prompt": "Name a fruit.", "response1": "A plum.", "response2": "No."}


@pytest.mark.parametrize(
    ("said", "label"), [("1", 1.0), ("2", 0.0), (2, 0.0), ("response2", 0.0), ("tie", 0.5)]
)
def test_an_argilla_answer_is_named_by_its_field_or_number(said: Any, label: float) -> None:
    (pair,) = argilla.read_pair(ARGILLA | {"preference.responses": [said]}, "here")
    assert isinstance(pair, LabelledPair)
    assert (pair.label, pair.annotator, pair.annotator_kind) == (label, None, "human")


def test_an_argilla_question_of_another_name_is_found_by_its_responses(tmp_path: Path) -> None:
    row: Row = {
        "question": "Name a fruit.",
        "response_a": "A plum.",
        "response_b": "No.",
        "better.responses": ["response_b"],
    }
    (pair,) = reading = read_labelled(jsonl(tmp_path / "a.jsonl", [row]))
    assert (reading.name, pair.label, pair.first.text) == ("argilla", 0.0, "A plum.")
    both = row | {"preference.responses": ["response_a"]}
    (named,) = argilla.read_pair(both, "here")
    assert isinstance(named, LabelledPair) and named.label == 1.0
    with pytest.raises(ConfigError, match=r"\['better', 'safer'\]; one of them must be named"):
        list(argilla.read_pair(row | {"safer.responses": ["response_a"]}, "here"))


def test_an_argilla_suggestion_names_the_model_that_made_it() -> None:
    suggested = {"preference.suggestion": "response1", "preference.suggestion.agent": "judge-9b"}
    (pair,) = argilla.read_pair(ARGILLA | {"preference.responses": None} | suggested, "here")
    assert isinstance(pair, LabelledPair)
    assert (pair.label, pair.annotator, pair.annotator_kind) == (1.0, "judge-9b", "ai")


def test_an_argilla_row_that_nobody_answered_is_a_pair_without_a_label() -> None:
    row = ARGILLA | {"preference.responses": [], "preference.suggestion": None}
    (pair,) = argilla.read_pair(row, "here")
    assert isinstance(pair, LabelledPair)
    assert (pair.label, pair.annotator, pair.annotator_kind) == (None, None, "human")


def test_argilla_responses_without_as_many_users_and_states_are_refused() -> None:
    row = SAMPLES["argilla"][0] | {"preference.responses.status": ["submitted"] * 2}
    with pytest.raises(ConfigError, match="here: preference has 3 responses, 3 users and 2 states"):
        list(argilla.read_pair(row, "here"))


def test_pku_names_who_wrote_and_where_the_prompt_is_from(tmp_path: Path) -> None:
    more = {"prompt_source": "food", "response_0_source": "x", "response_1_source": "y"}
    row = SAMPLES["pku"][0] | more | {"better_response_id": 0}
    (pair,) = read_labelled(jsonl(tmp_path / "pku.jsonl", [row]), "pku")
    assert seen(pair) == ("No.", "A plum.", 1.0, "food", ("x", "y"), None, "human")


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ({"num_correct": 2}, "num_correct is 2, and the row has 1"),
        ({"total_completions": 4}, "total_completions is 4, and the row has 3"),
        ({"num_correct": None, "total_completions": None}, None),
    ],
)
def test_the_counts_of_rewardbench_v2_are_those_of_its_answers(
    counts: Row, words: str | None, tmp_path: Path
) -> None:
    path = jsonl(tmp_path / "v2.jsonl", [SAMPLES["rewardbench_v2"][0] | counts])
    if words is None:
        assert len(list(read_labelled(path))) == 2
        return
    with pytest.raises(ConfigError, match=words):
        list(read_labelled(path))


def test_verls_name_for_a_pair_without_a_subset_is_no_subset(tmp_path: Path) -> None:
    row = SAMPLES["verl"][0] | {"data_source": "preferences"}
    assert [p.subset for p in read_labelled(jsonl(tmp_path / "v.jsonl", [row]))] == [None]


def test_llama_factorys_system_column_is_the_first_turn(tmp_path: Path) -> None:
    row = SAMPLES["llama_factory"][0] | {"system": "Be brief."}
    (pair,) = read_labelled(jsonl(tmp_path / "l.jsonl", [row]))
    assert pair.prompt.messages == [turn("system", "Be brief."), ASKED]
    turned = row | {"rejected": {"from": "human", "value": "No."}}
    with pytest.raises(ConfigError, match="chosen and rejected must be from gpt"):
        list(read_labelled(jsonl(tmp_path / "m.jsonl", [turned])))


@pytest.mark.parametrize("name", ["openrlhf", "trl"])
def test_a_margin_is_kept_as_the_file_says_it(name: str, tmp_path: Path) -> None:
    row = SAMPLES[name][0] | {"margin": 1.25}
    (pair,) = read_labelled(jsonl(tmp_path / "m.jsonl", [row]), name)
    assert (pair.margin, pair.scores) == (1.25, None)


@pytest.mark.parametrize(
    ("scores", "models"),
    [
        (("score_chosen", "score_rejected"), ("chosen_model", "rejected_model")),
        (("chosen_score", "rejected_score"), ("chosen-model", "rejected-model")),
        (("chosen-rating", "rejected-rating"), ("model_chosen", "model_rejected")),
    ],
)
def test_scores_and_authors_have_several_names(
    scores: tuple[str, str], models: tuple[str, str], tmp_path: Path
) -> None:
    more = {scores[0]: 3, scores[1]: 1.5, models[0]: "x", models[1]: "y"}
    row = SAMPLES["trl"][0] | more | {"annotator": "ann", "labelling_model": "judge-9b"}
    (pair,) = read_labelled(jsonl(tmp_path / "t.jsonl", [row]))
    assert (pair.scores, pair.authors, pair.annotator) == ((3.0, 1.5), ("x", "y"), "ann")


def test_a_pair_says_which_source_it_is_from(tmp_path: Path) -> None:
    row = SAMPLES["trl"][0]
    named, plain = read_labelled(jsonl(tmp_path / "t.jsonl", [row | {"source": "web"}, row]))
    assert (named.source, plain.source) == ("web", "file")
    assert plain.prompt.source == "t.jsonl"


def test_authors_and_scores_count_only_where_both_are_known() -> None:
    one = make_pair("here", [ASKED], ("a", "b"), 1.0, authors=("x", None), scores=(None, 2.0))
    assert (one.authors, one.scores) == (None, None)
    assert (one.first.model, one.second.model) == ("x", "")
    assert (one.first.sample_index, one.second.sample_index) == (0, 1)


def test_raw_ultrafeedback_scores_are_the_mean_ratings(tmp_path: Path) -> None:
    first, second, third = read_labelled(jsonl(tmp_path / "u.jsonl", [SAMPLES["ultrafeedback"][0]]))
    assert first.scores is not None and first.scores == pytest.approx((4 / 3, 4.5))
    assert second.scores is third.scores is None


@pytest.mark.parametrize("rating", ["0", "6", "0.5"])
def test_an_aspect_is_rated_from_1_to_5(rating: str) -> None:
    assert mean_rating(rated("m", "r", "1", "5", "", "N/A"), "here") == 3.0
    with pytest.raises(ConfigError, match=f"here: helpfulness has Rating {rating}; 1 to 5"):
        mean_rating(rated("m", "r", "1", "5", "5", rating), "here")


@pytest.mark.parametrize(
    ("above", "below", "label", "scores"),
    [
        (8.0, 2.0, 1.0, (8.0, 2.0)),
        (2.0, 2.0, 0.5, (2.0, 2.0)),
        (2.0, 8.0, 1.0, (2.0, 8.0)),
        (None, None, 1.0, None),
        (8.0, None, 1.0, None),
    ],
)
def test_only_equal_scores_of_a_binarised_row_are_a_tie(
    above: float | None, below: float | None, label: float, scores: Any, tmp_path: Path
) -> None:
    row = SAMPLES["ultrafeedback_binarized"][0] | {"score_chosen": above, "score_rejected": below}
    (pair,) = read_labelled(jsonl(tmp_path / "b.jsonl", [row]))
    assert (pair.label, pair.scores) == (label, scores)


@pytest.mark.parametrize("preference", [0.5, 2.5, -1])
def test_a_preference_of_alpaca_eval_is_from_1_to_2(preference: float, tmp_path: Path) -> None:
    row = SAMPLES["alpaca_eval"][0] | {"preference": preference}
    with pytest.raises(ConfigError, match=f"preference is {preference:g}; from 1 "):
        list(read_labelled(jsonl(tmp_path / "a.jsonl", [row])))


def test_two_baselines_beside_outputs_are_none(tmp_path: Path) -> None:
    row = {"instruction": "Hi", "generator": "mine", "output": "b", "preference": 1.0}
    path = jsonl(tmp_path / "annotations.jsonl", [row | {"dataset": "food", "annotator": "gpt"}])
    base = {"instruction": "Hi", "generator": "base", "output": "a"}
    jsonl(tmp_path / "the_baseline.jsonl", [base])
    (pair,) = read_labelled(path)
    assert seen(pair) == ("a", "b", 1.0, "food", ("base", "mine"), "gpt", "ai")
    jsonl(tmp_path / "another_baseline.jsonl", [base])
    with pytest.raises(ConfigError, match="put the baseline's outputs"):
        read_labelled(path)


@pytest.mark.parametrize(
    ("label", "expected"), [(1.0, 0.0), ("0", 1.0), (" 2 ", 0.5), (None, None)]
)
def test_a_coded_label_may_be_a_number_a_text_or_missing(
    label: Any, expected: float | None, tmp_path: Path
) -> None:
    row = SAMPLES["autoj"][0] | {"label": label}
    assert [p.label for p in read_labelled(jsonl(tmp_path / "a.jsonl", [row]))] == [expected]


def by_map(folder: Path, columns: Row, *rows: Row) -> list[LabelledPair]:
    known = LabelColumns(**({"prompt": "q", "first": "one", "second": "two"} | columns))
    whole = [{"q": "Hi", "one": "a", "two": "b"} | row for row in rows]
    return list(read_labelled(jsonl(folder / "t.jsonl", whole), columns=known))


def test_a_probability_may_be_0_and_1(tmp_path: Path) -> None:
    pairs = by_map(tmp_path, {"label": "won"}, {"won": 0}, {"won": 1}, {"won": "1.0"})
    assert [pair.label for pair in pairs] == [0.0, 1.0, 1.0]


def test_columns_of_winners_say_true_in_several_ways(tmp_path: Path) -> None:
    columns = {"winners": {"first": "w1", "second": "w2", "tie": "w0"}}
    said: list[tuple[Any, Any, Any, float | None]] = [
        (1, 0, 0, 1.0),
        ("False", "TRUE", "false", 0.0),
        (0.0, None, 1.0, 0.5),
        (False, math.nan, "0", None),
    ]
    pairs = by_map(tmp_path, columns, *({"w1": a, "w2": b, "w0": c} for a, b, c, _ in said))
    assert [pair.label for pair in pairs] == [label for *_, label in said]
    with pytest.raises(ConfigError, match="more than one of w1, w2, w0 is true"):
        by_map(tmp_path, columns, {"w1": 1, "w2": 0, "w0": 1})
    with pytest.raises(ConfigError, match="w1 is 2; true or false"):
        by_map(tmp_path, columns, {"w1": 2, "w2": 0, "w0": 0})


@pytest.mark.parametrize("more", ["chosen", "label", "score", "rating", "impression"])
def test_rated_or_labelled_responses_are_no_demonstrations(more: str) -> None:
    row = {"prompt": "Name a fruit.", "response": "No."}
    assert detect_format(row) == "responses"
    with pytest.raises(ConfigError, match="no known format has the columns"):
        detect_format(row | {more: 0})


def test_a_completion_has_a_system_turn_a_source_and_a_true_or_false_label() -> None:
    row = {"prompt": "Name a fruit.", "completion": "A plum.", "response": "other"}
    (plain,) = read_completion(row, "here")
    assert (plain.answer.text, plain.good, plain.source) == ("A plum.", True, "file")
    (found,) = read_completion(row | {"system": "Be brief.", "source": "me"}, "here")
    assert found.prompt.messages == [turn("system", "Be brief."), ASKED]
    assert found.source == "me"
    with pytest.raises(ConfigError, match="here: label is 1; true or false"):
        list(read_completion(row | {"label": 1}, "here"))
