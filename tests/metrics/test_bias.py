"""Bias of slots, length and authorship: against statsmodels, by hand, and on planted judges."""

from __future__ import annotations

import numpy as np
import pytest
import statsmodels.api

from rlaif.core.numbers import sigmoids
from rlaif.metrics.agreement import length_coefficient, picks_longer, same_slot, self_preference
from rlaif.metrics.penalised import fit_logistic
from tests.support.weights import plain

MISSING = float("nan")


@pytest.mark.parametrize("seed", range(5))
def test_logistic_regression_equals_statsmodels(seed: int) -> None:
    rng = np.random.default_rng(seed)
    features = np.column_stack([np.ones(300), rng.normal(size=300), rng.integers(0, 2, 300)])
    outcome = (rng.random(300) < sigmoids(features @ [0.3, 1.1, -0.8])).astype(np.float64)
    expected = statsmodels.api.Logit(outcome, features).fit(disp=0, method="newton", tol=1e-14)
    found = fit_logistic(features, outcome, np.ones((1, 300)))
    assert found[0] == pytest.approx(expected.params, abs=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_weights_are_statsmodels_frequencies(seed: int) -> None:
    rng = np.random.default_rng(seed)
    features = np.column_stack([np.ones(90), rng.normal(size=90)])
    outcome = (rng.random(90) < sigmoids(features @ [0.2, -0.9])).astype(np.float64)
    weights = rng.integers(0, 4, (3, 90)).astype(np.float64)
    found = fit_logistic(features, outcome, weights)
    family = statsmodels.api.families.Binomial()
    for own, mine in zip(weights, found, strict=True):
        model = statsmodels.api.GLM(outcome, features, family=family, freq_weights=own)
        assert mine == pytest.approx(model.fit(tol=1e-14).params, abs=1e-8)


def test_a_likelihood_without_maximum_gives_nothing() -> None:
    line, ones = np.linspace(-1, 1, 20), np.ones((1, 20))
    features = np.column_stack([np.ones(20), line])
    twice = np.column_stack([line, line])
    assert np.isnan(fit_logistic(features, (line > 0).astype(np.float64), ones)).all()
    assert np.isnan(fit_logistic(twice, (line > 0.3).astype(np.float64), ones)).all()
    assert np.isnan(fit_logistic(features, line > 0.3, np.zeros((1, 20)))).all()


def test_one_far_point_is_no_separation() -> None:
    """One answer is sixty standard deviations longer, which puts its log-odds beyond 30."""
    rng = np.random.default_rng(2)
    line = np.append(rng.normal(size=400), 60.0)
    outcome = np.append(rng.random(400) < sigmoids(line[:-1]), 1.0).astype(np.float64)
    features = np.column_stack([np.ones(401), line])
    found = fit_logistic(features, outcome, np.ones((1, 401)))[0]
    assert found[1] == pytest.approx(1.0, abs=0.3)


def test_same_slot_by_hand() -> None:
    as_first = np.asarray([0.9, 0.9, 0.1, 0.2, 0.5, MISSING])
    as_second = np.asarray([0.2, 0.8, 0.7, 0.1, 0.9, 0.9])
    expected = [1.0, 0.0, -1.0, 0.0, MISSING, MISSING]
    assert np.array_equal(same_slot(as_first, as_second), expected, equal_nan=True)


def test_picks_of_longer_answers() -> None:
    prob = np.asarray([0.9, 0.9, 0.1, 0.5, 0.9, MISSING])
    longer_by = np.asarray([3.0, -3.0, -3.0, 4.0, 0.0, 4.0])
    expected = [1.0, 0.0, 1.0, MISSING, MISSING, MISSING]
    assert np.array_equal(picks_longer(prob, longer_by), expected, equal_nan=True)


def test_the_length_coefficient_is_recovered_and_ignores_what_people_wanted() -> None:
    rng = np.random.default_rng(7)
    size = 40_000
    longer_by = rng.normal(0.0, 250.0, size)
    # People like length as well: without the control the judge would seem more biased than it is.
    label = (rng.random(size) < sigmoids(longer_by / 200.0)).astype(np.float64)
    odds = 0.7 * longer_by / longer_by.std() + 1.2 * (2 * label - 1)
    prob = (rng.random(size) < sigmoids(odds)).astype(np.float64)
    found = length_coefficient(prob, label, longer_by)
    assert found.n == size
    assert plain(found.of, size) == pytest.approx(0.7, abs=0.05)


def test_a_judge_that_only_follows_length_has_no_coefficient() -> None:
    rng = np.random.default_rng(1)
    longer_by = rng.normal(size=200)
    label = rng.integers(0, 2, 200).astype(np.float64)
    follower = length_coefficient((longer_by > 0).astype(np.float64), label, longer_by)
    assert plain(follower.of, 200) is None
    assert plain(length_coefficient(label, label, np.zeros(200)).of, 200) is None


def test_self_preference_by_hand() -> None:
    # Own answer first, second, first, first; the last pair has no own answer.
    own = np.asarray([1.0, -1.0, 1.0, 1.0, 0.0])
    label = np.asarray([1.0, 0.0, 0.0, 0.0, 1.0])
    prob = np.asarray([0.9, 0.2, 0.8, 0.1, 0.1])
    # People pick own in two, of which the judge picks own in both; other in two, of which in one.
    found = self_preference(prob, label, own)
    assert (plain(found.of, 5), found.n) == (pytest.approx(1.0 - 0.5), 4)
    assert plain(self_preference(prob[:2], label[:2], own[:2]).of, 2) is None
