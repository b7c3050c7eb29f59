"""What holds for every kind of judge: it reads good answers, invents nothing from bad ones, follows
the answer and not its place, does not depend on the order of arrival, and is known by its hash."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from rlaif.core.errors import ConfigError
from rlaif.core.records import VALUED, to_json
from rlaif.engines.base import Model
from rlaif.engines.fake import FakeEngine
from rlaif.judges.base import has_raw_value
from rlaif.pipeline.steps.asking import Kept, verdicts
from rlaif.preferences.aggregate import candidate_raw_values
from tests.support.kinds import (
    BAD,
    EVERY,
    GOOD,
    MODEL_JUDGES,
    PROMPT,
    TABLES,
    Engines,
    Failing,
    Mumbling,
    completion,
    judge_of,
    judged,
    models,
    preferring,
    scores,
)
from tests.support.memory import Memory


@pytest.mark.parametrize("name", MODEL_JUDGES)
def test_the_better_answer_wins_and_swapping_the_verdict_swaps_it(name: str) -> None:
    judge = judge_of(EVERY[name])
    read = judged(judge, preferring(GOOD.text, BAD.text), [GOOD, BAD])
    assert read and all(j.status in VALUED for j in read), [(j.status, j.raw) for j in read]
    found = scores(read)
    good, bad = found[GOOD.completion_id], found[BAD.completion_id]
    assert good is not None and bad is not None and 1 >= good > bad >= 0
    swapped = scores(judged(judge, preferring(BAD.text, GOOD.text), [GOOD, BAD]))
    if not name.startswith("rubric") or "implicit" in name or "generate" in name:
        assert swapped[BAD.completion_id] > swapped[GOOD.completion_id]  # type: ignore[operator]


UNBOUNDED = {"reward_model", "reward_ensemble", "implicit_reward", "rbr"}


@pytest.mark.parametrize("name", EVERY)
def test_judges_whose_own_number_has_no_bounds_give_it_beside_the_score(name: str) -> None:
    judge = judge_of(EVERY[name])
    read = judged(judge, preferring(GOOD.text, BAD.text), [GOOD, BAD])
    assert has_raw_value(judge) == (EVERY[name]["kind"] in UNBOUNDED)
    assert all((j.raw_value is not None) == has_raw_value(judge) for j in read)
    if has_raw_value(judge):
        found, own = scores(read), candidate_raw_values(read)
        assert sorted(found, key=found.__getitem__) == sorted(own, key=own.__getitem__)
    failed = judged(judge, Engines(Failing()), [GOOD, BAD]) if judge.needs else []
    assert all(j.raw_value is None for j in failed)


@pytest.mark.parametrize("name", EVERY)
def test_the_order_of_arrival_changes_nothing(name: str) -> None:
    judge, engines = judge_of(EVERY[name]), preferring(GOOD.text, BAD.text)
    third = completion("A tomato", 2)
    one = judged(judge, engines, [GOOD, BAD, third])
    other = judged(judge, engines, [third, BAD, GOOD])
    plain = [{**to_json(j), "latency": None} for j in one]
    assert plain == [{**to_json(j), "latency": None} for j in other]
    assert len({j.judgement_id for j in one}) == len(one)


@pytest.mark.parametrize("name", EVERY)
def test_an_answer_beside_itself_is_judged_once_and_is_a_tie(name: str) -> None:
    judge, engines = judge_of(EVERY[name]), preferring(GOOD.text, BAD.text)
    twice = [GOOD, replace(GOOD, sample_index=1)]
    read = judged(judge, engines, twice)
    assert read and len({j.judgement_id for j in read}) == len(read)
    assert not judge.comparative or {j.prob_first for j in read} == {0.5}
    if not judge.comparative and name != "jury":
        assert [j.score for j in read] == [j.score for j in judged(judge, engines, [GOOD])]
    third = [j.shown for j in judged(judge, engines, [*twice, BAD])]
    assert third == [j.shown for j in judged(judge, engines, [GOOD, BAD])]


@pytest.mark.parametrize(
    "spec",
    [
        {"kind": "jury", "of": [{"kind": "pairwise"}]},
        {"kind": "jury", "of": [{"kind": "yes_no"}, {"kind": "ultrafeedback"}]},
        {"kind": "meta", "judge": {"kind": "ultrafeedback", "samples": 2, "temperature": 0.7}},
        {"kind": "ultrafeedback"},
        {"kind": "ultrafeedback", "expected": True},
    ],
)
def test_a_score_that_depends_on_the_others_has_an_id_of_its_group(spec: dict[str, Any]) -> None:
    judge, engines = judge_of(spec), preferring(GOOD.text, BAD.text)
    one, other = (judged(judge, engines, [GOOD, b]) for b in (BAD, completion("A tomato", 1)))
    assert not {j.judgement_id for j in one} & {j.judgement_id for j in other}
    assert not {j.call_id for j in one} & {j.call_id for j in other}


def test_a_jury_with_a_meta_judge_is_about_the_answers_alone() -> None:
    jury = judge_of({"kind": "jury", "of": [{"kind": "meta", "judge": {"kind": "additive"}}]})
    read = judged(jury, preferring(GOOD.text, BAD.text), [GOOD, BAD])
    assert sorted(j.subject for j in read) == sorted([GOOD.completion_id, BAD.completion_id])


def test_a_score_that_depends_on_no_other_keeps_its_id() -> None:
    judge, engines = judge_of({"kind": "jury", "of": [{"kind": "yes_no"}]}), Engines(Mumbling())
    (alone,) = judged(judge, engines, [GOOD])
    assert alone.judgement_id in {j.judgement_id for j in judged(judge, engines, [GOOD, BAD])}


@pytest.mark.parametrize("name", MODEL_JUDGES)
def test_answers_that_cannot_be_read_are_missing(name: str) -> None:
    judge = judge_of(EVERY[name])
    read = judged(judge, Engines(Mumbling()), [GOOD, BAD])
    checked = [j for j in read if j.annotator_kind != "rule"]
    assert checked
    assert all(j.status in ("unparsed", "failed") for j in checked), [j.status for j in checked]
    assert all(value is None for value in scores(checked).values())


@pytest.mark.parametrize("name", MODEL_JUDGES)
def test_a_call_that_failed_leaves_its_reason(name: str) -> None:
    read = judged(judge_of(EVERY[name]), Engines(Failing()), [GOOD, BAD])
    checked = [j for j in read if j.annotator_kind != "rule"]
    assert checked
    assert {(j.status, j.error) for j in checked} == {("failed", Failing.WHY)}


@pytest.mark.parametrize("name", EVERY)
def test_the_hash_ignores_who_answers(name: str) -> None:
    plain = judge_of(EVERY[name]).judge_hash
    assert judge_of(EVERY[name]).judge_hash == plain
    assert judge_of(EVERY[name], uses=["sample"]).judge_hash == plain
    if name not in ("rules", "jury", "jury_vote", "reward_ensemble"):
        assert judge_of(EVERY[name], by="other").judge_hash == plain
    assert judge_of(EVERY[name], id="other").judge_hash != plain


CHANGES: list[tuple[str, dict[str, Any]]] = [
    ("yes_no", {"cot": True}),
    ("yes_no", {"min_label_mass": 0.1}),
    ("rating", {"structured": True}),
    ("rating", {"abstain_labels": []}),
    ("rating_expected", {"abstain_labels": ["?"]}),
    ("pairwise_written", {"structured": True}),
    ("pairwise_written", {"tie_labels": []}),
    ("ultrafeedback", {"structured": True}),
    ("ultrafeedback", {"expected": True}),
    ("rubric_generate", {"generate": {"most": 3, "structured": True}}),
    ("rbrm", {"min_label_mass": 0.1}),
    ("yes_no", {"abstain_labels": ["?"]}),
    ("yes_no", {"yes_labels": ["Yes"]}),
    ("yes_no_cot", {"temperature": 0.5}),
    ("yes_no_cot", {"samples": 3}),
    ("yes_no_cot", {"max_new_tokens": 9}),
    ("rating", {"scale": [1, 4]}),
    ("direct", {"scale": [1, 7]}),
    ("direct", {"cot": True, "template": "prompts/judges/critique.j2"}),
    ("critique", {"max_new_tokens": 9}),
    ("prometheus", {"temperature": 0.5}),
    ("additive", {"principles": ["kind"]}),
    ("pairwise", {"order": "fixed"}),
    ("pairwise", {"soft": False}),
    ("pairwise", {"clamp": [0.4, 0.6]}),
    ("pairwise", {"preamble": "detailed"}),
    ("pairwise", {"shots": 1}),
    ("pairwise", {"verdict": "written"}),
    ("pairwise", {"tie_labels": ["0"]}),
    ("pairwise", {"abstain_labels": ["?"]}),
    ("constitutional", {"draw": "each"}),
    ("prometheus_pair", {"first_labels": ["X"]}),
    ("ultrafeedback", {"aspects": ["honesty"]}),
    ("ultrafeedback", {"order": "random"}),
    ("rbrm", {"tables": TABLES[1:]}),
    ("rbrm", {"soft": False}),
    ("rubric", {"aggregate": "implicit", "items": [{"text": "It names a fruit."}]}),
    ("rubric", {"items": [{"text": "It names a fruit.", "weight": 2.0}]}),
    ("rubric_generate", {"generate": {"most": 4}}),
    ("rubric", {"category_weights": {"essential": 2, "important": 1, "optional": 1, "pitfall": 1}}),
    ("implicit_reward", {"beta": 0.2}),
    ("implicit_reward", {"per_token": True}),
    ("meta", {"judge": {"kind": "additive", "samples": 4}}),
    ("meta", {"first_labels": ["X"]}),
    ("jury", {"weights": {"yes_no": 2.0}}),
    ("jury", {"pool": "vote"}),
    ("jury", {"missing": "drop"}),
    ("jury_vote", {"accuracy": {"rating": 0.9, "additive": 0.7, "implicit_reward": 0.6}}),
]


@pytest.mark.parametrize(("name", "change"), CHANGES)
def test_the_hash_covers_what_can_change_a_verdict(name: str, change: dict[str, Any]) -> None:
    assert judge_of(EVERY[name], **change).judge_hash != judge_of(EVERY[name]).judge_hash


class Silent(Engines):
    """Must not be asked."""

    def __init__(self) -> None:
        pass

    def get(self, model: Model) -> FakeEngine:
        raise AssertionError("a model was asked again")


@pytest.mark.parametrize("name", EVERY)
def test_what_was_answered_is_not_asked_again(name: str) -> None:
    judge, log = judge_of(EVERY[name]), Memory()
    first = judged(judge, preferring(GOOD.text, BAD.text), [GOOD, BAD], Kept(log))
    count = len(log.rows["judgements"])
    assert judged(judge, Silent(), [GOOD, BAD], Kept(log)) == first
    assert len(log.rows["judgements"]) == count
    # Killed before the verdicts were stored: what was written before them is not written again.
    if "reasons" in log.rows:
        del log.rows["judgements"]
        log.rows.pop("answers", None)
        engines = preferring(GOOD.text, BAD.text)
        engines.engines["by"].generate = _refuse  # type: ignore[method-assign]
        again = judged(judge, engines, [GOOD, BAD], Kept(log))
        assert [j.judgement_id for j in again] == [j.judgement_id for j in first]


@pytest.mark.parametrize("name", ["rules", "pairwise", "jury"])
def test_a_pair_that_comes_twice_is_asked_and_kept_once(name: str) -> None:
    judge, log = judge_of(EVERY[name]), Memory()
    used: Any = preferring(GOOD.text, BAD.text)
    groups = [(PROMPT, [GOOD, BAD])]
    once = verdicts(judge, models(judge), used, groups, 3, Kept(Memory()))
    twice = verdicts(judge, models(judge), used, groups * 2, 3, Kept(log))
    assert len(twice) == 2 * len(once)
    assert len(log.rows["judgements"]) == len(once)


def _refuse(requests: Any, done: Any = frozenset()) -> Any:
    assert all(r.request_id in done for r in requests)
    return iter(())


def test_a_juror_without_a_measured_accuracy_is_named(tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    rows = {"rating": {"agreement": 0.7}, "additive": {"agreement": None}}
    path.write_text(json.dumps({"judges": rows}))
    jurors = [{"kind": "rating"}, {"kind": "additive"}]
    with pytest.raises(ConfigError, match="`accuracy` lacks juror 'additive'"):
        judge_of({"kind": "jury", "of": jurors, "pool": "vote", "accuracy": str(path)})
