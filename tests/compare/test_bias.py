"""Bias of slots, length and authorship: against statsmodels, by hand, and on planted judges."""

from __future__ import annotations

import numpy as np
import pytest
import statsmodels.api

from rlaif.compare.bias import (
    length_coefficient,
    prefers_longer,
    self_preference,
    slots,
)
from rlaif.compare.logistic import fit_logistic, sigmoid

MISSING = float("nan")


@pytest.mark.parametrize("seed", range(5))
def test_logistic_regression_equals_statsmodels(seed: int) -> None:
    rng = np.random.default_rng(seed)
    features = np.column_stack([np.ones(300), rng.normal(size=300), rng.integers(0, 2, 300)])
    outcome = (rng.random(300) < sigmoid(features @ [0.3, 1.1, -0.8])).astype(np.float64)
    expected = statsmodels.api.Logit(outcome, features).fit(disp=0, method="newton", tol=1e-14)
    assert fit_logistic(features, outcome) == pytest.approx(expected.params, abs=1e-9)


def test_a_likelihood_without_maximum_gives_nothing() -> None:
    line = np.linspace(-1, 1, 20)
    features = np.column_stack([np.ones(20), line])
    assert fit_logistic(features, (line > 0).astype(np.float64)) is None
    assert fit_logistic(np.column_stack([line, line]), (line > 0.3).astype(np.float64)) is None
    assert fit_logistic(features[:0], line[:0]) is None


def test_slots_by_hand() -> None:
    as_first = np.asarray([0.9, 0.9, 0.1, 0.2, 0.5, MISSING])
    as_second = np.asarray([0.2, 0.8, 0.7, 0.1, 0.9, 0.9])
    found = slots(as_first, as_second)
    assert (found.first, found.second, found.consistent) == (1, 1, 2)
    assert found.total == 4


def test_the_share_of_longer_answers() -> None:
    prob = np.asarray([0.9, 0.9, 0.1, 0.5, 0.9, MISSING])
    longer_by = np.asarray([3.0, -3.0, -3.0, 4.0, 0.0, 4.0])
    assert prefers_longer(prob, longer_by) == (pytest.approx(2 / 3), 3)
    assert prefers_longer(prob[:0], longer_by[:0]) is None


def test_the_length_coefficient_is_recovered_and_ignores_what_people_wanted() -> None:
    rng = np.random.default_rng(7)
    size = 40_000
    longer_by = rng.normal(0.0, 250.0, size)
    # People like length as well: without the control the judge would seem more biased than it is.
    label = (rng.random(size) < sigmoid(longer_by / 200.0)).astype(np.float64)
    odds = 0.7 * longer_by / longer_by.std() + 1.2 * (2 * label - 1)
    prob = (rng.random(size) < sigmoid(odds)).astype(np.float64)
    found = length_coefficient(prob, label, longer_by)
    assert found is not None
    assert found == (pytest.approx(0.7, abs=0.05), size)


def test_a_judge_that_only_follows_length_has_no_coefficient() -> None:
    rng = np.random.default_rng(1)
    longer_by = rng.normal(size=200)
    label = rng.integers(0, 2, 200).astype(np.float64)
    assert length_coefficient((longer_by > 0).astype(np.float64), label, longer_by) is None
    assert length_coefficient(label, label, np.zeros(200)) is None


def test_self_preference_by_hand() -> None:
    # Own answer first, second, first, first; the last pair has no own answer.
    own = np.asarray([1.0, -1.0, 1.0, 1.0, 0.0])
    label = np.asarray([1.0, 0.0, 0.0, 0.0, 1.0])
    prob = np.asarray([0.9, 0.2, 0.8, 0.1, 0.1])
    # People pick own in two, of which the judge picks own in both; other in two, of which in one.
    assert self_preference(prob, label, own) == (pytest.approx(1.0 - 0.5), 4)
    assert self_preference(prob[:2], label[:2], own[:2]) is None
