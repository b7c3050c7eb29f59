"""What judges hand on whose verdicts rest on several answers or on rewards: the weights of jurors,
members and principles, whose answer is whose, and the models' order."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from pydantic import TypeAdapter

from rlaif.config.models import ThinkingSpec
from rlaif.constitution.model import Constitution
from rlaif.core.chat import WAS_CUT
from rlaif.core.records import make_prompt
from rlaif.engines.base import GenerateResult, RewardResult, ScoreResult
from rlaif.judges.base import LIMIT, Answered, read_answer, verdicts_of
from rlaif.judges.build import JudgeStep, build_judge
from rlaif.judges.questions import judgement_notes
from tests.support.wiring import (
    ONE,
    PROMPT,
    SEED,
    THREE,
    TWO,
    asked,
    completion,
    judge_of,
    labels,
    said,
    template,
)


@pytest.mark.parametrize(("per_token", "rewards"), [(False, [1.0, -0.5]), (True, [0.0, -0.25])])
def test_an_implicit_reward_is_the_model_less_its_reference(
    per_token: bool, rewards: Sequence[float]
) -> None:
    spec = {"kind": "implicit_reward", "by": "new", "reference": "old", "beta": 0.5}
    model: Any = TypeAdapter(JudgeStep).validate_python(spec | {"per_token": per_token})
    assert model.asks() == {"by": "new", "reference": "old"}
    judge: Any = build_judge(model)
    calls = judge.calls(PROMPT, [TWO, ONE], SEED)
    logprobs = {
        ("by", 0): [-1.0, -2.0, -3.0],
        ("reference", 0): [-2.0, -1.0, -3.0, -2.0],
        ("by", 1): [-2.0, -2.0],
        ("reference", 1): [-1.0, -2.0],
    }
    answers = {}
    for call in calls:
        assert call.request.continuation == call.shown[0].text
        own = logprobs[call.role, call.shown[0].sample_index]
        result = ScoreResult(call.call_id, {}, None, own, 1)
        answers[call.call_id] = Answered(result, f"m:{call.role}")
    read = judge.conclude(calls, answers)
    assert [j.raw_value for j in read] == pytest.approx(rewards)
    assert read[0].distribution == {
        "reward": read[0].raw_value,
        "logprob": -6.0,
        "logprob_reference": -8.0,
    }
    assert {(j.annotator_id, j.annotator_kind) for j in read} == {("m:by + m:reference", "model")}
    own = [[c.call_id for c in calls if c.shown[0] is text] for text in (ONE, TWO)]
    assert [j.rests_on for j in read] == own


def test_a_conditional_reward_model_reads_its_condition_after_the_prompts_system_turn() -> None:
    judge = judge_of(rules=None, kind="reward_model", by="rm", condition="Be strict.")
    prompt = make_prompt([{"role": "system", "content": "You are old."}, *PROMPT.messages])
    one, two = judge.calls(prompt, [TWO, ONE], SEED)
    assert one.request.messages[0] == {"role": "system", "content": "You are old.\n\nBe strict."}
    assert one.request.messages[1:] == PROMPT.messages
    assert (one.request.answer["content"], two.request.answer["content"]) == ("Oslo", "Rome")
    result = RewardResult(two.call_id, -0.5, 1, parts={"near": 0.3})
    (read,) = judge.read(two, result, "m")
    assert (read.subject, read.raw_value) == ("k1", -0.5)
    assert read.score == pytest.approx(1 / (1 + math.exp(0.5)))
    assert read.distribution == {"reward": -0.5, "near": 0.3}


@pytest.mark.parametrize(
    ("how", "reward"), [("mean", -0.5), ("worst", -2.0), ("uncertainty", -0.5 - 0.4 * 2.25)]
)
def test_an_ensembles_members_are_standardised_each_by_its_own_moments(
    how: str, reward: float
) -> None:
    judge = judge_of(
        rules=None,
        kind="reward_ensemble",
        members=["b", "a"],
        combine=how,
        penalty=0.4,
        standardise={"a": [1.0, 2.0], "b": [-1.0, 0.5]},
    )
    calls = judge.calls(PROMPT, [ONE], SEED)
    own = {"a": (3.0, 0.2), "b": (-2.0, 0.6)}
    answers = {
        c.call_id: Answered(
            RewardResult(c.call_id, own[c.role][0], 1, parts={"distance": own[c.role][1]}), c.role
        )
        for c in calls
    }
    (read,) = judge.conclude(calls, answers)
    assert read.raw_value == pytest.approx(reward)
    assert read.distribution == pytest.approx(
        {"reward": reward, "spread": 1.5, "distance": 0.4, "member/a": 1.0, "member/b": -2.0}
    )


WINDS = Constitution.model_validate(
    {
        "name": "winds",
        "principles": [
            {"id": "heavy", "text": "Be cool.", "weight": 3},
            {"id": "light", "text": "Be warm."},
        ],
    }
)
SAID: dict[tuple[str, str, str], str] = {
    ("a", "heavy", "k0"): "5",
    ("a", "light", "k0"): "1",
    ("a", "heavy", "k1"): "2",
    ("a", "light", "k1"): "4",
    ("b", "light", "k0"): "4",
    ("b", "light", "k1"): "?",
    ("c", "heavy", "k0"): "1",
    ("c", "heavy", "k1"): "3",
}
"""What each juror says of each answer by each principle, from 1 to 5."""


def seat(folder: Path, **keys: Any) -> Any:
    """A jury of three jurors of different weights, with different principles."""
    path = template(folder, "{{ principle }} {{ response }}")
    jurors = [("a", ["heavy", "light"]), ("b", ["light"]), ("c", ["heavy"])]
    of = [
        {"kind": "rating", "id": name, "by": f"m{name}", "principles": own, "template": path}
        for name, own in jurors
    ]
    weights = None if "accuracy" in keys else {"c": 1, "a": 5, "b": 2}
    return judge_of(folder, WINDS, kind="jury", of=of, weights=weights, **keys)


def heard(jury: Any, changed: Mapping[tuple[str, str, str], str] = {}) -> tuple[Any, Any]:
    """A jury's calls and their answers."""
    calls = jury.calls(PROMPT, [TWO, ONE], SEED)
    answers = {}
    for call in calls:
        juror = call.role.split("/")[0]
        key = (juror, call.principle, call.shown[0].completion_id)
        word = (SAID | dict(changed))[key]
        answers[call.call_id] = Answered(said(call, f"Score: {word}"), f"m{juror}")
    return calls, answers


