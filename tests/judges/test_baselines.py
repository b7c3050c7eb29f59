"""Baselines: what they choose, that a swap changes nothing but the slot, what they cannot say."""

from __future__ import annotations

import math
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from rlaif.core.records import Completion, content_hash, make_prompt
from rlaif.engines.base import ScoreRequest, ScoreResult
from rlaif.judges.base import Judge, has_raw_value
from rlaif.judges.build import JudgeStep, build_judge

PROMPT = make_prompt([{"role": "user", "content": "Which red fruit grows in Spain?"}])


def judge_of(kind: str) -> Judge:
    spec: Any = TypeAdapter(JudgeStep).validate_python({"kind": kind})
    return build_judge(spec)


def answer(text: str, index: int = 0) -> Completion:
    messages: Any = [{"role": "assistant", "content": text}]
    name = "x_" + content_hash(text)
    return Completion(
        name, PROMPT.prompt_id, index, messages, "m", "w", {}, "stop", digest=content_hash(text)
    )


def prob_first(kind: str, first: str, second: str, seed: int = 0) -> float | None:
    judge = judge_of(kind)
    (call,) = judge.calls(PROMPT, [answer(first, 0), answer(second, 1)], seed)
    (judgement,) = judge.read(call, None, "program")
    assert judgement.shown[0] == answer(first).completion_id
    return judgement.prob_first


def test_longer_counts_characters() -> None:
    assert prob_first("longer", "a a", "bbbb") == 0.0
    assert prob_first("longer", "bbbb", "a a") == 1.0
    assert prob_first("longer", "abcd", "efgh") == 0.5


def test_first_is_the_slot() -> None:
    assert prob_first("first", "a", "b") == prob_first("first", "b", "a") == 1.0
    assert prob_first("first", "same", "same") == 0.5


def test_random_is_a_fair_coin_that_the_slot_does_not_move() -> None:
    drawn = []
    for number in range(200):
        one, other = f"answer {number}", "another"
        found = prob_first("random", one, other, seed=1)
        assert found is not None
        assert prob_first("random", other, one, seed=1) == 1.0 - found
        drawn.append(found)
    assert 70 < sum(drawn) < 130
    assert drawn != [prob_first("random", f"answer {n}", "another", seed=2) for n in range(200)]


def test_overlap_is_the_share_of_the_questions_terms() -> None:
    judge = judge_of("overlap")
    calls = judge.calls(PROMPT, [answer("A red fruit.", 0), answer("Water.", 1)], 0)
    scores = [judge.read(call, None, "program")[0].score for call in calls]
    assert scores[0] is not None and scores[0] > 0 and scores[1] == 0.0


def test_overlap_abstains_where_the_question_has_no_terms() -> None:
    judge = judge_of("overlap")
    empty = make_prompt([{"role": "user", "content": "Is it?"}])
    (call,) = judge.calls(empty, [answer("Yes.")], 0)
    (judgement,) = judge.read(call, None, "program")
    assert (judgement.status, judgement.score) == ("abstain", None)


def test_perplexity_is_one_over_it() -> None:
    judge = judge_of("perplexity")
    (call,) = judge.calls(PROMPT, [answer("Strawberries do.")], 0)
    assert isinstance(call.request, ScoreRequest)
    assert call.request.messages == PROMPT.messages
    assert call.request.continuation == "Strawberries do."
    (judgement,) = judge.read(call, ScoreResult(call.call_id, {}, None, [-1.0, -3.0], 4), "m")
    assert judgement.score == pytest.approx(math.exp(-2.0))
    assert judgement.distribution == {"mean_logprob": -2.0}
    assert judgement.raw_value == -2.0 and has_raw_value(judge)


def test_perplexity_without_tokens_or_answer_is_missing() -> None:
    judge = judge_of("perplexity")
    (call,) = judge.calls(PROMPT, [answer("")], 0)
    for result, status in (
        (ScoreResult(call.call_id, {}, None, [], 4), "abstain"),
        (ScoreResult(call.call_id, {}, None, [], 4, "too long"), "failed"),
        (None, "failed"),
    ):
        (judgement,) = judge.read(call, result, "m")
        assert (judgement.status, judgement.score) == (status, None)


@pytest.mark.parametrize("kind", ["longer", "first", "random", "overlap", "perplexity"])
def test_a_baseline_takes_no_principles(kind: str) -> None:
    with pytest.raises(ValidationError, match="follows no principle"):
        TypeAdapter(JudgeStep).validate_python({"kind": kind, "principles": ["brief"]})
