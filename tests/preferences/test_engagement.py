"""Signals of shown answers as weighted preferences: a planted position bias goes away."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from sklearn.linear_model import PoissonRegressor

from rlaif.config.engagement import EngagementSpec
from rlaif.core.errors import ConfigError
from rlaif.data.events import read_events
from rlaif.metrics.pooled import figure_intervals
from rlaif.metrics.weighted import share_of
from rlaif.preferences.engagement import Engagement, weigh_engagement

Row = dict[str, Any]


def shown(impression: object, position: int, answer: str, **done: Any) -> Row:
    return {
        "impression": impression,
        "prompt": "Name a fruit.",
        "response": answer,
        "position": position,
        **done,
    }


def weigh(folder: Path, rows: Iterable[Row], **keys: Any) -> Engagement:
    file = folder / "events.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec = EngagementSpec.model_validate({"signal": "clicked", **keys})
    return weigh_engagement(read_events(file, False).impressions, spec)


def weights_of(made: Engagement) -> dict[tuple[str, str], float]:
    """By chosen and rejected text, "" where that side is empty."""
    return {
        (
            p.chosen.answer.text if p.chosen else "",
            p.rejected.answer.text if p.rejected else "",
        ): p.weight
        for p in made.preferences
    }


def fixed_order(clicks_a: int, clicks_b: int, of: int) -> list[Row]:
    """Answer a always above b, each clicked so often."""
    rows = []
    for number in range(of):
        rows.append(shown(number, 1, "a", clicked=number < clicks_a))
        rows.append(shown(number, 2, "b", clicked=number < clicks_b))
    return rows


def test_a_click_counts_as_the_inverse_of_its_examination(tmp_path: Path) -> None:
    # METHODS: theta [1, .5], clicks 3/4 and 1/4, so r is .75 and .5; weights have a mean of 1.
    found = weights_of(weigh(tmp_path, fixed_order(3, 1, 4), examination=[1.0, 0.5]))
    assert found == pytest.approx({("a", "b"): 3 / 2.5, ("b", "a"): 2 / 2.5})


@pytest.mark.parametrize("keys", [{"examination": [1.0]}, {"max_weight": 1.0}], ids=["one", "clip"])
def test_equal_examination_and_full_clipping_give_the_raw_clicks(
    tmp_path: Path, keys: dict[str, Any]
) -> None:
    made = weigh(tmp_path, fixed_order(3, 1, 4), **{"examination": [1.0, 0.5], **keys})
    assert weights_of(made) == pytest.approx({("a", "b"): 1.5, ("b", "a"): 0.5})
    assert made.clipped == (1 if "max_weight" in keys else 0)


def test_the_effective_size_is_that_of_the_weights_of_clicks(tmp_path: Path) -> None:
    made = weigh(tmp_path, fixed_order(3, 1, 4), examination=[1.0, 0.5])
    # Three weights of 1 and one of 2.
    assert (made.signals, made.effective) == (4, pytest.approx(25 / 7))


def test_the_logged_propensity_is_each_rows_own(tmp_path: Path) -> None:
    rows = [
        shown(1, 1, "a", clicked=True, propensity=0.8),
        shown(1, 2, "b", clicked=False, propensity=0.1),
        shown(2, 1, "b", clicked=True, propensity=0.2),
        shown(2, 2, "a", clicked=False),
    ]
    found = weights_of(weigh(tmp_path, rows))
    # 1 / .8 and 1 / .2; the row without one is not clicked, so nothing needs it.
    assert found[("b", "a")] / found[("a", "b")] == pytest.approx(4.0)
    rows[3]["clicked"] = True
    with pytest.raises(ConfigError, match=r"jsonl:4: propensity is missing, and `examination"):
        weigh(tmp_path, rows)


def test_positions_beyond_the_list_have_its_last_value(tmp_path: Path) -> None:
    rows = [shown(1, 5, "a", clicked=True), shown(1, 1, "b", clicked=True)]
    found = weights_of(weigh(tmp_path, rows, examination=[1.0, 0.25]))
    assert found[("a", "b")] / found[("b", "a")] == pytest.approx(4.0)


def test_skipped_above_is_only_what_stands_above_without_the_signal(tmp_path: Path) -> None:
    rows = [
        shown(1, 1, "a", clicked=True),
        shown(1, 2, "b", clicked=False),
        shown(1, 3, "c", clicked=True),
        shown(1, 4, "d", clicked=False),
    ]
    found = weigh(tmp_path, rows, examination=[1.0], against="skipped_above")
    assert weights_of(found).keys() == {("c", "b")}
    every = weights_of(weigh(tmp_path, rows, examination=[1.0]))
    # Of two clicked ones each is preferred to the other.
    assert every.keys() == {(x, y) for x in "ac" for y in "abcd" if x != y}


def test_no_pair_crosses_impressions_or_joins_an_answer_with_itself(tmp_path: Path) -> None:
    rows = [
        shown(1, 1, "a", clicked=True),
        shown(2, 1, "b", clicked=False),
        shown(3, 1, "c", clicked=True),
        shown(3, 2, "c", clicked=False),
    ]
    with pytest.raises(ConfigError, match="none of 2 answers with the signal 'clicked' stands in"):
        weigh(tmp_path, rows, examination=[1.0])


ALONE = [
    shown(1, 1, "a", clicked=True, thumbs="up", dwell=40),
    shown(1, 2, "b", clicked=False, thumbs="down", dwell=2),
    shown(2, 1, "c", clicked=False, examined=True, thumbs=None, dwell=20),
    shown(2, 2, "d", clicked=True, thumbs=0),
]


@pytest.mark.parametrize(
    ("keys", "good", "bad"),
    [
        # An answer that nobody clicked is unknown, unless it was surely looked at.
        ({"signal": "clicked"}, "ad", "c"),
        ({"signal": "thumbs"}, "a", "b"),
        ({"signal": "dwell", "long_dwell": 30, "short_dwell": 5}, "a", "b"),
        ({"signal": "dwell", "long_dwell": 15}, "ac", ""),
    ],
    ids=["clicked", "thumbs", "dwell", "long dwell"],
)
def test_which_answers_stand_alone(
    tmp_path: Path, keys: dict[str, Any], good: str, bad: str
) -> None:
    found = weights_of(weigh(tmp_path, ALONE, form="answers", examination=[1.0], **keys))
    assert found.keys() == {*((x, "") for x in good), *(("", x) for x in bad)}


def test_a_dwell_at_its_bound_is_long_and_is_not_short(tmp_path: Path) -> None:
    rows = [shown(1, 1, "a", dwell=30), shown(1, 2, "b", dwell=5), shown(1, 3, "c", dwell=4)]
    keys: dict[str, Any] = {"signal": "dwell", "long_dwell": 30, "short_dwell": 5}
    found = weights_of(weigh(tmp_path, rows, form="answers", examination=[1.0], **keys))
    assert found.keys() == {("a", ""), ("", "c")}


def test_an_answer_that_was_looked_at_without_a_recorded_signal_is_unknown(tmp_path: Path) -> None:
    rows = [shown(1, 1, "a", clicked=True), shown(1, 2, "b", examined=True)]
    found = weights_of(weigh(tmp_path, rows, form="answers", examination=[1.0]))
    assert found.keys() == {("a", "")}


def test_a_weight_that_just_reaches_the_largest_is_not_clipped(tmp_path: Path) -> None:
    rows = fixed_order(3, 1, 4)
    for most, clipped in ((2.0, 0), (1.9, 1)):
        assert weigh(tmp_path, rows, examination=[1.0, 0.5], max_weight=most).clipped == clipped
    rare = weights_of(weigh(tmp_path, rows, examination=[1.0, 0.02]))
    assert rare[("b", "a")] / rare[("a", "b")] == pytest.approx(50 / 3)


def test_answers_alone_are_weighted_too(tmp_path: Path) -> None:
    found = weights_of(weigh(tmp_path, ALONE, form="answers", examination=[1.0, 0.25]))
    assert found[("d", "")] / found[("a", "")] == pytest.approx(4.0)
    assert sum(found.values()) == pytest.approx(len(found))


R, THETA, PROMPTS, TIMES = {"plain": 0.6, "wordy": 0.4}, (1.0, 0.4), 60, 30


def planted(seed: int = 5) -> list[Row]:
    """A ranker that puts the wordy answer first, but for three impressions in ten, whose order is
    drawn. Whoever looks at an answer likes the plain one more often."""
    draw = random.Random(seed)
    rows = []
    for number in range(PROMPTS * TIMES):
        lot = draw.random() < 0.3
        order = ["wordy", "plain"]
        if lot:
            draw.shuffle(order)
        for position, answer in enumerate(order, start=1):
            clicked = draw.random() < THETA[position - 1] and draw.random() < R[answer]
            row = shown(number, position, answer, clicked=clicked, random=lot)
            rows.append(row | {"prompt": f"Question {number % PROMPTS}?"})
    return rows


def share_of_plain(made: Engagement) -> tuple[float, float, float]:
    """The share of the weight that prefers the plain answer, with its interval over prompts."""
    weights = np.asarray([p.weight for p in made.preferences])
    plain = [p.chosen is not None and p.chosen.answer.text == "plain" for p in made.preferences]
    prompts = [str(p.prompt[-1]["content"]) for p in made.preferences]
    figure = share_of(weights * np.asarray(plain), weights)
    found = figure_intervals({"hajek": figure}, prompts)["hajek"]
    assert found.low is not None and found.high is not None
    return found.mean, found.low, found.high


@pytest.mark.parametrize(
    "examination", [list(THETA), "random", "position_model"], ids=["given", "random", "model"]
)
def test_a_planted_position_bias_is_removed(tmp_path: Path, examination: Any) -> None:
    rows = planted()
    naive = share_of_plain(weigh(tmp_path, rows, examination=[1.0]))
    # .6 (.7 x .4 + .3 x .7) against .4 (.7 + .3 x .7): the wordy one seems better, and is not.
    assert naive[0] == pytest.approx(0.294 / 0.658, abs=0.03) and naive[2] < 0.5
    share, low, high = share_of_plain(weigh(tmp_path, rows, examination=examination))
    assert 0.5 < low < R["plain"] < high and share == pytest.approx(R["plain"], abs=0.05)


def test_equal_answers_in_a_fixed_order_come_out_equal(tmp_path: Path) -> None:
    draw = random.Random(3)
    rows = [
        shown(n, k, "ab"[k - 1], clicked=draw.random() < THETA[k - 1] * 0.5) | {"prompt": f"{n}?"}
        for n in range(3000)
        for k in (1, 2)
    ]
    share, low, high = {}, {}, {}
    for name, theta in (("raw", [1.0]), ("weighted", list(THETA))):
        made = weigh(tmp_path, rows, examination=theta)
        weights = np.asarray([p.weight for p in made.preferences])
        first = [p.chosen is not None and p.chosen.answer.text == "a" for p in made.preferences]
        figure = share_of(weights * np.asarray(first), weights)
        names = [str(p.prompt[-1]["content"]) for p in made.preferences]
        found = figure_intervals({"hajek": figure}, names)["hajek"]
        share[name], low[name], high[name] = found.mean, found.low, found.high
    assert low["raw"] > 0.65 and low["weighted"] < 0.5 < high["weighted"]


def test_random_places_give_the_ratio_of_click_rates(tmp_path: Path) -> None:
    rows = planted()
    lot = [row for row in rows if row["random"]]
    rate = [sum(r["clicked"] for r in lot if r["position"] == k) for k in (1, 2)]
    made = weigh(tmp_path, rows, examination="random")
    assert made.theta == pytest.approx({1: 1.0, 2: rate[1] / rate[0]})


def test_a_later_position_may_be_looked_at_more_than_the_first(tmp_path: Path) -> None:
    # One click at the first place and three at the second, in four impressions.
    rows = [row | {"random": True} for row in fixed_order(1, 3, 4)]
    made = weigh(tmp_path, rows, examination="random")
    assert made.theta == pytest.approx({1: 1.0, 2: 3.0})


def test_the_position_model_is_the_poisson_regression_on_answer_and_position(
    tmp_path: Path,
) -> None:
    draw = random.Random(9)
    theta = [1.0, 0.6, 0.3]
    rows = []
    for number in range(1200):
        order = draw.sample("abcde", 3)
        if draw.random() < 0.5:
            order.sort()
        for k, answer in enumerate(order):
            clicked = draw.random() < theta[k] * (0.2 + 0.15 * "abcde".index(answer))
            rows.append(shown(number, k + 1, answer, clicked=clicked))
    made = weigh(tmp_path, rows, examination="position_model")
    columns = ["abcde".index(r["response"]) for r in rows], [4 + r["position"] for r in rows]
    features = np.zeros((len(rows), 8))
    for column in columns:
        features[np.arange(len(rows)), column] = 1.0
    peer = PoissonRegressor(alpha=0.0, fit_intercept=False, tol=1e-10, max_iter=5000)
    peer.fit(np.delete(features, 5, axis=1), [float(r["clicked"]) for r in rows])
    expected = {1: 1.0, 2: np.exp(peer.coef_[5]), 3: np.exp(peer.coef_[6])}
    assert made.theta == pytest.approx(expected, rel=1e-3)
    assert made.theta[3] == pytest.approx(0.3, abs=0.06)


@pytest.mark.parametrize(
    ("examination", "rows", "message"),
    [
        ("random", fixed_order(3, 1, 4), "no impression has two rows with `random: true`"),
        ("position_model", fixed_order(3, 1, 4), "no answer was shown at two positions"),
        (
            "position_model",
            [
                *(shown(n, n % 2 + 1, "a", clicked=n % 2 == 0) for n in range(4)),
                shown(9, 1, "b", clicked=True),
            ],
            "position 2 cannot be compared with position 1",
        ),
        (
            "position_model",
            [shown(n, n % 2 + 2, "a", clicked=True) for n in range(4)],
            "position 1, to which the others are compared",
        ),
    ],
    ids=["nothing random", "nothing moved", "no signal at 2", "no position 1"],
)
def test_what_cannot_be_estimated_is_said(
    tmp_path: Path, examination: str, rows: list[Row], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        weigh(tmp_path, rows, examination=examination)


def test_the_order_of_rows_changes_nothing(tmp_path: Path) -> None:
    rows = planted()
    turned = list(reversed(rows))
    one, two = (weigh(tmp_path, r, examination="position_model") for r in (rows, turned))
    assert weights_of(one) == pytest.approx(weights_of(two), rel=1e-9)
    names = [[p.prompt[0]["content"] for p in made.preferences] for made in (one, two)]
    assert names[0] == names[1]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"signal": "dwell"}, "long_dwell` go together"),
        ({"long_dwell": 3.0}, "long_dwell` go together"),
        ({"signal": "dwell", "long_dwell": 3.0, "short_dwell": 2.0}, "short_dwell: only with"),
        (
            {"signal": "dwell", "form": "answers", "long_dwell": 3.0, "short_dwell": 4.0},
            "short_dwell: above",
        ),
        ({"form": "answers", "against": "skipped_above"}, "against: only with `form: pairs`"),
        ({"examination": []}, "the list is empty"),
        ({"examination": [1.0, 0.0]}, "greater than 0"),
        ({"max_weight": 0.5}, "greater than or equal to 1"),
    ],
    ids=lambda value: "" if isinstance(value, dict) else value,
)
def test_keys_that_do_not_go_together_are_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        EngagementSpec.model_validate({"signal": "clicked", **keys})