def test_a_jurys_mean_is_by_the_weights_of_jurors_and_of_principles(tmp_path: Path) -> None:
    jury = seat(tmp_path)
    assert set(jury.roles) == {"a/by", "b/by", "c/by"}
    calls, answers = heard(jury)
    assert jury.most_calls(calls) == len(calls) == 8
    one, two = jury.conclude(calls, answers)
    # Juror a: (3 * 1 + 0) / 4 and (3 * 0.25 + 0.75) / 4.
    assert one.score == pytest.approx((5 * 0.75 + 2 * 0.75 + 1 * 0.0) / 8)
    assert one.distribution == pytest.approx({"a": 0.75, "b": 0.75, "c": 0.0})
    assert two.score == pytest.approx((5 * 0.375 + 1 * 0.5) / 6), "b is made up for"
    assert two.distribution == pytest.approx({"a": 0.375, "c": 0.5})
    assert (one.subject, one.shown, one.annotator_id) == ("k0", ["k0"], "ma + mb + mc")
    for verdict in (one, two):
        own = [c.call_id for c in calls if c.shown[0].completion_id == verdict.subject]
        assert verdict.rests_on == own and len(own) == 4
    unheard = {("a", "light", "k1"): "?"}
    _, two = jury.conclude(*heard(jury, unheard))
    assert two.score == pytest.approx((5 * 0.25 + 1 * 0.5) / 6), "the other principle is left"


def test_a_jury_that_drops_what_is_missing_gives_no_verdict_on_it(tmp_path: Path) -> None:
    jury = seat(tmp_path, missing="drop")
    one, two = jury.conclude(*heard(jury))
    assert one.score == pytest.approx(5.25 / 8)
    assert (two.status, two.score) == ("unparsed", None)
    whole = {("b", "light", "k1"): "3", ("a", "light", "k1"): "?"}
    assert jury.conclude(*heard(jury, whole))[1].status == "unparsed", "a misses a principle"


