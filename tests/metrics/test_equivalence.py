"""Better, worse, the same, or cannot tell: by hand values and on planted data."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from rlaif.metrics.claims import answer_of, answer_sentence
from rlaif.metrics.intervals import IntervalJson, mean_interval


def difference(mean: float, se: float, df: float = 23.0, n: int = 24) -> IntervalJson:
    half = float(stats.t.ppf(0.975, df)) * se
    return {"mean": mean, "low": mean - half, "high": mean + half, "n": n, "se": se, "df": df}


@pytest.mark.parametrize(
    ("mean", "se", "verdict"),
    [
        (0.20, 0.05, "better"),
        (-0.20, 0.05, "worse"),
        (0.0, 0.02, "same"),
        # The 90% interval ends at 0.01 + 1.714 * 0.02 = 0.0443, the 95% at 0.0514.
        (0.01, 0.02, "same"),
        (0.03, 0.01, "better within"),
        (-0.03, 0.01, "worse within"),
        (0.02, 0.02, "unknown"),
        (0.0, 0.05, "unknown"),
    ],
)
def test_verdicts(mean: float, se: float, verdict: str) -> None:
    assert answer_of(difference(mean, se), 0.05).verdict == verdict


def test_what_so_many_prompts_could_tell() -> None:
    # sd 0.25 over 24 prompts, margin 0.05.
    found = answer_of(difference(0.0, 0.25 / math.sqrt(24)), 0.05)
    assert found.smallest == pytest.approx(2.8 * 0.25 / math.sqrt(24))
    assert found.prompts_for_margin == math.ceil((2.8 * 0.25 / 0.05) ** 2) == 196
    assert found.prompts_for_same == math.ceil((2.93 * 0.25 / 0.05) ** 2) == 215


def test_two_one_sided_tests_are_those_of_scipy() -> None:
    draw = np.random.default_rng(5)
    verdicts = set()
    for _ in range(200):
        values = draw.normal(0, 0.03, 30) + draw.normal(0, 0.03)
        interval = mean_interval({f"p{i:02}": v for i, v in enumerate(values)}, 0.0)
        assert interval is not None
        above = stats.ttest_1samp(values, -0.05, alternative="greater").pvalue
        below = stats.ttest_1samp(values, 0.05, alternative="less").pvalue
        verdict = answer_of(interval.to_json(), 0.05).verdict
        assert (verdict in ("same", "better within", "worse within")) == (max(above, below) < 0.05)
        two_sided = stats.ttest_1samp(values, 0.0).pvalue
        assert (verdict not in ("same", "unknown")) == (two_sided < 0.05)
        verdicts.add(verdict)
    assert len(verdicts) >= 4


def test_few_prompts_and_equal_differences_tell_nothing() -> None:
    few = difference(0.5, 0.01, df=4, n=5)
    assert answer_of(few, 0.05).verdict == "unknown"
    assert "Fewer than 6 prompts" in answer_sentence("arm a", "arm b", "score/j", few, 0.05)
    equal: IntervalJson = {"mean": 0.0, "low": None, "high": None, "n": 24, "note": "no prompt did"}
    assert answer_of(equal, 0.05).verdict == "unknown"
    assert answer_sentence("arm a", "arm b", "score/j", equal, 0.05).endswith("No prompt did.")


def test_sentences() -> None:
    better = answer_sentence("arm human", "arm ai", "score/j", difference(0.2, 0.05), 0.05)
    assert better == (
        "arm ai is better than arm human in score/j (+0.200 [+0.097, +0.303], 24 prompts; margin "
        "0.050)."
    )
    unknown = answer_sentence("arm human", "arm ai", "score/j", difference(0.0, 0.05), 0.05)
    assert "cannot tell" in unknown
    assert "A difference of 0.140 would be found in 80%" in unknown
    assert "about 189 prompts to find a difference of the margin, and 207" in unknown


@pytest.mark.parametrize("true", [0.0, 0.05, 0.2])
def test_planted_differences_are_seldom_misread(true: float) -> None:
    draw = np.random.default_rng(11)
    counts: dict[str, int] = {}
    for _ in range(500):
        values = draw.normal(true, 0.1, 60)
        interval = mean_interval({f"p{i:02}": v for i, v in enumerate(values)}, 0.0)
        assert interval is not None
        verdict = answer_of(interval.to_json(), 0.05).verdict
        counts[verdict] = counts.get(verdict, 0) + 1
    down = counts.get("worse", 0) + counts.get("worse within", 0)
    assert down <= 500 * 0.025 + 3 * math.sqrt(500 * 0.025 * 0.975)
    if true >= 0.05:
        inside = sum(counts.get(v, 0) for v in ("same", "better within", "worse within"))
        assert inside <= 500 * 0.05 + 3 * math.sqrt(500 * 0.05 * 0.95)
