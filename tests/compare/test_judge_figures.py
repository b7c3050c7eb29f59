"""Every figure of judge-bench: weights are repeats, and intervals hold the truth as promised."""

from __future__ import annotations

import numpy as np
import pytest

from rlaif.compare.intervals import figure_intervals
from rlaif.compare.judge_figures import figures
from rlaif.compare.logistic import sigmoid
from rlaif.compare.rewardbench import SECTIONS
from rlaif.compare.verdicts import VerdictTable
from rlaif.compare.weighted import Figure, defined, mean_of

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
    label = (rng.random(n) < sigmoid(quality)).astype(np.float64)
    label = np.where(rng.random(n) < 0.05, 0.5, label)
    lean = sigmoid(1.5 * quality + longer_by / 600 + 0.5 * own + rng.normal(0.0, 1.0, n))
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
    assert set(defined(measured, size)) == set(measured)
    for name, figure in measured.items():
        found = figure.of(weights.astype(np.float64))
        for own, value in zip(weights, found, strict=True):
            repeated = table.take(np.repeat(np.arange(size), own))
            expected = figures(repeated)[name].of(np.ones((1, int(own.sum()))))[0]
            assert value == pytest.approx(expected, abs=1e-9, nan_ok=True), name


# Calibration error is left out: drawing pairs twice makes bins rougher, so its interval sits high.
FIGURES = [
    *("agreement", "agreement_half", "agreement_three_way", "kappa", "kappa_three_way", "alpha"),
    *("spearman", "kendall", "same_slot", "prefers_longer", "length_coefficient"),
    *("self_preference", "brier", "brier_scaled", "temperature", "rewardbench", "tie_rate"),
]


def test_intervals_hold_the_truth_about_95_of_100_times() -> None:
    """Prompts are drawn and bring their pairs, which resemble one another."""
    large = drawn_table(99, 20_000, False)
    truth = defined(figures(large), large.prompt.size)
    held, trials = dict.fromkeys(FIGURES, 0), 100
    for trial in range(trials):
        table = drawn_table(1000 + trial, 60, False)
        found = figure_intervals(figures(table), list(table.prompt), trial, 100)
        for name in FIGURES:
            held[name] += found[name].low <= truth[name] <= found[name].high
    shares = {name: count / trials for name, count in held.items()}
    assert shares.pop("tie_rate") == 1.0
    # Some four binomial standard errors below 0.93, which percentiles of few resamples reach.
    assert min(shares.values()) > 0.82, shares
    assert np.mean(list(shares.values())) < 0.98, shares


def test_a_figure_that_most_resamples_lack_has_no_interval() -> None:
    """Of 40 prompts one alone has a value: it is in 64% of the resamples, two together in 41%."""
    prompts = [str(number) for number in range(40)]
    alone = np.full(40, MISSING)
    alone[3] = 0.25
    both = mean_of(np.where(np.arange(40) == 3, 0.25, MISSING))
    other = mean_of(np.where(np.arange(40) == 4, 0.5, MISSING))
    sums = Figure(lambda weights: both.of(weights) + other.of(weights), 2)
    nothing = mean_of(np.full(40, MISSING))
    found = figure_intervals({"one": mean_of(alone), "two": sums, "none": nothing}, prompts)
    assert set(found) == {"one"}
    assert (found["one"].low, found["one"].mean, found["one"].n) == (0.25, 0.25, 1)


def test_batches_of_weights_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    table = drawn_table(5, 20, False)
    whole = figure_intervals(figures(table), list(table.prompt), 3, 50)
    monkeypatch.setattr("rlaif.compare.bootstrap._WEIGHTS_AT_ONCE", 130)
    parts = figure_intervals(figures(table), list(table.prompt), 3, 50)
    for name, found in whole.items():
        assert parts[name].low == pytest.approx(found.low, abs=1e-12), name
        assert parts[name].high == pytest.approx(found.high, abs=1e-12), name