def test_a_jurys_vote_is_by_the_weights_of_jurors(tmp_path: Path) -> None:
    jury = seat(tmp_path, pool="vote")
    calls, answers = heard(jury, {("b", "light", "k1"): "4"})
    (verdict,) = jury.conclude(calls, answers)
    # a for the first, b for neither, c for the second.
    assert verdict.prob_first == pytest.approx((5 + 2 * 0.5) / 8)
    assert verdict.distribution == {"a": 1.0, "b": 0.5, "c": 0.0}
    assert verdict.shown == ["k0", "k1"] and set(verdict.rests_on) == {c.call_id for c in calls}


def test_each_juror_has_its_own_measured_accuracy(tmp_path: Path) -> None:
    shares = {"b": 0.9, "x": 0.99, "a": 0.75, "c": 0.5}
    rows = {name: {"n": 7, "agreement": share} for name, share in shares.items()}
    (tmp_path / "bench.json").write_text(json.dumps({"judges": rows}), "utf-8")
    jury = seat(tmp_path, accuracy="bench.json")
    assert jury.weights == pytest.approx({"a": math.log(3), "b": math.log(9), "c": 0.0})


def test_judgements_are_weighed_by_answer_and_principle(tmp_path: Path) -> None:
    (tmp_path / "meta.j2").write_text(
        "{{ conversation }} ({{ response_1 }}) ({{ response_2 }})", "utf-8"
    )
    judge = judge_of(
        tmp_path,
        WINDS,
        kind="meta",
        by="above",
        template="meta.j2",
        first_labels=["L"],
        second_labels=["R"],
        judge={"kind": "rating", "by": "below", "samples": 2, "temperature": 0.9},
    )
    assert set(judge.roles) == {"by", "judge/by"}
    calls = judge.calls(PROMPT, [ONE, TWO], SEED)
    assert judge.most_calls(calls) == 8 + 4 * 2
    given = {
        ("k0", "heavy"): (2, 5),
        ("k0", "light"): (1, 4),
        ("k1", "heavy"): (3, 2),
        ("k1", "light"): (5, 1),
    }
    answers = {}
    for call in calls:
        levels = given[call.shown[0].completion_id, call.principle]
        text = f"{call.principle} {call.sample_index}. Score: {levels[call.sample_index]}"
        answers[call.call_id] = Answered(said(call, text), "below")
    more = judge.follow(calls, answers, SEED)
    assert len(more) == 8
    assert asked(more[0]) == (
        "User: Hello.\n\nAssistant: Hi.\n\nUser: Where is it mild?\n\nAssistant: Oslo "
        "(heavy 0. Score: 2) (heavy 1. Score: 5)"
    )
    # The second judgement of Oslo and the first of Rome win; by `light` neither wins.
    for call in more:
        about = "k0" if "Assistant: Oslo" in asked(call) else "k1"
        wins = int(call.shown[0].text.split()[1][0] == ("1" if about == "k0" else "0"))
        probs = {"first": 0.6 * wins, "second": 0.6 * (1 - wins)}
        if "light" in call.shown[0].text:
            probs = {"first": 0.3, "second": 0.3}
        assert call.request.labels == {"first": ("L",), "second": ("R",)}
        answers[call.call_id] = Answered(labels(call, probs), "above")
    read = {(j.subject, j.principle): j for j in judge.conclude([*calls, *more], answers)}
    assert set(read) == set(given)
    lead = read["k0", "heavy"].distribution["elo/1"]
    assert 1 / (1 + math.exp(2 * lead)) == pytest.approx(0.1 * lead)
    share = 1 / (1 + math.exp(-2 * lead))
    assert read["k0", "heavy"].score == pytest.approx(0.25 * (1 - share) + 1.0 * share)
    assert read["k0", "heavy"].rationale == "heavy 1. Score: 5"
    assert read["k1", "heavy"].score == pytest.approx(0.5 * share + 0.25 * (1 - share))
    assert read["k1", "heavy"].distribution["score/0"] == 0.5
    assert read["k0", "light"].score == pytest.approx((0.0 + 0.75) / 2)
    assert read["k1", "light"].score == pytest.approx((1.0 + 0.0) / 2)
    for (subject, principle), judgement in read.items():
        own = [c for c in calls if (c.shown[0].completion_id, c.principle) == (subject, principle)]
        text = "Oslo" if subject == "k0" else "Rome"
        compared = [
            c for c in more if f"Assistant: {text}" in asked(c) and principle in c.shown[0].text
        ]
        assert judgement.rests_on == [c.call_id for c in (*own, *compared)]
        assert judgement.annotator_id == "above + below"


