"""Every figure of judge-bench: weights are repeats, and intervals hold the truth as promised."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from rlaif.core.numbers import sigmoids
from rlaif.metrics.judge_figures import BY_SUBSET, calibration_figures, figures, joint_votes
from rlaif.metrics.pooled import UNDEFINED, figure_intervals
from rlaif.metrics.rewardbench import SECTIONS
from rlaif.metrics.verdicts import VerdictTable
from rlaif.metrics.weighted import Figure, compute_defined, mean_of

MISSING = float("nan")
SUBSETS = np.asarray([next(iter(sizes)) for sizes in SECTIONS.values()])


def drawn_table(seed: int, prompts: int, coarse: bool) -> VerdictTable:
    """A comparative judge with biases on some three pairs per prompt: missing verdicts, ties, own
    answers. Its probabilities are of three values, or all different."""
    rng = np.random.default_rng(seed)
    prompt = rng.integers(0, prompts, 3 * prompts)
    n = prompt.size
    # What is shared by the pairs of a prompt makes them one draw.
    quality = rng.normal(0.0, 1.0, n) + rng.normal(0.0, 1.0, prompts)[prompt]
    longer_by = rng.normal(0.0, 300.0, n)
    own = rng.integers(-1, 2, n).astype(np.float64)
    label = (rng.random(n) < sigmoids(quality)).astype(np.float64)
    label = np.where(rng.random(n) < 0.05, 0.5, label)
    lean = sigmoids(1.5 * quality + longer_by / 600 + 0.5 * own + rng.normal(0.0, 1.0, n))
    slot = rng.normal(0.0, 0.1, n)
    prob = np.where(rng.random(n) < 0.05, MISSING, np.round(2 * lean) / 2 if coarse else lean)
    as_first, as_second = np.clip(lean + slot, 0, 1), np.clip(lean - slot, 0, 1)
    counted = np.full(n, 2.0)
    return VerdictTable(
        prompt=prompt.astype(str),
        subset=SUBSETS[rng.integers(0, SUBSETS.size, n)],
        fold=prompt % 2,
        label=label,
        longer_by=longer_by,
        own=own,
        prob=prob,
        as_first=as_first,
        as_second=as_second,
        judgements=counted,
        abstained=(rng.random(n) < 0.1).astype(np.float64),
        unread=(rng.random(n) < 0.2).astype(np.float64),
        slot_one=rng.integers(0, 3, n).astype(np.float64),
        slot_decided=counted,
        label_mass=rng.random(n),
        calls=counted,
        seconds=rng.random(n),
        prompt_tokens=rng.integers(1, 99, n).astype(np.float64),
        new_tokens=rng.integers(1, 9, n).astype(np.float64),
        money=np.where(rng.random(n) < 0.1, MISSING, rng.random(n)),
        same=rng.random(n),
    )


@pytest.mark.parametrize("coarse", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_a_weight_is_a_repeat(seed: int, coarse: bool) -> None:
    table = drawn_table(seed, 30, coarse)
    size = table.prompt.size
    weights = np.random.default_rng(seed).integers(0, 4, (5, size))
    measured = figures(table)
    assert set(compute_defined(measured, size)) == set(measured)
    for name, figure in measured.items():
        found = figure.of(weights.astype(np.float64))
        for own, value in zip(weights, found, strict=True):
            repeated = table.take(np.repeat(np.arange(size), own))
            expected = figures(repeated)[name].of(np.ones((1, int(own.sum()))))[0]
            assert value == pytest.approx(expected, abs=1e-9, nan_ok=True), name


FIGURES = [
    *("agreement", "agreement_half", "agreement_three_way", "kappa", "kappa_three_way", "alpha"),
    *("spearman", "kendall", "same_slot", "prefers_longer", "length_coefficient"),
    *("self_preference", "brier", "brier_scaled", "temperature", "rewardbench", "tie_rate"),
]


def test_intervals_hold_the_truth_about_95_of_100_times() -> None:
    """Prompts are drawn and bring their pairs, which resemble one another."""
    large = drawn_table(99, 20_000, False)
    truth = compute_defined(figures(large), large.prompt.size)
    held, trials = dict.fromkeys(FIGURES, 0), 100
    for trial in range(trials):
        table = drawn_table(1000 + trial, 60, False)
        found = figure_intervals(figures(table), list(table.prompt))
        for name in FIGURES:
            low, high = found[name].low, found[name].high
            assert low is not None and high is not None, name
            held[name] += low <= truth[name] <= high
    shares = {name: count / trials for name, count in held.items()}
    assert shares.pop("tie_rate") == 1.0
    # Some four binomial standard errors below 0.95.
    assert min(shares.values()) > 0.86, shares
    assert np.mean(list(shares.values())) < 0.985, shares


def test_what_two_prompts_make_alone_has_no_interval() -> None:
    prompts = [str(number) for number in range(40)]
    alone = np.full(40, MISSING)
    alone[3] = 0.25
    both = mean_of(np.where(np.arange(40) == 3, 0.25, MISSING))
    other = mean_of(np.where(np.arange(40) == 4, 0.5, MISSING))
    sums = Figure(lambda weights: both.of(weights) + other.of(weights), 2, np.asarray([3, 4]))
    nothing = mean_of(np.full(40, MISSING))
    found = figure_intervals({"brier": mean_of(alone), "kappa": sums, "ece": nothing}, prompts)
    assert set(found) == {"brier", "kappa"}
    # Of a share one prompt tells nothing.
    one = found["brier"]
    assert (one.low, one.mean, one.high, one.n) == (0.0, 0.25, 1.0, 1)
    assert (found["kappa"].low, found["kappa"].note) == (None, UNDEFINED)


def test_every_figure_of_a_judge_has_a_rule() -> None:
    table = drawn_table(6, 40, False)
    found = figure_intervals(figures(table), list(table.prompt))
    assert set(found) == set(figures(table))
    without = {name for name, interval in found.items() if interval.low is None}
    assert without == {"ece", "ece_equal_mass", "ece_scaled", "calls_per_pair"}
    assert found["calls_per_pair"].note == "the same for every prompt"
    assert set(found) > set(BY_SUBSET)


def test_what_is_on_log_scale_is_of_graded_probabilities_alone() -> None:
    log_scale = {"temperature", "calibration_slope", "calibration_intercept", "ece_scaled"}
    coarse, graded = (figures(drawn_table(7, 40, c)) for c in (True, False))
    assert not log_scale & set(coarse) and log_scale <= set(graded)
    assert {"brier", "ece"} <= set(coarse)
    assert calibration_figures(drawn_table(7, 40, True), 0)["graded"] is False
    found = calibration_figures(drawn_table(7, 40, False), 0)
    assert found["graded"] is True
    assert found["calibration_error"]["low"] is not None
    assert found["ece_if_calibrated"]["mean"] > 0
    assert found["calibration_detectable"] > 0


def test_votes_lie_between_one_and_the_number_of_judges() -> None:
    tables = {name: drawn_table(seed, 40, False) for seed, name in enumerate("ab")}
    shared = tables["a"]
    # The second judge errs where the first does, and nearly only there.
    near = np.where(np.arange(shared.prob.size) % 9 == 0, 1 - shared.prob, shared.prob)
    alike = joint_votes({"a": shared, "b": replace(shared, prob=near)})
    assert alike is not None and alike.low is not None and alike.high is not None
    assert 1.0 <= alike.low < alike.mean < alike.high <= 2.0


def test_batches_of_weights_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    table = drawn_table(5, 20, False)
    whole = figure_intervals(figures(table), list(table.prompt))
    monkeypatch.setattr("rlaif.metrics.pooled._WEIGHTS_AT_ONCE", 130)
    parts = figure_intervals(figures(table), list(table.prompt))
    for name, found in whole.items():
        if found.low is not None:
            assert parts[name].low == pytest.approx(found.low, rel=1e-9, abs=1e-12), name
            assert parts[name].high == pytest.approx(found.high, rel=1e-9, abs=1e-12), name
