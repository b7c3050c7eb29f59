"""What a change is made of: parts that add up, and the token limit where it explains the change."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlaif.core.records import Judgement
from rlaif.metrics.decompose import change_sentences, decompose_change, score_parts
from rlaif.metrics.metrics import judge_values

PRINCIPLES = ["brief", "finished", "plain", None]
Cell = tuple[float, str]


def rows_of(cells: dict[tuple[int, int, int], Cell]) -> list[Judgement]:
    """Judgements by (prompt, answer, principle)."""
    return [
        Judgement(
            f"j{prompt}-{answer}-{principle}",
            "c",
            f"p{prompt}",
            "completion",
            [f"a{prompt}-{answer}"],
            f"a{prompt}-{answer}",
            "checks",
            "m",
            "ai",
            PRINCIPLES[principle],
            status,  # type: ignore[arg-type]
            score=value if status == "ok" else None,
        )
        for (prompt, answer, principle), (value, status) in cells.items()
    ]


def ids(rows: list[Judgement]) -> set[str]:
    return {row.subject for row in rows}


cells = st.dictionaries(
    st.tuples(st.integers(0, 3), st.integers(0, 1), st.integers(0, 3)),
    st.tuples(st.floats(0, 1), st.sampled_from(["ok", "ok", "ok", "not_applicable", "failed"])),
    min_size=1,
)
weights = st.fixed_dictionaries(
    {"brief": st.sampled_from([0.0, 0.3, 2.0]), "finished": st.floats(0.1, 2)}
)


@given(cells, cells, weights)
def test_the_parts_add_up_to_the_change_that_is_shown(
    new: dict[tuple[int, int, int], Cell],
    old: dict[tuple[int, int, int], Cell],
    weighted: dict[str, float],
) -> None:
    after, before = rows_of(new), rows_of(old)
    values = [
        judge_values("checks", rows, weighted, ids(rows))["score/checks"]
        for rows in (after, before)
    ]
    both = sorted(values[0].keys() & values[1].keys())
    parts = [score_parts(rows, weighted, ids(rows)) for rows in (after, before)]
    for found, scores in zip(parts, values, strict=True):
        for prompt, score in scores.items():
            total = math.fsum(part.get(prompt, 0.0) for part in found.values())
            assert total == pytest.approx(score, abs=1e-12)
    made = decompose_change(parts[0], parts[1], {}, {})
    if not both:
        assert made is None
        return
    assert made is not None
    change = math.fsum(values[0][p] - values[1][p] for p in both) / len(both)
    assert made["prompts"] == len(both)
    assert made["change"] == pytest.approx(change, abs=1e-12)
    assert math.fsum(made["parts"].values()) == pytest.approx(change, abs=1e-12)


def scores(finished: list[float], brief: list[float]) -> list[Judgement]:
    return rows_of(
        {(n, 0, 1): (value, "ok") for n, value in enumerate(finished)}
        | {(n, 0, 0): (value, "ok") for n, value in enumerate(brief)}
    )


def test_a_change_by_principle_and_by_what_the_token_limit_cut() -> None:
    before, after = scores([0, 0, 1, 1], [0.5] * 4), scores([1, 1, 1, 1], [0.5, 0.5, 0.5, 0.7])
    cut = {"p0": 1.0, "p1": 1.0, "p2": 0.0, "p3": 0.0}
    made = decompose_change(
        score_parts(after, {}, ids(after)),
        score_parts(before, {}, ids(before)),
        dict.fromkeys(cut, 0.0),
        cut,
    )
    assert made is not None
    assert made["change"] == pytest.approx(0.275)
    assert made["parts"] == {"brief": pytest.approx(0.025), "finished": pytest.approx(0.25)}
    assert made["cut"] == {"prompts": 2, "part": pytest.approx(0.25), "before": 0.5, "after": 0.0}
    # Of answers without a record of their end nothing is known: the part is of the whole change.
    half = decompose_change(
        score_parts(after, {}, ids(after)),
        score_parts(before, {}, ids(before)),
        {"p0": 0.0, "p2": 0.0},
        cut,
    )
    assert half is not None
    assert half["cut"] == {"prompts": 1, "part": pytest.approx(0.25 / 2), "before": 0.5, "after": 0}
    first, second = change_sentences({"checks": made})
    assert first == "score/checks +0.275 = finished +0.250, brief +0.025 (4 prompts)."
    assert "+0.250 of it comes from 2 of 4 prompts on which the token limit cut off" in second
    assert "(50% of the answers were cut before, 0% are now)" in second


def test_the_token_limit_is_named_only_where_it_explains_the_change() -> None:
    base = {"change": 0.2, "prompts": 10, "parts": {"a": 0.1, "b": 0.1}}
    small = base | {"cut": {"prompts": 1, "part": 0.09, "before": 0.2, "after": 0.1}}
    other = base | {"cut": {"prompts": 9, "part": -0.3, "before": 0.2, "after": 0.9}}
    assert len(change_sentences({"j": small})) == len(change_sentences({"j": other})) == 1
    most = base | {"cut": {"prompts": 3, "part": 0.1, "before": 0.3, "after": 0.0}}
    assert len(change_sentences({"j": most})) == 2
    still = {"change": 0.0, "prompts": 10, "parts": {"a": 0.1, "b": -0.1}}
    assert change_sentences({"j": still}) == []
    one = {"change": 0.2, "prompts": 10, "parts": {"a": 0.2}}
    assert change_sentences({"j": one}) == []