def test_what_an_answer_took_stays_with_its_judgement() -> None:
    judge = judge_of(rules=None, kind="rating")
    (call,) = judge.calls(PROMPT, [ONE], SEED)
    answer = GenerateResult(
        call.call_id, "Score: 4", [], "stop", 31, new_tokens=7, reasoning="It is cold."
    )
    answered = Answered(answer, "m", rationale="So.", latency=0.25, cost=0.5)
    (read,) = read_answer(judge, call, answered)
    assert (read.latency, read.cost, read.prompt_tokens, read.new_tokens) == (0.25, 0.5, 31, 7)
    assert (read.rationale, read.raw, read.error) == ("So.\n\nIt is cold.", "Score: 4", None)
    cut = GenerateResult(call.call_id, "It was cold, and", [], "length", 31)
    (read,) = read_answer(judge, call, Answered(cut, "m"))
    assert (read.status, read.error) == ("unparsed", LIMIT)


def test_a_missing_verdict_has_the_fault_of_the_calls_about_its_own_text() -> None:
    judge = judge_of(rules=None, kind="rubric", items=[{"text": "mild"}, {"text": "far"}])
    calls = judge.calls(PROMPT, [ONE, TWO, THREE], SEED)
    answers = {c.call_id: Answered(labels(c, {"yes": 0.5, "no": 0.5}), "m") for c in calls}
    for call, fault in ((calls[3], "too long"), (calls[4], "no answer")):
        failed = ScoreResult(call.call_id, {}, None, [], 1, fault)
        answers[call.call_id] = Answered(failed, "m")
    read = verdicts_of(judge, calls, answers)
    assert [(j.subject, j.status, j.error) for j in read] == [
        ("k0", "ok", None),
        ("k1", "failed", "too long"),
        ("k2", "failed", "no answer"),
    ]


def test_what_kept_verdicts_from_being_read_is_counted_by_its_cause() -> None:
    judge = judge_of(rules=None, kind="rating")
    (call,) = judge.calls(PROMPT, [ONE], SEED)
    rows = []
    for reason, cut in (("stop", True), ("length", False), ("length", False), ("stop", False)):
        answer = GenerateResult(call.call_id, "Well", [], reason, 1, cut=cut)
        rows += read_answer(judge, call, Answered(answer, "m"))
    thinking, limit = judgement_notes("mine", rows)
    assert thinking.startswith("judge mine: 1 of 4 verdicts") and WAS_CUT in thinking
    assert limit.startswith("judge mine: 2 of 4 verdicts") and LIMIT in limit
    masses = [replace(rows[0], label_mass=mass, error=None) for mass in (0.02, 0.06, None)]
    [note] = judgement_notes("mine", masses)
    assert "mean probability of 0.04 together" in note


def test_judges_within_a_judge_know_the_experiments_marks_of_thinking() -> None:
    own = ThinkingSpec(markers=[("<hm>", "</hm>")])
    text = completion("<hm>Where was it?</hm>Turin", 0)
    within = {"kind": "rating", "reasoning": "strip", "samples": 2, "temperature": 0.5}
    for spec in ({"kind": "jury", "of": [within]}, {"kind": "meta", "judge": within}):
        model: Any = TypeAdapter(JudgeStep).validate_python(spec)
        judge = build_judge(model, None, None, own)
        for call in judge.calls(PROMPT, [text], SEED):
            assert "Turin" in asked(call) and "Where was it?" not in asked(call)
