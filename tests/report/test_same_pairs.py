"""A comparison in text names two figures over the same prompts or pairs, and their difference."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from rlaif.metrics.judge_figures import compare_judges
from rlaif.metrics.metrics import compute_differences, compute_intervals
from rlaif.metrics.verdicts import VerdictTable
from rlaif.report.bench import baseline_words
from rlaif.report.merged import make_page
from rlaif.report.table import summarise_arm
from rlaif.report.view import RoundRow

OLD = {f"p{i}": value for i, value in enumerate([0.1, 0.3, 0.2, 0.4, 0.3, 0.2, 0.1, 0.9])}
NEW = {f"p{i}": value for i, value in enumerate([0.4, 0.5, 0.4, 0.5, 0.4, 0.5, 0.4])}
"""The last prompt has no new answer, and M0 did best there."""


def rows(new: dict[str, float], old: dict[str, float], seed: int = 0) -> list[RoundRow]:
    name = "score/checks"
    given: list[Any] = [
        {"metrics": compute_intervals({name: old}), "deltas": {}},
        {
            "metrics": compute_intervals({name: new}),
            "deltas": {"initial": compute_differences({name: new}, {name: old})},
        },
    ]
    about: Any = {"arm": "main", "seed": seed, "policy_in": "M0", "policy_out": "M1", "counts": {}}
    return [
        {**about, "round": number, "metrics": {**result, "alarms": [], "words": []}}
        for number, result in enumerate(given)
    ]


def sentence(rounds: list[RoundRow], values: Any = lambda arm, seed, number: {}) -> str:
    page = make_page(rounds, [], values, None, ["checks"])
    last = [row for row in rounds if row["round"] == 1]
    return summarise_arm(page.latest[0], last, page)[0][1][0]


def three_numbers(text: str) -> tuple[float, float, float]:
    found = re.search(r"(\S+) to (\S+), ([+-]\S+)", text)
    assert found is not None, text
    start, end, change = (float(x) for x in found.groups())
    return start, end, change


def test_a_change_is_from_and_to_the_same_prompts() -> None:
    assert compute_differences({"check/m": NEW}, {"check/m": OLD})["check/m"][
        "old"
    ] == pytest.approx(1.6 / 7)
    start, end, change = three_numbers(sentence(rows(NEW, OLD)))
    assert start == pytest.approx(1.6 / 7, abs=5e-4)
    assert end == pytest.approx(3.1 / 7, abs=5e-4)
    assert end - start == pytest.approx(change, abs=2e-3)


def test_over_seeds_too() -> None:
    """The prompt that one seed lacks counts in none."""
    others = {p: v for p, v in NEW.items() if p != "p1"}
    stored = {(0, 0): OLD, (0, 1): NEW, (1, 0): OLD, (1, 1): others}

    def values(arm: str, seed: int, number: int) -> dict[str, dict[str, float]]:
        return {"score/checks": stored[seed, number]}

    start, end, change = three_numbers(
        sentence([*rows(NEW, OLD), *rows(others, OLD, seed=1)], values)
    )
    assert start == pytest.approx(1.3 / 6, abs=5e-4)
    assert end - start == pytest.approx(change, abs=2e-3)


def test_a_figure_at_its_ceiling_cannot_move() -> None:
    top = {f"p{i}": 1.0 for i in range(12)}
    nearly = top | {"p0": 0.9}
    assert "it cannot move: it was 1 at the start, the end of its scale." in sentence(
        rows(nearly, top)
    )
    assert "it cannot move" in sentence(rows(top, nearly))
    assert "cannot move" not in sentence(rows(NEW, OLD))


def table(prob: list[float]) -> VerdictTable:
    """Verdicts on six pairs whose first answer is better; NaN is none."""
    size = len(prob)
    blank = np.full(size, np.nan)
    columns: dict[str, Any] = dict.fromkeys(VerdictTable.__dataclass_fields__, blank)
    columns |= {
        "prompt": np.asarray([f"p{i}" for i in range(size)]),
        "subset": np.asarray([""] * size),
        "fold": np.zeros(size, dtype=np.int64),
        "label": np.ones(size),
        "prob": np.asarray(prob),
    }
    return VerdictTable(**columns)


def test_a_judge_and_the_best_baseline_are_on_the_pairs_of_both() -> None:
    """The judge has 4 of 6; the baseline 2 of the 3 that it decided, where the judge has 1."""
    nan = float("nan")
    judge, baseline = [0.1, 0.9, 0.1, 0.9, 0.9, 0.9], [0.9, 0.9, 0.1, nan, nan, nan]
    row = compare_judges(table(judge), table(baseline))
    assert row is not None

    def about(agreement: float, is_baseline: bool) -> dict[str, Any]:
        half = {"mean": agreement, "low": 0.0, "high": 1.0, "n": 6}
        return {"agreement": agreement, "agreement_half": half, "baseline": is_baseline}

    judges = {"mine": about(4 / 6, False), "longer": about(2 / 3, True)}
    for one, other, found in (
        ("mine", "longer", row),
        ("longer", "mine", compare_judges(table(baseline), table(judge))),
    ):
        result = {"judges": judges, "comparisons": [{"first": one, "second": other, **found}]}
        (words,) = baseline_words(result)
        assert "On the 3 pairs that both decided, mine agrees with 0.333" in words
        assert "longer, with 0.667 (-0.333" in words
    (alone,) = baseline_words({"judges": judges, "comparisons": []})
    assert "no pair was decided both by it and by the best baseline" in alone
