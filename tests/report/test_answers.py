"""The answer of an experiment with arms, and where a judge that labelled an arm is marked."""

from __future__ import annotations

from typing import Any

import pytest

from rlaif.metrics.intervals import IntervalJson
from rlaif.pipeline.experiment_file import Experiment
from rlaif.report.arms import answer_sentences, mark_judges, mark_of, negate_interval
from rlaif.report.view import ArmRow

ARMS: dict[str, ArmRow] = {
    "human": {"labels": "human", "flip": 0.0, "judges": []},
    "ai": {"labels": "ai", "flip": 0.0, "judges": ["own"]},
    "coin": {"labels": "random", "flip": 0.0, "judges": []},
    "turned": {"labels": "human", "flip": 0.25, "judges": []},
}


def iv(mean: float, half: float = 0.04, n: int = 64) -> IntervalJson:
    return {"mean": mean, "low": mean - half, "high": mean + half, "n": n, "se": half / 2, "df": 63}


def row(arms: list[str], deltas: dict[str, dict[str, IntervalJson]]) -> dict[str, Any]:
    return {"arms": arms, "labels": {}, "deltas": deltas}


def test_neutral_judges_and_people_answer_and_the_arms_own_labeller_does_not() -> None:
    deltas = {
        "score/own": iv(0.4),
        "score/other": iv(0.2),
        "score/other/brief": iv(0.9),
        "reward_accuracy/human": iv(-0.2),
        "length/words": iv(7.0),
    }
    found = answer_sentences([row(list(ARMS), {"human/ai": deltas})], ARMS, 0.05)
    assert len(found) == 2
    assert found[0].startswith("Arm ai is better than arm human in score/other (+0.200")
    assert found[1].startswith("Arm ai is worse than arm human in reward_accuracy/human (-0.200")


def test_the_difference_is_ai_less_people_whichever_arm_comes_first() -> None:
    arms = dict(reversed(ARMS.items()))
    deltas = {"score/other": iv(0.2), "win_rate/other": iv(0.9)}
    (found,) = answer_sentences([row(list(arms), {"ai/human": deltas})], arms, 0.05)
    assert found.startswith("Arm ai is worse than arm human in score/other (-0.200")
    assert negate_interval(iv(0.2)) == iv(-0.2)


@pytest.mark.parametrize(
    ("other", "answered"),
    [({}, 1), ({"set": {"steps.train.beta": 0.2}}, 0), ({"labels_used": 100}, 0)],
)
def test_arms_that_differ_in_more_than_their_labels_are_no_answer(
    other: dict[str, Any], answered: int
) -> None:
    common = {"set": {"steps.train.beta": 0.1}, "labels_used": 200}
    arms: Any = {"human": ARMS["human"] | common, "ai": ARMS["ai"] | common | other}
    rows = [row(list(arms), {"human/ai": {"score/other": iv(0.2)}})]
    assert len(answer_sentences(rows, arms, 0.05)) == answered


def test_without_a_neutral_judge_that_is_said() -> None:
    (found,) = answer_sentences([row(list(ARMS), {"human/ai": {"score/own": iv(0.4)}})], ARMS, 0.05)
    assert found.startswith(
        "No neutral judge evaluates arm ai against arm human (who labelled: own)"
    )


def test_nothing_is_asked_without_people_or_without_ai() -> None:
    for left in ("human", "ai"):
        arms = {name: arm for name, arm in ARMS.items() if name != left}
        assert answer_sentences([row(list(arms), {})], arms, 0.05) == []
    assert answer_sentences([], ARMS, 0.05) == []


def test_a_judge_that_labelled_is_marked_wherever_it_evaluates() -> None:
    arms = ARMS | {"again": {"labels": "own", "flip": 0.0, "judges": ["own"]}}
    marked = mark_judges(arms)
    assert marked == {"own": "labelled arms ai, again"}
    for metric in ("score/own", "score/own/brief", "win_rate/own", "win_rate_vs_initial/own"):
        assert mark_of(metric, marked) == "labelled arms ai, again"
    assert [mark_of(m, marked) for m in ("score/other", "length/words", "check/own")] == [""] * 3


@pytest.mark.parametrize(
    ("labels", "weights", "expected"),
    [
        ("human", None, []),
        ("random", None, []),
        ("ai", None, ["one", "two"]),
        ("ai", {"one": 1.0, "two": 0.0}, ["one"]),
        ("two", None, ["two"]),
    ],
)
def test_labellers(labels: str, weights: dict[str, float] | None, expected: list[str]) -> None:
    judge = {"kind": "rules"}
    experiment = Experiment.model_validate(
        {
            "name": "e",
            "models": {"policy": {"path": "none", "engine": "fake"}},
            "constitution": "c.yaml",
            "prompts": {"holdout": 1},
            "arms": {"a": {"labels": labels}},
            "judges": [{"id": "neutral", **judge}],
            "steps": [
                {"load": {"id": "pairs", "type": "pairs", "path": "p.jsonl"}},
                {"judge": {"id": "one", **judge}},
                {"judge": {"id": "two", **judge}},
                {"label": {"weights": weights} if weights else {}},
                {"train": {"method": "dpo"}},
                {"evaluate": {}},
            ],
        }
    )
    assert experiment.labellers(experiment.arms["a"]) == expected
