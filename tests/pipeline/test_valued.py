"""What judges said of sampled answers, as values, conditions, strata and costs of each answer."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from msgspec import structs

from rlaif.config.rewards import CostTerm, RewardTerm
from rlaif.core.records import Completion, Judgement, make_prompt
from rlaif.pipeline.steps.valued import Judged, Valuation, Valued

EVEN, ODD = (
    make_prompt([{"role": "user", "content": f"Q{n}?"}], tags=["odd"] if n else []) for n in (0, 1)
)
JUDGES: Any = {
    "j": SimpleNamespace(),
    "k": SimpleNamespace(unbounded=True),
    "gate": SimpleNamespace(),
}


def valuation(
    terms: Sequence[dict[str, Any]],
    costs: Sequence[dict[str, Any]] = (),
    turned: Sequence[int] = (),
    adds: bool = True,
) -> Valuation:
    return Valuation(
        [RewardTerm.model_validate(keys) for keys in terms],
        [CostTerm.model_validate({"limit": 0.0, **keys}) for keys in costs],
        turned,
        JUDGES,
        {"a": 3.0, "b": 1.0},
        adds,
    )


def answer(name: str, prompt: Any, text: str = "says") -> Completion:
    turns: Any = [{"role": "assistant", "content": text}]
    return Completion(name, prompt.prompt_id, 0, turns, "m", "w", {}, "stop")


def said(
    name: str, prompt: Any, principle: str | None, score: float | None, **about: Any
) -> Judgement:
    key = f"{name}{principle}{about.get('judge')}"
    judge, status = about.pop("judge", "j"), about.pop("status", "ok")
    return Judgement(
        key, key, prompt.prompt_id, "completion", [name], name, judge, "a", "ai", principle, status,
        score, **about,
    )  # fmt: skip


def one(
    scores: dict[str, dict[str, float | str | None]], terms: Any, **about: Any
) -> dict[str, Valued]:
    """Of answers a, b, ... to one prompt: by judge and answer the score, a status in its place
    where there is none."""
    names = sorted({name for own in scores.values() for name in own})
    judged: Judged = {
        judge: {
            EVEN.prompt_id: [
                said(n, EVEN, None, None, judge=judge, status=s)
                if isinstance(s, str)
                else said(n, EVEN, None, s, judge=judge, raw_value=None if s is None else 10 * s)
                for n, s in own.items()
            ]
        }
        for judge, own in scores.items()
    }
    made = {EVEN.prompt_id: [answer(name, EVEN) for name in names]}
    own = valuation(terms, **about)
    return own.value([EVEN], judged, range(len(terms)), made)


def test_terms_take_scores_or_raw_values_of_the_prompts_that_they_are_for() -> None:
    terms = [
        {"judge": "j"},
        {"judge": "k", "value": "score"},
        {"judge": "k", "where": {"tags": ["odd"]}},
        {"judge": "k", "value": "raw"},
    ]
    made = {EVEN.prompt_id: [answer("e", EVEN)], ODD.prompt_id: [answer("o", ODD)]}
    judged = {
        "j": {
            EVEN.prompt_id: [said("e", EVEN, "a", 0.25), said("e", EVEN, "b", 0.75)],
            ODD.prompt_id: [said("o", ODD, "a", 0.5), said("o", ODD, "b", 0.0)],
        },
        "k": {
            EVEN.prompt_id: [said("e", EVEN, None, 0.9, judge="k", raw_value=-7.0)],
            ODD.prompt_id: [said("o", ODD, None, 0.6, judge="k", raw_value=5.0)],
        },
    }
    own = valuation(terms)
    # Principle `a` counts three times.
    found = own.value([EVEN, ODD], judged, range(4), made)
    assert {name: known.values for name, known in found.items()} == {
        "e": (pytest.approx(0.375), 0.9, None, -7.0),
        "o": (pytest.approx(0.375), 0.6, 5.0, 5.0),
    }
    assert [found[name].idle for name in "eo"] == [{2}, set()]
    [alone] = own.value([ODD], judged, [1], made).values()
    assert (alone.values, alone.idle) == ((None, 0.6, None, None), frozenset())


def test_blank_answers_score_nothing_where_a_principle_applies_to_the_others() -> None:
    made = {EVEN.prompt_id: [answer("full", EVEN), answer("blank", EVEN, " ")]}
    rows = [said(n, EVEN, "b", 0.5) for n in ("full", "blank")]
    rows.append(said("full", EVEN, "a", 1.0))
    none = said("blank", EVEN, "a", 0.0)
    rows.append(structs.replace(none, status="not_applicable", score=None))
    found = valuation([{"judge": "j"}]).value([EVEN], {"j": {EVEN.prompt_id: rows}}, [0], made)
    # (3 x 1 + 0.5) / 4 and (3 x 0 + 0.5) / 4; without blanks both would go by `b` alone.
    assert [found[n].values for n in ("full", "blank")] == [
        (pytest.approx(0.875),),
        (pytest.approx(0.125),),
    ]


def test_a_term_counts_only_if_another_judge_says_yes() -> None:
    scores: Any = {
        "k": {"a": 0.1, "b": 0.2, "c": 0.3, "d": "error", "e": 0.5},
        "gate": {"a": 0.5, "b": 0.49, "c": "unparsed", "d": 0.0, "e": "not_applicable"},
    }
    found = one(scores, [{"judge": "k", "only_if": "gate"}, {"judge": "gate"}])
    assert found["a"].values[0] == 1.0 and found["a"].idle == set()
    # A value that does not count may be missing.
    assert all(found[n].values[0] is None and 0 in found[n].idle for n in "bde")
    # Nobody knows whether this one counts.
    assert found["c"].values[0] is None and found["c"].idle == set()


def test_what_is_compared_within_the_scores_of_a_judge_needs_that_score() -> None:
    scores: Any = {"k": {"a": 0.1, "b": 0.2}, "gate": {"a": 1.0, "b": "error"}}
    found = one(scores, [{"judge": "k", "normalise": "group", "within": "gate"}])
    assert (found["a"].values, found["a"].strata) == ((1.0,), {0: 1.0})
    assert (found["b"].values, found["b"].strata, found["b"].idle) == ((None,), {}, frozenset())


def test_a_judge_that_does_not_apply_adds_nothing_to_a_sum_but_is_missing_in_a_mean() -> None:
    scores: Any = {
        "j": {"a": "not_applicable", "b": 0.5, "c": "not_applicable"},
        "k": {"a": 0.1, "b": "not_applicable", "c": "not_applicable"},
    }
    terms = [{"judge": "j"}, {"judge": "k"}]
    found = one(scores, terms)
    assert [found[n].idle for n in "abc"] == [{0}, {1}, set()]
    # No judge has judged the third.
    assert found["c"].values == (None, None)
    mean = one(scores, terms, adds=False)
    assert all(not mean[n].idle for n in "abc") and mean["a"].values == (None, 1.0)


@pytest.mark.parametrize(
    ("keys", "turned", "wanted"),
    [
        ({"judge": "k"}, [], (3.0, 7.0, None)),
        ({"judge": "k"}, [0], (-3.0, -7.0, None)),
        ({"judge": "k", "value": "score"}, [0], (0.7, 0.3, None)),
        ({"judge": "gate"}, [], (0.3, 0.7, None)),
        ({"judge": "gate"}, [0], (0.7, 0.3, None)),
    ],
)
def test_a_cost_is_the_value_or_its_opposite(
    keys: Any, turned: list[int], wanted: tuple[float | None, ...]
) -> None:
    judge = keys["judge"]
    scores: Any = {"j": dict.fromkeys("abc", 0.5), judge: {"a": 0.3, "b": 0.7, "c": "error"}}
    found = one(scores, [{"judge": "j"}], costs=[keys], turned=turned)
    got = [found[n].costs[0] for n in "abc"]
    assert got == [w if w is None else pytest.approx(w) for w in wanted]


def test_judges_are_asked_about_the_prompts_of_their_terms_and_all_for_costs() -> None:
    own = valuation(
        [
            {"judge": "j", "where": {"tags": ["odd"]}, "only_if": "gate"},
            {"judge": "k", "normalise": "group", "within": "gate"},
        ],
        [{"judge": "c"}],
    )
    both = [EVEN, ODD]
    assert own.prompts_by_judge(both, [0], costs=False) == {"j": [ODD], "gate": [ODD]}
    found = own.prompts_by_judge(both, [0, 1], costs=True)
    assert found == {"j": [ODD], "gate": both, "k": both, "c": both}
    # Whichever of two terms by one judge comes last.
    assert own.prompts_by_judge(both, [1, 0], costs=False)["gate"] == both
