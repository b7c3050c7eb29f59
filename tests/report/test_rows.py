"""Which rounds stand in which columns of a table, and alarms of which of them are shown."""

from __future__ import annotations

from typing import Any

from rlaif.report.rows import alarm_items, latest_rounds, side_by_side


def row(arm: str, seed: int, number: int, *alarms: tuple[str, float], label: str = "") -> Any:
    """A round's row, with alarms by name and value."""
    found = [
        {"name": name, "metric": f"of {name}", "value": value, "severity": "alarm", "message": name}
        for name, value in alarms
    ]
    return {
        "arm": arm,
        "seed": seed,
        "round": number,
        "label": label or f"M{number}",
        "metrics": {"metrics": {}, "deltas": {}, "alarms": found},
    }


def test_an_arm_that_has_no_round_yet_has_no_column() -> None:
    rounds = [row("a", 0, 0), row("a", 0, 1), row("a", 0, 2), row("b", 0, 0), row("c", 0, 0),
              row("c", 0, 1)]  # fmt: skip
    headings, shown = side_by_side(rounds)
    assert headings == ["M0", "a", "c"]
    assert [(one["arm"], one["round"], one["label"]) for one in shown] == [
        ("a", 0, "M0"), ("a", 1, "M2"), ("c", 2, "M1")
    ]  # fmt: skip
    # One arm has its rounds as columns.
    headings, shown = side_by_side(rounds[:3])
    assert (headings, shown) == (["M0", "M1", "M2"], rounds[:3])


def test_the_latest_rounds_are_by_arm_in_its_order_and_then_by_seed() -> None:
    rounds = [row(arm, seed, n) for seed in (7, 2) for arm in ("z", "a") for n in (1, 0)]
    found = [(one["arm"], one["seed"], one["round"]) for one in latest_rounds(rounds)]
    assert found == [("z", 2, 1), ("z", 7, 1), ("a", 2, 1), ("a", 7, 1)]


def test_alarms_are_of_the_last_round_or_of_those_before_it() -> None:
    rounds = [
        row("a", 0, 0, ("first", 1.0)),
        row("a", 0, 1, ("length", 2.0)),
        row("a", 0, 2, ("length", 3.0)),
        # Every arm begins with the same M0.
        row("b", 0, 0, ("first", 1.0)),
        row("b", 0, 2, ("length", 9.0)),
        row("b", 1, 2, ("length", 5.0)),
    ]
    (latest,) = alarm_items(rounds, latest=True)
    assert (latest["name"], latest["round"], latest["values"]) == ("length", 2, [3.0, 9.0, 5.0])
    assert (latest["arms"], latest["seeds"]) == (["a", "b"], [0, 1])
    # The least and the largest, wherever they come.
    assert latest["where"] == "arms a, b, seeds 0, 1 (of length 3.000 to 9.000)"
    earlier = alarm_items(rounds, latest=False)
    assert [(one["name"], one["round"], one["values"]) for one in earlier] == [
        ("first", 0, [1.0]), ("length", 1, [2.0])
    ]  # fmt: skip
