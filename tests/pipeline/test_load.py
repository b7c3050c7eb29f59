"""load: TRL's formats as preferences, each row checked by its place in the file."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from pydantic import ValidationError

from rlaif.config.steps import LoadStep
from rlaif.core.errors import ConfigError
from rlaif.core.records import (
    Completion,
    Judgement,
    Preference,
    from_json,
    make_prompt,
    to_json,
)
from rlaif.core.store import StepFolder
from rlaif.pipeline.steps.load import load_preferences, run

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
    first, second = load_preferences(written(tmp_path, rows, ending))
    assert (first.prompt, first.chosen, first.rejected) == (USER, GOOD, [])
    assert (second.prompt, second.chosen, second.rejected) == (USER, [], BAD)
    assert not first.paired and not second.paired
    assert first.prompt_id == second.prompt_id
    rows = [{"prompt": prompt, "completion": good}]
    (plain,) = load_preferences(written(tmp_path, rows, ending))
    assert plain == first


def test_the_two_labels_of_one_answer_and_its_pair_have_ids_of_their_own(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": "q", "completion": "a", "label": True},
        {"prompt": "q", "completion": "a", "label": False},
        {"prompt": "q", "chosen": "a", "rejected": "b"},
    ]
    found = load_preferences(written(tmp_path, rows, "jsonl"))
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
        ({"prompt": "q", "completion": "", "label": True}, "chosen is missing"),
        ({"prompt": "", "completion": "a", "label": True}, "prompt missing or empty"),
        ({"prompt": "q", "completion": [*USER, *GOOD]}, "has 2 turns; text or one assistant turn"),
        ({"prompt": "q", "completion": USER}, "one assistant turn was expected"),
    ],
)
def test_what_is_wrong_is_named_with_file_and_row(
    tmp_path: Path, row: dict[str, Any], words: str, ending: str
) -> None:
    path = written(tmp_path, [row], ending)
    with pytest.raises(ConfigError, match=words) as refused:
        load_preferences(path)
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
        load_preferences(path)


PAIRS = [
    {"question": "q", "one": "a", "two": "b", "winner": "two", "who": "ann"},
    {"question": "q", "one": "a", "two": "b", "winner": "both"},
    {"question": "q", "one": "a", "two": "b", "winner": None},
    {"question": "q", "one": "a", "two": "b", "winner": "neither"},
]
COLUMNS = {
    "prompt": "question",
    "first": "one",
    "second": "two",
    "label": "winner",
    "labels": {"first": "one", "second": "two", "tie": "both"},
    "annotator": "who",
}


OWN_PROMPT = make_prompt([{"role": "user", "content": "Name a fruit."}])


def loaded(folder: Path, **keys: Any) -> tuple[dict[str, int], list[Preference]]:
    counts, store = loaded_folder(folder, **keys)
    return counts, [from_json(Preference, row) for row in store.read("preferences")]


def loaded_folder(folder: Path, **keys: Any) -> tuple[dict[str, int], StepFolder]:
    step = LoadStep.model_validate({"type": "preferences"} | keys)
    planned = SimpleNamespace(step=step, round=2, prompts=("p_0",))
    experiment = SimpleNamespace(loaded_name=lambda step: step.path)
    inputs = SimpleNamespace(path=folder / "experiment.yaml", experiment=experiment)
    store = StepFolder(folder / "step")
    context: Any = SimpleNamespace(
        planned=planned, inputs=inputs, folder=store, prompts={"p_0": OWN_PROMPT, "p_1": None}
    )
    return run(context)["counts"], store


def test_peoples_labels_become_preferences_that_say_so(tmp_path: Path) -> None:
    path = written(tmp_path, PAIRS, "jsonl")
    with pytest.raises(ConfigError, match=r"rows\.jsonl:4: winner is 'neither'; expected one of"):
        loaded(tmp_path, path=str(path), columns=COLUMNS)
    counts, (made,) = loaded(tmp_path, path=str(path), columns=COLUMNS, on_error="skip")
    assert counts == {"preferences": 1, "skipped": 1, "tied": 1, "unlabelled": 1}
    assert (made.chosen[0]["content"], made.rejected[0]["content"]) == ("b", "a")
    assert (made.source, made.reason, made.round) == ("human", "labelled by ann", 2)
    assert (made.score_chosen, made.score_rejected, made.margin) == (None, None, None)
    (trl,) = load_preferences(
        written(tmp_path, [{"prompt": "q", "chosen": "b", "rejected": "a"}], "jsonl")
    )
    assert (made.preference_id, made.prompt_id) == (trl.preference_id, trl.prompt_id)


def test_ties_alone_are_no_preferences_and_are_counted(tmp_path: Path) -> None:
    path = written(tmp_path, PAIRS[1:3], "jsonl")
    with pytest.raises(ConfigError, match=r"none of its 2 rows.*a winner \(tied: 1, unlab"):
        loaded(tmp_path, path=str(path), columns=COLUMNS)


@pytest.mark.parametrize("kind", ["completions", "judgements"])
def test_an_id_that_comes_twice_is_named_with_both_places(tmp_path: Path, kind: str) -> None:
    answer = Completion("k_1", "p_1", 0, GOOD, "me", "", {}, "stop")
    said = Judgement(
        "j_1", "c_1", "p_1", "completion", ["k_1"], "k_1", "me", "me", "human", None, "ok", 1.0
    )
    row = to_json(answer if kind == "completions" else said)
    other = {**row, "prompt_id": "p_0"}
    path = written(tmp_path, [row, other], "jsonl")
    with pytest.raises(
        ConfigError, match=r"rows.jsonl:2: \w+_id '[kj]_1' stands at .*rows.jsonl:1"
    ):
        loaded(tmp_path, type=kind, path=str(path))
    strange = written(tmp_path, [{**row, "prompt_id": "p_9"}], "jsonl")
    if kind == "completions":
        with pytest.raises(ConfigError, match=r"rows\.jsonl:1: prompt_id 'p_9' is none of the exp"):
            loaded(tmp_path, type=kind, path=str(strange))
    with pytest.raises(ConfigError, match=rf"rows\.jsonl:1: not a row of {kind}"):
        loaded(tmp_path, type=kind, path=str(written(tmp_path, [{"prompt": "q"}], "jsonl")))


def test_a_format_is_named_for_transcripts(tmp_path: Path) -> None:
    start = "\n\nHuman: Name a fruit.\n\nAssistant: "
    path = written(tmp_path, [{"chosen": start + "A plum.", "rejected": start + "No."}], "jsonl")
    counts, (made,) = loaded(tmp_path, path=str(path), format="hh")
    assert counts == {"preferences": 1}
    assert (made.prompt, made.chosen, made.rejected) == (USER, GOOD, BAD)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"type": "judgements", "format": "hh"}, "format: only for `type: preferences`"),
        ({"type": "pairs", "prompts": "other"}, "other: only for `type: preferences`"),
        ({"type": "text", "prompts": "other"}, "other: only for .* `type: demonstrations`"),
        ({"type": "text", "format": "hh"}, "format: raw texts have none"),
        ({"type": "text", "columns": COLUMNS}, "columns of pairs, and `type: text` reads texts"),
        ({"columns": {"text": "t"}}, "columns of texts, and .* reads pairs or answers"),
        ({"type": "demonstrations", "columns": COLUMNS}, "`type: demonstrations` reads answers"),
        ({"columns": {"answer": "a", "chosen": "b"}}, "chosen: not beside `answer`"),
        ({"type": "text", "columns": {"text": "a", "prompt": "b"}}, "prompt: not beside `text`"),
        ({"format": "hh", "columns": COLUMNS}, "give `format` or `columns`, not both"),
        ({"dataset_split": "test"}, "dataset_split: only with `dataset`"),
        ({"dataset": "a/b"}, "give one of `path` and `dataset`"),
    ],
)
def test_keys_that_would_reach_nothing_are_refused(keys: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        LoadStep.model_validate({"type": "preferences", "path": "x"} | keys)


ANSWER = to_json(Completion("k_1", "p_1", 0, GOOD, "me", "", {}, "stop"))
SAID = to_json(
    Judgement(
        "j_1", "c_1", "p_1", "completion", ["k_1"], "k_1", "me", "me", "human", None, "ok", 1.0
    )
)
PAIR = {"prompt": "q", "chosen": "a", "rejected": "b"}
OWN = {
    "preference_id": "f",
    "prompt_id": "p",
    "round": 0,
    "reason": "",
    "source": "file",
    "prompt": USER,
    "chosen": GOOD,
    "rejected": BAD,
    "chosen_id": "a",
    "rejected_id": "b",
    "score_chosen": 1,
    "score_rejected": 0,
    "margin": 1,
    "prob": 1,
    "weight": 1,
    "judgement_ids": [],
}


@pytest.mark.parametrize(
    ("kind", "row", "words"),
    [
        ("completions", {**ANSWER, "prompt_id": 3}, "prompt_id is 3; expected a text"),
        ("completions", {**ANSWER, "messages": None}, "messages is None; expected a list"),
        ("completions", {**ANSWER, "messages": "a"}, "messages is 'a'; expected a list"),
        ("completions", {**ANSWER, "messages": ["a"]}, r"messages\[0\] is 'a'; expected a mapping"),
        (
            "completions",
            {**ANSWER, "messages": [{"role": "assistant", "content": 1}]},
            r"messages\[0\].content is 1; expected a text",
        ),
        (
            "completions",
            {**ANSWER, "messages": [{"role": "assistant"}]},
            r"messages\[0\].content is missing; it must be given",
        ),
        ("completions", {**ANSWER, "messages": [{**GOOD[0], "role": "bot"}]}, "turn of role 'bot'"),
        ("completions", {**ANSWER, "messages": [{**GOOD[0], "content": "\ud800"}]}, "half a surr"),
        (
            "completions",
            {**ANSWER, "token_ids": [1, "a"]},
            r"token_ids\[1\] is 'a'; expected a who",
        ),
        ("completions", {**ANSWER, "sampling": {"t": float("nan")}}, "JSON does not have"),
        ("completions", {**ANSWER, "modle": "me"}, "'modle'; did you mean 'model'"),
        ("completions", {"completion_id": "k_1"}, "prompt_id is missing; it must be given"),
        ("judgements", {**SAID, "score": "good"}, "score is 'good'; expected a number or null"),
        ("judgements", {**SAID, "score": 7}, "score is 7.0; 0 to 1 was expected"),
        ("judgements", {**SAID, "score": float("nan")}, "score is nan; 0 to 1 was expected"),
        ("judgements", {**SAID, "score": None}, "a number stands with status ok or tie"),
        ("judgements", {**SAID, "status": "great"}, "status is 'great'; expected ok or tie or"),
        ("judgements", {**SAID, "distribution": {"a": "b"}}, "distribution.* expected a number"),
        ("judgements", {**SAID, "shown": "k_1"}, "shown is 'k_1'; expected a list"),
        ("preferences", {**OWN, "chosen": "a"}, "chosen is 'a'; expected a list"),
        ("preferences", {**OWN, "margin": "wide"}, "margin is 'wide'; expected a number or null"),
        ("preferences", {**OWN, "prob": 1.5}, "prob is 1.5; 0 to 1 was expected"),
        ("preferences", {**OWN, "weight": -1}, "weight is -1.0; 0 or more was expected"),
        ("preferences", {**PAIR, "chosen": 3}, "chosen is 3; text or a list"),
        ("preferences", {**PAIR, "prompt": ["q"]}, r"prompt\[0\] is 'q'; a turn"),
        ("preferences", {**PAIR, "chosen": USER}, "one assistant turn was expected"),
        ("preferences", {**PAIR, "margin": "wide"}, "margin is 'wide'; a number was expected"),
        ("preferences", {**PAIR, "source": ["x"]}, r"source is \['x'\]; a name was expected"),
        ("preferences", {**PAIR, "rejected": None}, "rejected is missing"),
    ],
)
def test_a_field_of_the_wrong_type_is_named_with_file_and_line(
    tmp_path: Path, kind: str, row: dict[str, Any], words: str
) -> None:
    good = {"completions": ANSWER, "judgements": SAID, "preferences": OWN}[kind]
    good = PAIR if kind == "preferences" and "preference_id" not in row else good
    path = written(tmp_path, [{**good, "prompt_id": "p_0"}, row], "jsonl")
    with pytest.raises(ConfigError, match=rf"^{path}:2: .*{words}") as refused:
        loaded(tmp_path, type=kind, path=str(path))
    assert "\n" not in str(refused.value)


def test_whole_numbers_are_scores_too(tmp_path: Path) -> None:
    (made,) = load_preferences(written(tmp_path, [OWN], "jsonl"))
    assert (made.score_chosen, made.margin) == (1.0, 1.0)
    assert to_json(made) == OWN


@pytest.mark.parametrize(
    ("row", "keys", "expected"),
    [
        ({}, {}, (None, None, None)),
        ({"score_chosen": None, "score_rejected": float("nan")}, {}, (None, None, None)),
        ({"score_chosen": 4.5, "score_rejected": 2.0}, {}, (4.5, 2.0, 2.5)),
        ({"score_chosen": 4.5, "score_rejected": None}, {}, (None, None, None)),
        ({"margin": 0.5}, {}, (None, None, 0.5)),
        ({}, {"format": "trl"}, (None, None, None)),
    ],
)
def test_scores_that_nobody_gave_stay_missing(
    tmp_path: Path, row: dict[str, Any], keys: dict[str, Any], expected: tuple[Any, ...]
) -> None:
    path = written(tmp_path, [PAIR | row], "jsonl")
    _, (made,) = loaded(tmp_path, path=str(path), **keys)
    assert (made.score_chosen, made.score_rejected, made.margin) == expected


def test_a_share_of_votes_is_a_margin(tmp_path: Path) -> None:
    path = written(tmp_path, [{"q": "x", "a": "b", "b": "c", "p": 0.25}], "jsonl")
    columns = {"prompt": "q", "first": "a", "second": "b", "label": "p"}
    _, (made,) = loaded(tmp_path, path=str(path), columns=columns)
    assert (made.chosen[0]["content"], made.score_chosen, made.margin) == ("c", None, 0.5)


EARLIER = [
    {"role": "system", "content": "Be kind."},
    *USER,
    {"role": "assistant", "content": "No."},
    {"role": "user", "content": "Please."},
]


def demonstrations(folder: Path, rows: list[dict[str, Any]], **keys: Any) -> Any:
    path = written(folder, rows, keys.pop("ending", "jsonl"))
    counts, store = loaded_folder(folder, type="demonstrations", path=str(path), **keys)
    # They are for training alone, and no pairs of the run.
    assert store.read("preferences") == []
    return counts, [from_json(Preference, row) for row in store.read("demonstrations")]


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
@pytest.mark.parametrize(
    ("row", "keys"),
    [
        ({"messages": [*EARLIER, *GOOD]}, {}),
        (
            {
                "system": "Be kind.",
                "conversations": [
                    {"from": {"user": "human"}.get(t["role"], "gpt"), "value": t["content"]}
                    for t in [*EARLIER[1:], *GOOD]
                ],
            },
            {},
        ),
        ({"prompt": EARLIER, "completion": GOOD}, {}),
        ({"prompt": EARLIER, "completion": "A plum."}, {"format": "sft"}),
        ({"prompt": EARLIER, "response": "A plum."}, {}),
        (
            {"who": "Be kind.", "q": EARLIER[1:], "a": "A plum."},
            {"columns": {"prompt": "q", "answer": "a", "system": "who"}},
        ),
        ({"talk": [*EARLIER, *GOOD]}, {"columns": {"answer": "talk"}}),
    ],
)
def test_demonstrations_are_conversations_and_their_last_answers(
    tmp_path: Path, row: dict[str, Any], keys: dict[str, Any], ending: str
) -> None:
    counts, (made,) = demonstrations(tmp_path, [row], ending=ending, **keys)
    assert counts == {"demonstrations": 1}
    assert (made.prompt, made.chosen, made.rejected) == (EARLIER, GOOD, [])
    assert (made.prompt_id, made.round) == (make_prompt(made.prompt).prompt_id, 0)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (PAIR, "two answers to one prompt, and a demonstration.*`type: preferences` reads pairs"),
        (
            {"prompt": "q", "completion": "a", "label": False},
            "an answer that is labelled bad.*for kto",
        ),
        ({"messages": EARLIER}, "ends with 'user'; a conversation that ends with an assistant"),
        ({"messages": [*USER, {"role": "assistant", "content": None}]}, "a text was expected"),
        ({"prompt": "", "completion": "a"}, "prompt missing or empty"),
        ({"messages": [*USER, {"role": "assistant", "content": "\ud800"}]}, "half a surrogate"),
    ],
)
def test_what_is_no_demonstration_is_named_with_its_line_or_skipped(
    tmp_path: Path, row: dict[str, Any], words: str
) -> None:
    good = {key: USER[0]["content"] if key == "prompt" else "A plum." for key in row}
    good = {"messages": [*USER, *GOOD]} if "messages" in row else good
    good = {**good, "label": True} if "label" in row else good
    if row is PAIR:
        good = {"prompt": "q", "completion": "a"}
    with pytest.raises(ConfigError, match=rf"rows\.jsonl:2: .*{words}"):
        demonstrations(tmp_path, [good, row])
    counts, made = demonstrations(tmp_path, [good, row], on_error="skip")
    assert (counts, len(made)) == ({"demonstrations": 1, "skipped": 1}, 1)


def test_demonstrations_of_own_prompts_can_be_left_out(tmp_path: Path) -> None:
    rows = [{"prompt": "Name a fruit.", "completion": "a"}, {"prompt": "Else?", "completion": "b"}]
    counts, (made,) = demonstrations(tmp_path, rows, prompts="other")
    assert (counts, made.chosen[0]["content"]) == ({"demonstrations": 1, "of_own_prompts": 1}, "b")
    with pytest.raises(ConfigError, match="all of its 1 demonstrations are of the experiment's"):
        demonstrations(tmp_path, rows[:1], prompts="other")


def texts(folder: Path, path: Path, **keys: Any) -> tuple[dict[str, int], list[str]]:
    counts, store = loaded_folder(folder, type="text", path=str(path), **keys)
    return counts, [row["text"] for row in store.read("texts")]


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_raw_texts_are_kept_as_they_are(tmp_path: Path, ending: str) -> None:
    own = [" One.\n\nTwo. ", "<s>Three</s>"]
    path = written(tmp_path, [{"text": t, "url": "u"} for t in own], ending)
    assert texts(tmp_path, path) == ({"texts": 2}, own)
    other = tmp_path / "other"
    other.mkdir()
    named = written(other, [{"doc": {"body": t}, "page": t} for t in own], ending)
    assert texts(other, named, columns={"text": "page"})[1] == own
    assert texts(tmp_path / "inside", named, columns={"text": "doc.body"})[1] == own
    with pytest.raises(ConfigError, match=r"no column 'text'; the row has \['doc', 'page'\]"):
        texts(tmp_path / "third", named)


@pytest.mark.parametrize("name", ["book.txt", "book.txt.gz"])
def test_a_plain_text_has_a_document_in_each_block_of_lines(tmp_path: Path, name: str) -> None:
    said = b"\xef\xbb\xbfOne,\r\n  still one.\r\n\r\n \t\n\nTwo.\n\n\nThree"
    path = tmp_path / name
    path.write_bytes(gzip.compress(said) if name.endswith("gz") else said)
    assert texts(tmp_path, path) == ({"texts": 3}, ["One,\n  still one.", "Two.", "Three"])
    with pytest.raises(ConfigError, match="a plain text has no columns"):
        texts(tmp_path / "other", path, columns={"text": "page"})


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"text": 3}, "text is 3; a text was expected"),
        ({"text": " \n"}, "a text was expected"),
        ({"text": None}, "text is None; a text was expected"),
        ({"text": "\ud800"}, "half a surrogate"),
        ({"messages": USER}, "no column 'text'.*conversations are `type: demonstrations`"),
    ],
)
def test_what_is_no_text_is_named_with_its_line_or_skipped(
    tmp_path: Path, row: dict[str, Any], words: str
) -> None:
    path = written(tmp_path, [{"text": "One."}, row], "jsonl")
    with pytest.raises(ConfigError, match=rf"rows\.jsonl:2: .*{words}"):
        texts(tmp_path, path)
    assert texts(tmp_path, path, on_error="skip") == ({"texts": 1, "skipped": 1}, ["One."])
    alone = written(tmp_path, [row], "jsonl")
    with pytest.raises(ConfigError, match=r"rows\.jsonl.*no text in it that could be used\n  "):
        texts(tmp_path / "none", alone, on_error="skip")


def test_a_line_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_bytes(b"One.\n\nTw\xff.\n")
    with pytest.raises(ConfigError, match=r"book\.txt:3: not UTF-8"):
        texts(tmp_path, path)
    assert texts(tmp_path, path, on_error="skip") == ({"texts": 1, "skipped": 1}, ["One."])


def test_a_source_that_is_named_is_that_of_every_row(tmp_path: Path) -> None:
    rows = [PAIR | {"source": "theirs"}, PAIR | {"prompt": "Name a bird."}]
    path = written(tmp_path, rows, "jsonl")
    _, made = loaded(tmp_path, path=str(path), source="mine")
    assert [p.source for p in made] == ["mine", "mine"]
    path = written(tmp_path, [OWN | {"source": "theirs"}], "jsonl")
    (tmp_path / "step").rename(tmp_path / "before")
    _, (made_before,) = loaded(tmp_path, path=str(path), source="mine")
    assert made_before.source == "mine"
