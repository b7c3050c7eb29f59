"""Feedback of files and runs side by side: joined by content, golden figures, invariances."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlaif.analysis.comparison.agree import length_bin
from rlaif.analysis.comparison.compute import Choices, compare_inputs
from rlaif.analysis.comparison.people import text_features
from rlaif.analysis.comparison.policies import judge_roles
from rlaif.core.errors import ConfigError, RlaifError
from rlaif.core.records import make_prompt
from rlaif.data.given import read_given
from rlaif.data.readers.base import answer_id, assistant_turns, user
from tests.support.planted_feedback import Planted, completion, verdict, write_planted

ARMS = Path(__file__).parent.parent / "first_version" / "arms" / "run"


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return str(path)


def label_rows(count: int, right: int) -> list[dict[str, str]]:
    """Pairs in TRL's form; after the first `right`, the other answer is chosen."""
    rows = []
    for n in range(count):
        good, bad = f"Good answer {n}.", f"A bad and longer answer {n}."
        chosen, rejected = (good, bad) if n < right else (bad, good)
        rows.append({"prompt": f"Question {n}, “ünï”?", "chosen": chosen, "rejected": rejected})
    return rows


def verdict_rows(count: int, **changes: Any) -> list[dict[str, Any]]:
    """A judge's judgements that prefer the good answer, shown second, in its own words for ids."""
    rows = []
    for n in range(count):
        asked = user(f"Question {n}, “ünï”?")
        texts = (f"A bad and longer answer {n}.", f"Good answer {n}.")
        ids = [answer_id(asked, assistant_turns(text)) for text in texts]
        row = verdict(make_prompt(asked).prompt_id, ids, "judge", "ai", 0.2)
        rows.append({**row, "judge_hash": "h", **changes})
    return rows


def test_pairs_are_joined_by_content_and_not_by_place(tmp_path: Path) -> None:
    """Six of eight pairs alike: 0.75, whatever the order of rows, files and answers."""
    people = label_rows(8, 6)
    one = write(tmp_path / "people.jsonl", people)
    two = write(tmp_path / "judge.jsonl", verdict_rows(8)[::-1])
    result = compare_inputs([one, two])
    (row,) = result["agreement"]
    assert (row["first"], row["second"], row["pairs"]) == ("people", "judge", 8)
    assert row["figures"]["agreement"]["mean"] == 0.75
    other = compare_inputs([two, write(tmp_path / "people2.jsonl", people[::-1])])
    assert other["agreement"][0]["figures"] == row["figures"]


def test_other_ids_and_the_order_shown_change_nothing(tmp_path: Path) -> None:
    rows, answers = [], []
    for n, row in enumerate(verdict_rows(8)):
        names = {row["shown"][0]: f"a{n}", row["shown"][1]: f"b{n}"}
        shown = [names[name] for name in row["shown"]][::-1]
        rows.append({**row, "shown": shown, "subject": shown[0], "prob_first": 0.8})
        texts = (f"A bad and longer answer {n}.", f"Good answer {n}.")
        answers += [
            completion(name, row["prompt_id"], text)
            for name, text in zip((f"a{n}", f"b{n}"), texts, strict=True)
        ]
    people = write(tmp_path / "people.jsonl", label_rows(8, 6))
    renamed = [write(tmp_path / "judge.jsonl", rows), write(tmp_path / "texts.jsonl", answers)]
    plain = compare_inputs([people, write(tmp_path / "same.jsonl", verdict_rows(8))])
    assert (
        compare_inputs([people, *renamed])["agreement"][0]["figures"]
        == plain["agreement"][0]["figures"]
    )


def test_missing_is_missing_and_ties_are_ties(tmp_path: Path) -> None:
    rows = verdict_rows(8)
    rows[0] |= {"status": "unparsed", "prob_first": None}
    rows[1] |= {"status": "tie", "prob_first": 0.5}
    result = compare_inputs(
        [write(tmp_path / "people.jsonl", label_rows(8, 6)), write(tmp_path / "j.jsonl", rows)]
    )
    judge = next(row for row in result["sources"] if row["name"] == "judge")
    assert (judge["asked"], judge["decided"], judge["ties"]) == (8, 7, 1)
    figures = result["agreement"][0]["figures"]
    # Of seven: one tie, four alike, two not.
    assert figures["agreement"]["mean"] == pytest.approx(4 / 6)
    assert figures["agreement_half"]["mean"] == pytest.approx(4.5 / 7)
    assert figures["agreement_three_way"]["mean"] == pytest.approx(4 / 7)


