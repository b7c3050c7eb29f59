"""Records: JSON round trips with any text, values only where a status allows them, stable ids."""

from __future__ import annotations

import json
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlaif.core.records import (
    VALUED,
    Completion,
    Judgement,
    Preference,
    Prompt,
    RoundRecord,
    Status,
    canonical_json,
    content_hash,
    from_json,
    make_prompt,
    to_json,
)

ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=30)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)


def through_json(record: Any) -> Any:
    line = canonical_json(to_json(record)).encode("utf-8", "surrogatepass")
    assert b"\n" not in line
    return from_json(type(record), json.loads(line.decode("utf-8", "surrogatepass")))


def judgement(status: str, **values: Any) -> Judgement:
    return Judgement(
        judgement_id="j_1",
        call_id="c_1",
        prompt_id="p_1",
        subject_kind="completion",
        shown=["k_1"],
        subject="k_1",
        judge="checks",
        annotator_id="program",
        annotator_kind="rule",
        principle=None,
        status=status,  # type: ignore[arg-type]
        **values,
    )


@given(ANY_TEXT, st.lists(ANY_TEXT, max_size=3), st.none() | ANY_TEXT)
def test_prompt_round_trip(text: str, tags: list[str], reference: str | None) -> None:
    prompt = make_prompt([{"role": "user", "content": text}], "file", tags, reference)
    assert through_json(prompt) == prompt
    assert prompt.question == text


def test_the_question_is_the_last_user_turn() -> None:
    said = [("user", "First."), ("assistant", "Yes."), ("user", "Last."), ("assistant", "Go on.")]
    prompt = make_prompt([{"role": role, "content": text} for role, text in said])
    assert prompt.question == "Last."
    assert make_prompt([{"role": "system", "content": "Be brief."}]).question == ""


@given(ANY_TEXT, st.none() | st.lists(st.integers(0, 50_000), max_size=4), NUMBERS)
def test_completion_round_trip(text: str, ids: list[int] | None, number: float) -> None:
    completion = Completion(
        completion_id="k_1",
        prompt_id="p_1",
        sample_index=2,
        messages=[{"role": "assistant", "content": text}],
        model="M0",
        weights_hash="w",
        sampling={"temperature": number, "stop": [text]},
        finish_reason="stop",
        token_ids=ids,
        logprobs=[number],
        digest=content_hash(text),
    )
    assert through_json(completion) == completion
    assert completion.text == text


@given(ANY_TEXT, st.floats(0, 1))
def test_judgement_round_trip(text: str, score: float) -> None:
    record = judgement("ok", score=score, rationale=text, raw=text, distribution={text: score})
    assert through_json(record) == record


@given(ANY_TEXT, ANY_TEXT, NUMBERS)
def test_preference_round_trip(chosen: str, rejected: str, number: float) -> None:
    record = Preference(
        preference_id="f_1",
        prompt_id="p_1",
        round=1,
        prompt=[{"role": "user", "content": chosen}],
        chosen=[{"role": "assistant", "content": chosen}],
        rejected=[{"role": "assistant", "content": rejected}],
        score_chosen=number,
        score_rejected=0.0,
        margin=number,
        prob=1.0,
        weight=1.0,
        reason=rejected,
        source="rlaif",
        judgement_ids=["j_1"],
        chosen_id="k_1",
        rejected_id="k_2",
    )
    assert through_json(record) == record


def test_round_record_round_trip() -> None:
    metrics = {"metrics": {"score/self": {"mean": 0.5, "low": 0.25, "high": 0.75, "n": 3}}}
    record = RoundRecord("main", 1, 2, "M1", "M2", "c", {"completions": 4}, metrics)
    assert through_json(record) == record


def test_a_failed_completion_has_an_empty_text() -> None:
    record = Completion("k", "p", 0, [], "M0", "w", {}, "failed", error="too long")
    assert record.text == ""


def test_unknown_fields_are_refused() -> None:
    row = to_json(make_prompt([{"role": "user", "content": "Hi"}])) | {"colour": "red"}
    with pytest.raises(ValueError, match="colour"):
        from_json(Prompt, row)


@pytest.mark.parametrize("status", get_args(Status))
@pytest.mark.parametrize("name", ["score", "prob_first"])
def test_a_value_exists_exactly_where_the_status_allows_it(status: str, name: str) -> None:
    valued = {name: 0.0}
    if status in VALUED:
        assert getattr(judgement(status, **valued), name) == 0.0
        with pytest.raises(ValueError, match=status):
            judgement(status)
    else:
        assert getattr(judgement(status), name) is None
        with pytest.raises(ValueError, match=status):
            judgement(status, **valued)


def test_records_cannot_be_changed() -> None:
    with pytest.raises(AttributeError, match="immutable"):
        judgement("tie", score=0.5).score = 1.0  # type: ignore[misc]


def test_ids_are_stable() -> None:
    # Written down once: another value would orphan every run folder there is.
    assert content_hash("sample", 1, {"b": 2, "a": [None, True]}) == "8c17df6613ac860190a72398"
    prompt = make_prompt([{"role": "user", "content": "Name a red fruit."}])
    assert prompt.prompt_id == "p_b6c2bf1d02e9405819ab051e"


def test_ids_depend_on_the_messages_alone() -> None:
    messages: Any = [{"role": "user", "content": "Hi"}]
    turned: Any = [{"content": "Hi", "role": "user"}]
    assert make_prompt(messages).prompt_id == make_prompt(turned, "s", ["t"], "r").prompt_id
    other: Any = [{"role": "system", "content": "Hi"}]
    assert make_prompt(messages).prompt_id != make_prompt(other).prompt_id


@given(st.dictionaries(ANY_TEXT, NUMBERS | ANY_TEXT, max_size=4))
def test_hash_ignores_the_order_of_keys_and_tells_values_apart(data: dict[str, Any]) -> None:
    backwards = dict(reversed(list(data.items())))
    assert content_hash(data) == content_hash(backwards)
    assert content_hash(data) != content_hash(data, data)


def test_hash_refuses_what_json_cannot_hold() -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        content_hash(float("nan"))
