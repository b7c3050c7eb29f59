"""What battles say together: missing verdicts, groups that never met, and each pair's share."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from rlaif.metrics.arena import ArenaBattle, measure_arena
from rlaif.metrics.ranking import Comparison, bradley_terry

STYLE = {"words": 5, "headers": 0, "lists": 0, "bold": 0}


def battle(
    prompt: int, first: str, second: str, prob: float | None, slot: float | None = 0.5
) -> ArenaBattle:
    outputs = (f"{first}{prompt}", f"{second}{prompt}")
    sides = (STYLE, STYLE)
    return ArenaBattle(f"p{prompt}", first, second, prob, slot, 1.0, 0, (9, 9), outputs, sides)


def measure(battles: list[ArenaBattle], anchor: str | None = None) -> dict[str, Any]:
    names = sorted({name for b in battles for name in (b.first, b.second)})
    return measure_arena(battles, names, anchor, 0)


MET = [battle(n, "a", "b", float(n % 4 > 0)) for n in range(12)]
MET += [battle(n, "b", "c", float(n % 3 > 0)) for n in range(12)]


def test_ratings_are_those_of_bradley_and_terry() -> None:
    (group,) = measure(MET, "c")["groups"]
    wanted = bradley_terry(
        [Comparison(b.prompt_id, b.first, b.second, b.prob_first or 0.0) for b in MET], "c"
    )
    assert [(r["player"], r["rating"], r["low"]) for r in group["ratings"]] == [
        (r.player, r.rating, r.low) for r in wanted
    ]
    assert group["battles"] == {"a": 12, "b": 24, "c": 12}
    assert {r["player"] for r in group["elo"]} == {"a", "b", "c"}
    assert group["style"]["effects"] == {}


def test_a_missing_verdict_is_counted_and_decides_nothing() -> None:
    plain = measure(MET)
    found = measure([*MET, *(battle(n, "a", "c", None, None) for n in range(5))])
    assert (found["battles"], found["judged"]) == (29, 24)
    assert found["groups"] == plain["groups"]
    (pair,) = [p for p in found["pairs"] if (p["first"], p["second"]) == ("a", "c")]
    assert (pair["battles"], pair["judged"], pair["share"]) == (5, 0, None)


def test_models_that_never_met_are_rated_apart_and_one_without_a_verdict_not_at_all() -> None:
    apart = [
        *MET,
        *(battle(n, "x", "y", float(n % 2)) for n in range(8)),
        battle(0, "a", "z", None),
    ]
    found = measure(apart, "c")
    groups = [sorted(r["player"] for r in group["ratings"]) for group in found["groups"]]
    assert groups == [["a", "b", "c"], ["x", "y"]]
    assert [group["anchor"] for group in found["groups"]] == ["c", None]
    assert found["unrated"] == ["z"]


def test_the_share_of_a_pair_and_the_rate_of_the_first_slot() -> None:
    found = measure([battle(n, "a", "b", 1.0 if n < 9 else 0.5, 0.75) for n in range(12)])
    (pair,) = found["pairs"]
    assert pair["share"]["mean"] == pytest.approx(10.5 / 12)
    assert pair["share"]["low"] < 10.5 / 12 < pair["share"]["high"]
    assert found["ties"] == 3 and found["slot_one"]["mean"] == pytest.approx(0.75)
    assert found["slot_one"]["p"] < 0.05, "against a judge without a bias"


def test_the_style_of_each_answer_is_its_own() -> None:
    """The longer answer wins, whichever model wrote it: length is worth rating points."""
    sides = (STYLE | {"words": 90}, STYLE)
    battles = [
        replace(battle(n, "a", "b", float(n % 2)), styles=sides if n % 2 else sides[::-1])
        for n in range(12)
    ]
    (group,) = measure(battles)["groups"]
    assert group["style"]["effects"]["words"] > 0


def test_the_order_of_battles_changes_nothing() -> None:
    assert measure(list(reversed(MET))) == measure(MET)