def test_margins_are_those_of_the_second_source(tmp_path: Path) -> None:
    """People say 0 or 1; how sure the judge is tells its pairs apart."""
    rows = verdict_rows(21)
    for row, prob in zip(rows, [0.55, *[0.45] * 5, *[0.3] * 7, *[0.2] * 8], strict=True):
        row["prob_first"] = prob
    result = compare_inputs(
        [write(tmp_path / "people.jsonl", label_rows(21, 17)), write(tmp_path / "j.jsonl", rows)]
    )
    (row,) = result["agreement"]
    assert row["second"] == "judge"
    # The judge is for the bad answer in the first pair, and people are in the last four.
    assert [
        (part["name"], part["pairs"], part["figures"]["agreement"]["mean"])
        for part in row["parts"]["margin"]
    ] == [
        ("below 0.2", 6, pytest.approx(5 / 6)),
        ("0.2 to 0.5", 7, 1.0),
        ("0.5 to 0.9", 8, 0.5),
    ]


def test_a_random_person_by_hand(tmp_path: Path) -> None:
    """Seven pairs with votes 1, 1, 0, and the judge says 1: it agrees with 2 of 3, and two people
    agree in 1 of 3 ways; with a tie for the 0, (2 + 1/2) / 3 and (1 + 1/2 + 1/2) / 3."""
    for last, judged, person in ((0.0, 2 / 3, 1 / 3), (0.5, 2.5 / 3, 2 / 3)):
        people, machine = [], []
        for n in range(7):
            ids = [f"a{n}", f"b{n}"]
            votes = {"ann": 1.0, "bob": 1.0, "cy": last}
            people += [verdict(f"p{n}", ids, who, "human", vote) for who, vote in votes.items()]
            machine.append(verdict(f"p{n}", ids, "judge", "ai", 0.9))
        # One vote tells nothing of people among themselves.
        people.append(verdict("q", ["c", "d"], "ann", "human", 0.0))
        machine.append(verdict("q", ["c", "d"], "judge", "ai", 0.9))
        paths = [write(tmp_path / "v.jsonl", people), write(tmp_path / "j.jsonl", machine)]
        (row,) = compare_inputs(paths)["beside"]
        assert row["pairs"] == 7
        assert row["figures"]["judge"]["mean"] == pytest.approx(judged)
        assert row["figures"]["person"]["mean"] == pytest.approx(person)
        assert row["figures"]["difference"]["mean"] == pytest.approx(judged - person)


def test_principles_are_compared_with_their_own(tmp_path: Path) -> None:
    people, machine = [], []
    for n in range(8):
        ids = [f"a{n}", f"b{n}"]
        for principle, vote, prob in (("kind", 1.0, 0.9), ("brief", 1.0, 0.1)):
            people.append(verdict(f"p{n}", ids, "ann", "human", vote, None, principle))
            machine.append(verdict(f"p{n}", ids, "judge", "ai", prob, None, principle))
    paths = [write(tmp_path / "v.jsonl", people), write(tmp_path / "j.jsonl", machine)]
    parts = compare_inputs(paths)["agreement"][0]["parts"]["principle"]
    assert {p["name"]: p["figures"]["agreement"]["mean"] for p in parts} == {"brief": 0, "kind": 1}


def test_the_win_rate_at_equal_length_is_the_other_ones_in_the_other_order(tmp_path: Path) -> None:
    """The second wins 18 of 24, with answers that are now longer and now shorter."""
    answers = {
        name: write(
            tmp_path / f"{name}.jsonl",
            [
                {"prompt": f"Q{n}?", "completion": f"{name} says {n}" + " more" * ((n + late) % 3)}
                for n in range(24)
            ],
        )
        for name, late in (("one", 0), ("two", 1))
    }
    rows = []
    for name, path in answers.items():
        for n, answer in enumerate(read_given(Path(path)).completions):
            score = 0.5 if name == "one" else 0.1 if n % 4 == 0 else 0.9
            row = verdict(answer.prompt_id, [answer.completion_id], "gold", "ai", 0.9)
            rows.append({**row, "judgement_id": f"j{name}{n}", "prob_first": None, "score": score})
    paths = [*answers.values(), write(tmp_path / "gold.jsonl", rows)]
    (row,) = compare_inputs(paths, Choices(between=(("one", "two"),)))["contests"]
    (turned,) = compare_inputs(paths, Choices(between=(("two", "one"),)))["contests"]
    assert row["equal_note"] is None
    assert row["won"]["mean"] == 0.75 and row["equal"]["mean"] > 0.6
    assert turned["equal"]["mean"] == pytest.approx(1 - row["equal"]["mean"])
    assert turned["equal"]["low"] == pytest.approx(1 - row["equal"]["high"])


