"""What the data layer hands on: two of everything, no two alike, so that a value that is dropped,
or that goes to the wrong side, shows."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import yaml

from rlaif.config.columns import LabelColumns
from rlaif.config.dataset import DatasetSpec
from rlaif.config.prompts import PromptsSpec
from rlaif.config.steps import LoadStep, SamplePrinciples
from rlaif.core.labelled import LabelledPair
from rlaif.core.records import Completion, Judgement, Preference, Prompt, make_prompt
from rlaif.core.resources import find
from rlaif.data.card import Facts, sampled_by, write_card
from rlaif.data.convert import convert_pairs, find_differences
from rlaif.data.dataset import PairTables, labelled_pair, raw_row, write_tables
from rlaif.data.describe import compare_pairs, describe_data
from rlaif.data.readers import read_labelled, votes
from rlaif.data.readers.base import make_pair
from rlaif.data.rows import HubData, source_of
from rlaif.data.sources import (
    all_prompts,
    chosen_members,
    drawn,
    load_prompts,
    loaded_source,
    with_system,
)

Row = dict[str, Any]


def user(text: str) -> Any:
    return [{"role": "user", "content": text}]


def assistant(text: str) -> Any:
    return [{"role": "assistant", "content": text}]


def preference(**changes: Any) -> Preference:
    given: Row = {
        "preference_id": "r1",
        "prompt_id": "p1",
        "round": 2,
        "prompt": user("Name a fruit."),
        "chosen": assistant("A plum."),
        "rejected": assistant("No."),
        "score_chosen": 0.75,
        "score_rejected": 0.25,
        "margin": 0.5,
        "prob": 0.9,
        "weight": 0.4,
        "reason": "",
        "source": "judge j",
        "judgement_ids": [],
        "chosen_id": "c1",
        "rejected_id": "c2",
    }
    return Preference(**given | changes)


def pair_of(label: float | None, **about: Any) -> LabelledPair:
    """A plum, then a fig that is longer, by x and y, with the scores 4 and 3 of five."""
    given: Row = {
        "subset": "food",
        "authors": ("x", "y"),
        "annotator": "ann",
        "annotator_kind": "ai",
        "scores": (4.0, 3.0),
        "margin": 2.0,
    }
    texts = about.pop("texts", ("A plum.", "A very ripe fig."))
    return make_pair("f:1", user("Name a fruit."), texts, label, **given | about)


def test_a_preference_keeps_its_sides_apart() -> None:
    authors = {"c1": "writer of the better", "c2": "writer of the worse", "c3": "another"}
    pair = labelled_pair(preference(), authors, "seeds")
    assert (pair.first.text, pair.second.text) == ("A plum.", "No.")
    assert pair.authors == ("writer of the better", "writer of the worse")
    assert (pair.label, pair.scores, pair.subset) == (1.0, (0.75, 0.25), "seeds")
    assert (pair.annotator, pair.annotator_kind) == ("judge j", "ai")
    assert pair.place == "preference r1"
    people = labelled_pair(preference(source="human"), {}, "")
    assert (people.annotator_kind, people.authors, people.subset) == ("human", None, None)


def test_pairs_go_to_the_tables_of_their_split_and_format(tmp_path: Path) -> None:
    pairs = [pair_of(1.0, texts=(f"Answer {n}.", "No.")) for n in range(3)]
    # OpenRLHF has no place for a tie.
    tie = pair_of(0.5)
    with PairTables(tmp_path, ["openrlhf", "trl", "ultrafeedback", "llama_factory"]) as tables:
        for pair, held in zip((*pairs, tie), (False, True, False, True), strict=True):
            tables.add(pair, held)
        counts = {n: [s.count for s in row.values()] for n, row in tables.tables.items()}
        assert counts["ultrafeedback"] == [0, 0]
        assert {n: row for n, row in counts.items() if n != "ultrafeedback"} == {
            "openrlhf": [2, 1],
            "trl": [2, 1],
            "llama_factory": [2, 1],
        }
        assert tables.lost == {"openrlhf": 1, "trl": 1, "llama_factory": 1}
        configs = write_tables(tmp_path / "out", tables.tables, "mine")
    assert [(c["config_name"], c.get("default")) for c in configs] == [
        ("openrlhf", True),
        ("trl", None),
        ("llama_factory", None),
    ]
    for config in configs:
        files = {row["split"]: row["path"] for row in config["data_files"]}
        assert [Path(p).name.split("-")[0] for p in files.values()] == ["train", "test"]
        rows = {
            split: pyarrow.parquet.read_table(tmp_path / "out" / path).to_pylist()
            for split, path in files.items()
        }
        assert "Answer 1." in json.dumps(rows["test"]) and len(rows["train"]) == 2
    info = json.loads((tmp_path / "out/dataset_info.json").read_text("utf-8"))
    assert info["mine"]["file_name"] == configs[2]["data_files"][0]["path"]


def completion(index: int, **about: Any) -> Completion:
    given: Row = {"system_prompt": f"told {index}", "principle": f"principle {index}"}
    name, said = f"k{index}", assistant(f"Fruit {index}.")
    about = given | about
    text = about.pop("text", None)
    if text is not None:
        said = assistant(text)
    return Completion(name, "p", index, said, f"m{index}", "w", {}, "stop", **about)


def judged(subject: int, principle: str | None, score: float | None, **about: Any) -> Judgement:
    given: Row = {"status": "ok" if score is not None else "unparsed", "judge": "uf"}
    given |= about
    name = f"j{subject}{principle}{score}{given}"
    shown, status, judge = [f"k{subject}"], given.pop("status"), given.pop("judge")
    return Judgement(
        name, name, "p", "completion", shown, shown[0], judge, "a", "ai", principle, status, score,
        **given,
    )  # fmt: skip


def test_a_raw_row_has_what_each_answer_was_told_and_rated() -> None:
    prompt = make_prompt(user("Name a fruit."), source="seeds", reference="A fig.")
    answers = [completion(0), completion(1, text="I'm sorry, but I cannot help with that.")]
    answers[1] = replace_finish(answers[1], "length")
    answers.append(completion(2, system_prompt="keep", principle=None))
    answers.append(completion(3, text="  "))
    said = [
        judged(0, "honesty", 0.25, rationale="", raw="so-so"),
        judged(0, "honesty", 0.75, rationale="good"),
        judged(1, "honesty", None, status="not_applicable"),
        judged(1, "helpfulness", 1.0, rationale="helps"),
        judged(0, None, 0.5, judge="whole", rationale="fair"),
        judged(1, None, 1.0, judge="whole", rationale="fine"),
        judged(1, None, 0.0, judge="whole", rationale="poor"),
        judged(2, "honesty", 1.0, judge="whole"),
    ]
    row = raw_row(prompt, answers, said, "whole")
    assert row is not None
    assert (row["source"], row["instruction"]) == ("seeds", "Name a fruit.")
    assert (row["models"], row["correct_answers"]) == (["m0", "m1", "m2"], ["A fig."])
    one, two, three = row["completions"]
    assert [c["model"] for c in (one, two, three)] == ["m0", "m1", "m2"]
    assert [c["principle"] for c in (one, two, three)] == ["principle 0", "principle 1", ""]
    assert [c["custom_system_prompt"] for c in (one, two, three)] == ["told 0", "told 1", ""]
    assert [c["finish_reason"] for c in (one, two, three)] == ["stop", "length", "stop"]
    assert [c["refusal"] for c in (one, two, three)] == [False, True, False]
    # (1 + 9 s) of the mean of each answer's own scores, and 1 + 4 s of an aspect's.
    assert [c["overall_score"] for c in (one, two, three)] == [5.5, 5.5, 10.0]
    assert [c["critique"] for c in (one, two, three)] == ["fair", "fine", ""]
    assert one["annotations"]["honesty"] == {"Rating": "3", "Rationale": "so-so"}
    assert two["annotations"]["honesty"]["Rating"] == "N/A"
    assert two["annotations"]["helpfulness"] == {"Rating": "5", "Rationale": "helps"}
    assert three["annotations"]["honesty"] == {"Rating": None, "Rationale": ""}


def replace_finish(answer: Completion, reason: Any) -> Completion:
    from msgspec import structs

    return structs.replace(answer, finish_reason=reason)


COMPARED: Row = {"prompt": "q", "first": "a", "second": "b"}
ABOUT: Row = {
    "system": "s",
    "subset": "kind",
    "first_author": "by_a",
    "second_author": "by_b",
    "annotator": "who",
    "annotator_kind": "model",
    "first_score": "sa",
    "second_score": "sb",
}
ROW: Row = {
    "q": "Name a fruit.",
    "a": "A plum.",
    "b": "A fig.",
    "s": "Be brief.",
    "kind": "food",
    "by_a": "x",
    "by_b": "y",
    "who": "ann",
    "sa": 2,
    "sb": 5,
    "how": -3,
    "by": 0.25,
    "said": "left",
    "share": 0.2,
    "wa": 0,
    "wb": "true",
    "same": 0,
}
LABELS = {"first": "left", "second": ["right", "r"], "tie": "even"}
READ: list[tuple[Row, Row, float | None, float | None]] = [
    # (how the map says who is better, changes of the row, label, margin)
    ({"strength": "how"}, {}, 1.0, 3.0),
    ({"strength": "how", "margin": "by"}, {}, 1.0, 0.25),
    ({"strength": "how", "margin": "by"}, {"by": 0.0}, 1.0, 0.0),
    ({"strength": "how", "margin": "by"}, {"by": None}, 1.0, 3.0),
    ({"strength": "how", "margin": "by"}, {"how": None}, None, 0.25),
    ({"strength": "how"}, {"how": 2}, 0.0, 2.0),
    ({"strength": "how"}, {"how": 0}, 0.5, 0.0),
    ({"label": "share", "margin": "by"}, {}, 0.2, 0.25),
    ({"label": "said", "labels": LABELS, "margin": "by"}, {}, 1.0, 0.25),
    ({"label": "said", "labels": LABELS}, {"said": "r"}, 0.0, None),
    ({"label": "said", "labels": LABELS}, {"said": "even"}, 0.5, None),
    ({"winners": {"first": "wa", "second": "wb"}, "margin": "by"}, {}, 0.0, 0.25),
    ({"winners": {"first": "wa", "second": "wb"}}, {"wa": "1", "wb": "0"}, 1.0, None),
    (
        {"winners": {"first": "wa", "second": "wb", "tie": "same"}},
        {"wb": 0, "same": "1"},
        0.5,
        None,
    ),
    ({"winners": {"first": "wa", "second": "wb"}}, {"wb": 0}, None, None),
    ({"margin": "by"}, {}, 0.0, 0.25),
    ({}, {"sa": 5}, 0.5, None),
]


@pytest.mark.parametrize(("told", "changes", "label", "margin"), READ)
def test_a_column_map_says_who_is_better_and_by_how_much(
    told: Row, changes: Row, label: float | None, margin: float | None, tmp_path: Path
) -> None:
    columns = LabelColumns.model_validate(COMPARED | ABOUT | told)
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(ROW | changes) + "\n", "utf-8")
    [pair] = read_labelled(path, columns=columns)
    assert (pair.label, pair.margin) == (label, margin)
    assert [m["content"] for m in pair.prompt.messages] == ["Be brief.", "Name a fruit."]
    assert (pair.first.text, pair.second.text) == ("A plum.", "A fig.")
    assert (pair.subset, pair.authors) == ("food", ("x", "y"))
    assert (pair.annotator, pair.annotator_kind) == ("ann", "model")
    assert pair.scores == ((ROW | changes)["sa"], 5)


def test_ranked_answers_are_compared_by_rank_or_by_score(tmp_path: Path) -> None:
    rows = [
        {"id": i, "q": f"Q{i}", "s": f"S{i}", "kind": f"K{i}", "who": f"ann{i}"}
        | {"text": f"{i}{n}", "rank": rank, "votes": votes, "by": f"m{i}{n}"}
        for i, ranked in ((1, ((2, 10), (1, 30), (2, 20))), (2, ((1, 5), (3, 7))))
        for n, (rank, votes) in enumerate(ranked)
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    about: Row = {"prompt": "q", "system": "s", "subset": "kind", "annotator": "who"}
    inside = {"group": "id", "text": "text", "author": "by"}

    def read(**told: str) -> list[tuple[Any, ...]]:
        columns = LabelColumns.model_validate(
            about | {"annotator_kind": "rule", "ranked": inside | told}
        )
        found = []
        for p in read_labelled(path, columns=columns):
            said = [m["content"] for m in p.prompt.messages]
            assert p.annotator_kind == "rule"
            assert (said, p.subset, p.annotator) == (
                [f"S{p.first.text[0]}", f"Q{p.first.text[0]}"],
                f"K{p.first.text[0]}",
                f"ann{p.first.text[0]}",
            )
            assert p.authors == (f"m{p.first.text}", f"m{p.second.text}")
            found.append((p.first.text, p.second.text, p.label, p.scores))
        return found

    assert read(rank="rank") == [
        ("10", "11", 0.0, None),
        ("10", "12", 0.5, None),
        ("11", "12", 1.0, None),
        ("20", "21", 1.0, None),
    ]
    assert read(score="votes") == [
        ("10", "11", 0.0, (10.0, 30.0)),
        ("10", "12", 0.0, (10.0, 20.0)),
        ("11", "12", 1.0, (30.0, 20.0)),
        ("20", "21", 0.0, (5.0, 7.0)),
    ]


def test_a_file_is_described_by_its_winners_whichever_stands_first() -> None:
    pairs = [
        pair_of(0.0, scores=(1.0, 4.0), subset="b", authors=("x", "z")),
        pair_of(0.75, texts=("One two three", "one")),
        pair_of(0.5, texts=("Equal", "equal!"), annotator=None),
        pair_of(None, texts=("Same", "Same"), annotator=None, annotator_kind="human"),
        pair_of(1.0, texts=("One two three", "one"), scores=(9.0, 2.0)),
        pair_of(0.0, texts=("a b", "c d")),
    ]
    found = describe_data(pairs).to_json()
    assert [found[k] for k in ("pairs", "prompts", "ties", "unlabelled", "repeated", "same")] == [
        *(6, 1, 1, 1, 1, 1)
    ]
    # Winners: the fig (4 words over 2), three over one twice, and "c d" of the same length.
    assert found["first_better"] == 2 / 4
    assert found["chosen_words"] == {"mean": 3.0, "median": 3.0, "low": 2, "high": 4}
    assert found["rejected_words"] == {"mean": 1.5, "median": 1.5, "low": 1, "high": 2}
    assert found["longer_chosen"] == 1.0
    assert found["gap"] == {"mean": 2.5, "median": 2.0, "low": -1.0, "high": 7.0}
    assert found["subsets"] == {"food": 5, "b": 1}
    assert list(found["authors"].items()) == [("x", 6), ("y", 5), ("z", 1)]
    assert found["annotators"] == {"ann": 4, "not named (ai)": 1, "not named (human)": 1}


def test_files_are_compared_whatever_the_order_of_their_answers() -> None:
    texts = [(f"a{n}", f"b{n}") for n in range(7)]
    labels = [(1.0, 1.0), (1.0, 0.0), (0.0, 0.5), (0.25, None), (None, None), (0.5, 0.5)]
    one = [pair_of(a, texts=t) for t, (a, _) in zip(texts, labels, strict=False)]
    two = [pair_of(b, texts=t) for t, (_, b) in zip(texts, labels, strict=False)]
    one += [pair_of(0.0, texts=texts[0]), pair_of(1.0, texts=("only", "one"))]
    two += [pair_of(1.0, texts=(f"only {n}", "two")) for n in range(2)]
    for turned in (False, True):
        other = [p.swap() for p in two] if turned else two
        found = compare_pairs(one, other)
        assert (found.both, found.only_first, found.only_second) == (6, 1, 2)
        assert (found.same_label, found.turned, found.other_label) == (3, 1, 2)


def test_each_thing_that_is_lost_is_named_alone() -> None:
    pair = pair_of(0.75)
    assert find_differences(pair, pair) == []
    assert find_differences(pair, pair.swap()) == ["order"]
    for back, lost in (
        (replace(pair, prompt=make_prompt(user("Another?"))), "prompt"),
        (pair_of(0.75, texts=("A plum. ", "A very ripe fig.")), "answers"),
        (replace(pair, label=1.0), "label"),
        (replace(pair, subset="b"), "subset"),
        (replace(pair, authors=("y", "x")), "authors"),
        (replace(pair, scores=(3.0, 4.0)), "scores"),
        (replace(pair, margin=None), "margin"),
        (replace(pair, annotator=None), "annotator"),
        (replace(pair, annotator_kind="human"), "annotator_kind"),
    ):
        assert find_differences(pair, back) == [lost]
        assert set(find_differences(pair, back.swap())) == {"order", lost}
    bare = replace(pair, scores=None, margin=None)
    assert find_differences(bare, pair) == []


def test_a_conversion_counts_what_each_row_lost(tmp_path: Path) -> None:
    rows = [
        ROW | {"b": f"A fig {n}.", "sa": n, "extra": 1, "said": said}
        for n, said in enumerate(("left", "right", "even", "left"))
    ]
    path, out = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    told = {"label": "said", "labels": LABELS, "margin": "by"}
    columns = LabelColumns.model_validate(COMPARED | ABOUT | told)
    done = convert_pairs(path, out, "trl", None, columns, "skip")
    assert (done.rows, done.written, len(done.skipped)) == (4, 3, 1)
    assert "rows.jsonl:3" in done.skipped[0]
    assert done.lost == {
        "subset": 3,
        "authors": 3,
        "annotator": 3,
        "annotator_kind": 3,
        "order": 1,
    }
    assert done.dropped == ["extra", "how", "same", "share", "wa", "wb"]
    assert [p.label for p in read_labelled(out, "trl")] == [1.0, 1.0, 1.0]


PROMPTS = [
    {"q": "one two three four five", "t": ["b"], "r": "R1", "part": "test", "source": "s1"},
    {"q": "one", "t": "a", "r": "R2", "part": "train", "source": "s2"},
    {"q": "two", "t": None, "r": None, "part": "validation", "source": None},
    {"q": "three", "t": ["a", "b"], "r": "R4", "part": None, "source": "s4"},
    {"q": "two", "t": ["later"], "r": "R5", "part": "train", "source": "s5"},
    {"q": "four", "t": [], "r": "R6", "part": "test", "source": "s6"},
]


def test_prompts_are_read_by_their_columns_and_split_by_theirs(tmp_path: Path) -> None:
    path = tmp_path / "some.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in PROMPTS), "utf-8")
    columns = {"prompt": "q", "tags": "t", "reference": "r", "split": "part"}
    spec = PromptsSpec.model_validate(
        {"path": "some.jsonl", "columns": columns, "holdout": 1, "max_words": 4, "limit": 1}
    )
    found = load_prompts(spec, tmp_path / "experiment.yaml")
    declared = {make_prompt(user(q)).prompt_id for q in ("two", "four")}
    assert found.duplicates == 1
    assert [p.prompt_id for p in found.heldout] == [min(declared)]
    # Those that are declared and not needed are not trained on; the limit takes the first ones.
    assert [p.question for p in found.train] == ["one"]
    more = load_prompts(spec.model_copy(update={"limit": None}), tmp_path / "experiment.yaml")
    about = {p.question: (p.tags, p.reference, p.source) for p in more.train}
    assert about == {"one": (["a"], "R2", "s2"), "three": (["a", "b"], "R4", "s4")}
    every = {p.question: p for p in all_prompts(spec, tmp_path / "experiment.yaml")}
    assert len(every) == 5 and every["four"].source == "s6"
    # Of a repeated prompt without any reading of splits the last row stands.
    assert every["two"].tags == ["later"]


def test_the_first_of_equal_prompts_is_kept_and_a_source_is_the_files_name(tmp_path: Path) -> None:
    path = tmp_path / "some.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in PROMPTS), "utf-8")
    columns = {"prompt": "q", "tags": "t", "reference": "r"}
    spec = PromptsSpec.model_validate({"path": str(path), "columns": columns, "holdout": 2})
    found = load_prompts(spec)
    every = {p.question: p for p in found.every()}
    assert (every["two"].tags, every["two"].reference) == ([], None)
    assert every["two"].source == "some.jsonl"
    # No column says so: the two of the smallest ids are held out.
    assert {p.prompt_id for p in found.heldout} == set(
        sorted(p.prompt_id for p in every.values())[:2]
    )


def test_a_principle_is_drawn_by_the_shares_of_the_source_then_of_the_tags() -> None:
    texts = {name: [f"{name} 1", f"{name} 2"] for name in ("a", "b", "c")}
    wanted = SamplePrinciples.model_validate(
        {
            "texts": texts,
            "shares": {"src": {"a": 1}, "tag": {"b": 1}},
            "default": {"c": 3, "b": 1},
        }
    )

    def prompt(source: str, tags: list[str], n: int = 0) -> Prompt:
        return make_prompt(user(f"Q{n}"), source=source, tags=tags)

    assert drawn(wanted, prompt("src", ["tag"]), 1).principle == "a"
    assert drawn(wanted, prompt("other", ["none", "tag"]), 1).principle == "b"
    told = [drawn(wanted, prompt("other", [], n), 7, "s", n) for n in range(200)]
    counts = {name: sum(t.principle == name for t in told) for name in ("b", "c")}
    assert sum(counts.values()) == 200 and 120 < counts["c"] < 180
    assert {t.text for t in told} == {t for name in ("b", "c") for t in texts[name]}
    assert all(t.text in texts[t.principle] for t in told)
    again = [drawn(wanted, prompt("other", [], n), 7, "s", n) for n in range(200)]
    assert told == again != [drawn(wanted, prompt("other", [], n), 8, "s", n) for n in range(200)]


def test_members_of_a_pool_are_drawn_by_prompt_and_seed() -> None:
    drawn_by = {
        (p, s): chosen_members(5, 2, p, s) for p in ("p1", "p2", "p3") for s in (1, 2, 3, 4)
    }
    assert all(row == sorted(set(row)) and len(row) == 2 for row in drawn_by.values())
    assert len({tuple(drawn_by["p1", s]) for s in (1, 2, 3, 4)}) > 1
    assert len({tuple(drawn_by[p, 1]) for p in ("p1", "p2", "p3")}) > 1
    assert {i for row in drawn_by.values() for i in row} == set(range(5))


def test_a_system_turn_is_added_or_continued() -> None:
    bare, told = user("Q"), [{"role": "system", "content": "Old."}, *user("Q")]
    assert with_system(bare, "New.") == [{"role": "system", "content": "New."}, *user("Q")]
    assert with_system(told, "New.") == [{"role": "system", "content": "Old.\n\nNew."}, *user("Q")]


def test_a_source_is_a_dataset_with_its_split_and_configuration_or_a_file(tmp_path: Path) -> None:
    assert source_of("o/n", "test", "small") == HubData("o/n", "test", "small")
    assert source_of(str(tmp_path), "test", "small") == tmp_path


def test_a_load_step_reads_its_own_part_of_a_dataset_or_the_file_that_is_named(
    tmp_path: Path,
) -> None:
    keys = {"dataset": "o/n", "dataset_split": "late", "dataset_config": "small"}
    step = LoadStep.model_validate({"type": "pairs", "format": "trl", **keys})
    assert loaded_source(step, None, None) == HubData("o/n", "late", "small")
    (tmp_path / "pairs.jsonl").write_text("")
    named = LoadStep.model_validate({"type": "pairs", "format": "trl", "path": "pairs.jsonl"})
    assert loaded_source(named, "pairs.jsonl", tmp_path / "x.yaml") == tmp_path / "pairs.jsonl"


def test_a_file_is_found_beside_its_namer_then_above_it_then_among_the_shipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, beside = tmp_path / "cwd", tmp_path / "top/experiments"
    for folder in (here, beside):
        folder.mkdir(parents=True)
    monkeypatch.chdir(here)
    places = [here, beside, tmp_path / "top"]
    for place in places:
        (place / "own.yaml").write_text("x")
    for place in places:
        assert find("own.yaml", beside / "e.yaml") == place / "own.yaml"
        (place / "own.yaml").unlink()
    (tmp_path / "own.yaml").write_text("x")
    with pytest.raises(Exception, match=r"own\.yaml: not found; looked in") as raised:
        find("own.yaml", beside / "e.yaml")
    listed = str(raised.value).splitlines()[1:-1]
    assert [line.strip() for line in listed] == [str(p / "own.yaml") for p in places]


def test_a_sample_step_is_told_by_each_member_of_its_pool() -> None:
    step: Row = {
        "id": "draw",
        "by": "policy",
        "system_prompt": "Be kind.",
        "temperature": 0.7,
        "max_new_tokens": 50,
        "pool": [],
        "principles": None,
    }
    assert sampled_by(step) == [
        "draw: policy, temperature 0.7, at most 50 tokens, system prompt: Be kind."
    ]
    members = [
        {"by": "one", "temperature": 0.0, "max_new_tokens": 9, "system_prompt": "Be cool."},
        {"by": "two", "temperature": None, "max_new_tokens": None, "system_prompt": None},
    ]
    drawing = {"texts": {"a": ["x", "y"], "b": ["z"]}}
    assert sampled_by(step | {"pool": members, "principles": drawing}) == [
        "draw/0: one, temperature 0.0, at most 9 tokens, system prompt: Be cool.",
        "draw/1: two, temperature 0.7, at most 50 tokens, system prompt: Be kind.",
        "The system prompt of each answer also has one principle, drawn from: a: x / y; b: z",
    ]


def test_a_card_says_every_fact_in_its_own_section() -> None:
    spec = DatasetSpec.model_validate(
        {"license": "mit", "language": ["de", "en"], "limits": ["Small."], "sources": ["Here."]}
    )
    facts = Facts(
        title="Plums",
        configs=[{"config_name": "trl", "data_files": []}, {"config_name": "verl"}],
        pairs={"train": 999, "test": 1},
        prompts={"train": 12, "test": 7},
        models=[{"model": "m1", "weights": "w1", "answers": "31"}],
        judges=[{"judge": "j1", "kind": "rating", "hash": "h1"}],
        constitution="rules v2",
        funnel=[{"step": "s1", "what": "pairs", "came": 44, "left": 43, "why": "cut: 1"}],
        spread={"words": "5 (3 to 8)", "gap": "0.5"},
        limits=["Machine made."],
        generators=["How sampled."],
        pairing=["How paired."],
        example={"Prompt": "Q?", "Chosen (4)": "x" * 601, "Rejected (2)": "no"},
        lost={"verl": 3, "openrlhf": 2},
        agreement=["People agree."],
        version="9.9",
    )
    card = write_card(spec, facts)
    front, _, body = card.removeprefix("---\n").partition("---\n")
    assert yaml.safe_load(front) == {
        "license": "mit",
        "pretty_name": "Plums",
        "language": ["de", "en"],
        "task_categories": ["text-generation"],
        "tags": ["preference", "rlaif", "synthetic"],
        "size_categories": ["1K<n<10K"],
        "configs": [dict(c) for c in facts.configs],
    }
    title, *sections = body.strip().split("\n## ")
    assert "999 pairs of 12 prompts (train), 1 pair of 7 prompts (test)" in title
    assert "Made with rlaif 9.9." in title and "`trl`, `verl`" in title
    assert "2 not in `openrlhf`, 3 not in `verl`" in title
    told = {text.partition("\n")[0]: text for text in sections}
    assert f"**Chosen (4):** {'x' * 600} ..." in told["An example"]
    assert "| words | gap |" in told["What is in it"]
    assert "| 5 (3 to 8) | 0.5 |" in told["What is in it"]
    assert "| s1 | pairs | 44 | 43 | cut: 1 |" in told["How it was made"]
    writers, labellers = told["Who wrote the answers"], told["Who labelled"]
    assert "| m1 | w1 | 31 |" in writers and "- How sampled." in writers
    assert "| j1 | rating | h1 |" in labellers and "- How paired." in labellers
    assert "Constitution: rules v2." in labellers and "- People agree." in labellers
    assert told["Known limits"].split("\n\n")[1].splitlines() == ["- Machine made.", "- Small."]
    assert "- Here." in told["Sources and licences"]
    none = write_card(spec, replace(facts, agreement=[], pairs={"train": 998, "test": 1}))
    assert "how far people agree is not known" in none and "n<1K" in none


def test_what_a_model_could_learn_amiss_is_warned_of() -> None:
    def warned(*pairs: LabelledPair) -> list[str]:
        return [text.partition(":")[0] for text in describe_data(pairs).warnings]

    alike = [("a", "b"), ("c", "d"), ("e", "f")]
    assert warned(*(pair_of(None if n else 0.5, texts=t) for n, t in enumerate(alike))) == [
        "no pair has a winner"
    ]
    assert warned(pair_of(1.0, texts=alike[0]), pair_of(0.5, texts=alike[1])) == []
    for label, place in ((0.9, "first"), (0.0, "second")):
        assert warned(*(pair_of(label, texts=t) for t in alike)) == [
            f"the better answer is always the {place}"
        ]
    # The longer one wins in three of four, which is still let pass, then in four of five.
    longer = [
        pair_of(float(n > 1), texts=(f"long {n}", "no") if n > 1 else ("no", f"long {n}"))
        for n in range(3)
    ]
    shorter = pair_of(0.0, texts=("a long one", "no"))
    assert warned(*longer, shorter) == []
    (said,) = warned(*longer, pair_of(1.0, texts=("another long", "no")), shorter)
    assert said.startswith("in 80% of the pairs of unequal length the chosen answer is the longer")
    same = pair_of(0.5, texts=("a", "a"))
    assert warned(*longer, shorter, same, same) == [
        "2 pairs have the same text on both sides",
        "1 pairs repeat an earlier one",
    ]


def test_who_voted_is_named_where_one_person_decided() -> None:
    def read(*verdicts: str) -> LabelledPair:
        said = [{"annotator": f"ann{n}", "verdict": v} for n, v in enumerate(verdicts)]
        sides = {"a": assistant("A plum."), "b": assistant("No.")}
        row = {"votes": said, "prompt": user("Q?"), "probability": 0.25} | sides
        (pair,) = votes.read_pair(row, "v.db: item i")
        return pair

    found = [read("both_bad", "a", "skip"), read("tie", "skip", "b"), read("both_bad", "skip")]
    assert [(p.label, p.annotator) for p in found] == [
        (1.0, "ann1"),
        (0.25, "2 people"),
        (None, None),
    ]
    assert {p.weight for p in found} == {4.0}
