"""The judge's own number beside its score: what is read of it, and that missing stays missing."""

from __future__ import annotations

import pytest

from rlaif.core.records import Judgement, from_json, to_json
from rlaif.preferences.aggregate import candidate_raw_values, candidate_scores


def judgement(subject, status="ok", score=None, sample=0, **more):
    return Judgement(
        judgement_id=f"j_{subject}{sample}",
        call_id=f"c_{subject}{sample}",
        prompt_id="p",
        subject_kind="completion",
        shown=[subject],
        subject=subject,
        judge="rm",
        annotator_id="m",
        annotator_kind="model",
        principle=more.pop("principle", None),
        status=status,
        score=score,
        sample_index=sample,
        **more,
    )


def test_raw_values_are_averaged_over_samples_and_principles_and_stay_missing():
    rows = [
        judgement("a", score=1.0, raw_value=20.0),
        judgement("a", score=1.0, sample=1, raw_value=23.0),
        judgement("b", score=0.1, raw_value=-3.0),
        judgement("c", "failed"),
        judgement("d", score=0.5),
    ]
    found = candidate_raw_values(rows)
    assert found == {"a": 21.5, "b": -3.0, "c": None, "d": None}
    assert candidate_scores(rows)["d"] == 0.5
    two = [
        judgement("a", score=0.5, principle="x", raw_value=4.0),
        judgement("a", score=0.5, sample=1, principle="y", raw_value=-8.0),
    ]
    assert candidate_raw_values(two, {"x": 3.0, "y": 1.0}) == {"a": 1.0}


def test_a_raw_value_of_nothing_counts_and_a_principle_that_does_not_apply_drops_out():
    rows = [
        judgement("a", score=0.5, principle="x", raw_value=0.0),
        judgement("a", "not_applicable", sample=1, principle="y"),
        judgement("b", score=0.5, principle="x", raw_value=-2.0),
        judgement("b", score=0.5, sample=1, principle="y", raw_value=-4.0),
    ]
    assert candidate_raw_values(rows) == {"a": 0.0, "b": -3.0}


def test_records_without_it_are_read_and_a_reward_among_the_parts_counts():
    row = to_json(judgement("a", score=0.9, distribution={"reward": 2.2}))
    del row["raw_value"]
    old = from_json(Judgement, row)
    assert old.raw_value is None
    assert candidate_raw_values([old]) == {"a": 2.2}


@pytest.mark.parametrize("bad", [{"status": "failed"}, {"score": 0.5, "raw_value": float("inf")}])
def test_a_raw_value_needs_a_verdict_and_is_finite(bad):
    with pytest.raises(ValueError, match="raw_value"):
        judgement("a", **{"raw_value": 1.0, **bad})