def test_people_without_names_are_several_votes_and_no_test(tmp_path: Path) -> None:
    rows = label_rows(8, 8) + label_rows(8, 8) + label_rows(8, 2)
    paths = [write(tmp_path / "v.jsonl", rows), write(tmp_path / "j.jsonl", verdict_rows(8))]
    result = compare_inputs(paths)
    assert result["beside"][0]["figures"]["person"]["n"] == 8
    assert result["alt_test"][0]["refusal"].startswith("people have no names")
    assert result["disagreement"][0]["refusal"] == "8 pairs in common; 200 are needed"


def test_models_head_to_head_by_scores_comparisons_and_a_third(tmp_path: Path) -> None:
    """The second wins 6 of 8 prompts by score: 0.25 above one half; against a third, the difference
    of win rates."""
    answers = {
        name: write(
            tmp_path / f"{name}.jsonl",
            [{"prompt": f"Q{n}?", "completion": f"{name} says {n}{more}"} for n in range(8)],
        )
        for name, more in (("one", ""), ("two", " again"))
    }
    rows = []
    for name, path in answers.items():
        for n, answer in enumerate(read_given(Path(path)).completions):
            score = 0.5 if name == "one" else 0.9 if n < 6 else 0.1
            row = verdict(answer.prompt_id, [answer.completion_id], "gold", "ai", 0.9)
            rows.append({**row, "judgement_id": f"j{name}{n}", "prob_first": None, "score": score})
    paths = [*answers.values(), write(tmp_path / "gold.jsonl", rows)]
    (row,) = compare_inputs(paths, Choices(between=(("one", "two"),)))["contests"]
    assert (row["first"], row["second"], row["won"]["mean"]) == ("one", "two", 0.75)
    assert row["difference"]["mean"] == pytest.approx(0.25)
    (turned,) = compare_inputs(paths, Choices(between=(("two", "one"),)))["contests"]
    assert (turned["won"]["mean"], turned["difference"]["mean"]) == (0.25, pytest.approx(-0.25))
    assert turned["difference"]["low"] == pytest.approx(-row["difference"]["high"])
    assert (row["lengths"], turned["lengths"]) == ([10, 16], [16, 10])
    # All of the second's are the longer ones, or the other way round the shorter ones.
    notes = [one["equal_note"].rpartition(": ")[2] for one in (row, turned)]
    assert notes == ["every answer is longer", "every answer is shorter"]

    battles = [
        {
            "instruction": f"Q{n}?",
            "output_1": "base",
            "generator_1": "base",
            "output_2": f"{name} {n}",
            "generator_2": name,
            "annotator": "gpt",
            "preference": 1 + (0.75 if name == "two" and n < 4 else 0.25),
        }
        for name in ("one", "two")
        for n in range(8)
    ]
    found = compare_inputs(
        [write(tmp_path / "b.jsonl", battles)], Choices(between=(("one", "two"),))
    )
    # 0.75 of the prompts won are 0.25 more than one half.
    rate, won = (a["sentence"] for a in found["answers"] if a["question"] == "policies")
    assert "win rate against base" in rate and "+0.250" in rate
    assert "share of prompts won, less one half" in won and "+0.250" in won
    row = next(r for r in found["contests"] if r["opponent"] == "base")
    assert (row["first"], row["second"]) == ("one", "two")
    assert row["difference"]["mean"] == pytest.approx(0.25)
    assert row["won"]["mean"] == pytest.approx(0.75)


def test_planted_files_from_end_to_end(tmp_path: Path) -> None:
    paths = write_planted(tmp_path, Planted(pairs=240, length_bias=2.0))
    result = compare_inputs([str(path) for path in paths.values()])
    assert [row["question"] for row in result["answers"]] == ["labels", "stand-in", "cause"]
    cause = result["answers"][2]["sentence"]
    assert "is associated with length (" in cause
    assert "not measurably with position" in cause
    kinds = set(result["agreement"][0]["parts"])
    assert kinds == {"tag", "length gap", "margin"}


def test_a_run_brings_its_judges_arms_and_labels() -> None:
    result = compare_inputs([str(ARMS)])
    assert {row["name"] for row in result["sources"]} >= {"pairs", "checks", "arm human", "arm ai"}
    (run,) = result["runs"]
    assert run["roles"] == {"checks": "labelled arm ai"}
    assert [row["arm"] for row in run["labels"]] == ["human", "ai", "flipped"]
    # What an arm was trained on is no judge.
    assert [row["judge"] for row in result["beside"]] == ["checks"]
    assert "cannot be told" in result["answers"][0]["sentence"]


def test_a_reward_model_of_peoples_labels_is_told_from_a_neutral_one() -> None:
    def step(
        kind: str, name: str, inputs: list[str] | dict[str, str], **models: Any
    ) -> dict[str, Any]:
        if isinstance(inputs, list):
            inputs = {f"preferences/{n}": digest for n, digest in enumerate(inputs)}
        found = {"kind": kind, "id": name, "hash": name, "arms": ["one"], "inputs": inputs}
        return {**found, "models": models}

    steps = [
        step("load", "people", []),
        step("pair", "made", []),
        step("distill", "taught", ["people"], made=["taught1", "train:taught"]),
        step("distill", "own", ["made"], made=["own1", "train:own"]),
        # As of an evaluation in a later stage, with a set of prompts of its own.
        step("judge", "evaluate-rl.rm", [], by=["M0", "weights:0"]),
        step("judge", "evaluate-rl.rm.hard", [], by=["taught1", "train:taught"]),
        step("judge", "evaluate-rl.other", [], by=["own1", "train:own"]),
        step("judge", "evaluate-rl.drift.other", [], by=["taught1", "train:taught"]),
        step("judge", "evaluate-rl.pairs.other", [], by=["taught1", "train:taught"]),
        step("judge", "evaluate-rl.rules", []),
        step("judge", "unasked", []),
        step(
            "evaluate",
            "evaluate-rl",
            {
                "hard:judgements/rm": "evaluate-rl.rm.hard",
                "initial/hard:judgements/rm": "evaluate-rl.rm",
                "judgements/other": "evaluate-rl.other",
                "judgements/rules": "evaluate-rl.rules",
                "drift/other": "evaluate-rl.drift.other",
                "pair_judgements/other": "evaluate-rl.pairs.other",
                "train/judgements/unasked": "unasked",
            },
        ),
    ]
    roles = judge_roles(steps, {})
    assert roles == {
        "rm": "reward model trained on people's labels (neutral)",
        "other": "neutral",
        "rules": "neutral",
    }


def test_two_runs_are_compared_by_what_both_measured_alike(tmp_path: Path) -> None:
    result = compare_inputs([f"left={ARMS}", f"right={ARMS}"])
    names = {(row["first"], row["second"]) for row in result["across"]}
    assert ("left/human", "right/ai") in names
    assert {row["difference"]["mean"] for row in result["across"]} == {0.0}


@pytest.mark.parametrize(
    ("ratio", "word"),
    [(("x" * 10, "x" * 12), "within 1.25 times"), (("x", "xx"), "1.25 to 2 times")],
)
def test_bins_of_length(ratio: tuple[str, str], word: str) -> None:
    assert length_bin(ratio) == word
    assert length_bin(("", "x")) == "beyond 2 times"
    assert length_bin(("", "")) == "within 1.25 times"


def test_features_turn_their_sign_with_the_answers() -> None:
    texts = [("# Title\n- a\n- b", "I'm sorry, but I can't help with that."), ("a", "a")]
    one = text_features(texts)
    other = text_features([(b, a) for a, b in texts])
    for name, columns in one.items():
        assert columns == pytest.approx(-other[name])
    assert one["refusal"].tolist() == [[-1.0], [0.0]]


def test_inputs_with_nothing_in_common_say_what_they_hold(tmp_path: Path) -> None:
    one = write(tmp_path / "one.jsonl", label_rows(3, 3))
    with pytest.raises(RlaifError, match=r"no two sources .* Sources: one \(3 pairs\)"):
        compare_inputs([one])
    strange = write(tmp_path / "j.jsonl", [verdict("p", ["x", "y"], "judge", "ai", 1.0)])
    with pytest.raises(RlaifError, match="1 judgements are of answers whose texts are in no input"):
        compare_inputs([one, strange])


def test_files_that_hold_nothing_or_something_else(tmp_path: Path) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    with pytest.raises(ConfigError, match="there are no rows in this file"):
        compare_inputs([str(empty)])
    with pytest.raises(ConfigError, match="no known format"):
        compare_inputs([write(tmp_path / "odd.jsonl", [{"x": 1}])])
    with pytest.raises(RlaifError, match="--between one three: no source compares"):
        compare_inputs(
            [write(tmp_path / "a.jsonl", label_rows(3, 3))], Choices(between=(("one", "three"),))
        )


def test_one_name_in_two_inputs_is_two_sources_where_settings_differ(tmp_path: Path) -> None:
    other = verdict_rows(8, judge_hash="another")
    paths = [write(tmp_path / "a.jsonl", verdict_rows(8)), write(tmp_path / "b.jsonl", other)]
    names = [row["name"] for row in compare_inputs(paths)["sources"]]
    assert names == ["a/judge", "b/judge"]
