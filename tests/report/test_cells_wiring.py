"""What a page and a table say of single figures: both sides of every threshold, and values of which
no two are alike."""

from __future__ import annotations

from typing import Any

import pytest
from rich.text import Text

from rlaif.metrics.intervals import show_interval
from rlaif.report.browser import answer_facts
from rlaif.report.gather import _Smallest
from rlaif.report.reward import reward_words
from rlaif.report.rows import Cell, _make_cell
from rlaif.report.table import _cell_text


def iv(mean: float, half: float = 0.0625) -> Any:
    return {"mean": mean, "low": mean - half, "high": mean + half, "n": 64}


def test_a_cell_has_the_tone_of_a_claimed_change_alone() -> None:
    metrics: Any = {
        "metrics": {"score/j": iv(0.75), "win_rate_vs_initial/j": iv(0.25), "empty_rate": iv(0.5)},
        "deltas": {
            "initial": {"score/j": iv(0.25), "empty_rate": iv(0.125)},
            "previous": {"score/j": iv(-0.5)},
        },
        "standing": {
            "score/j": "claimed",
            "win_rate_vs_initial/j": "claimed",
            "empty_rate": "exploratory",
        },
    }
    score, win, empty, none = (
        _make_cell(name, metrics)
        for name in ("score/j", "win_rate_vs_initial/j", "empty_rate", "length/words")
    )
    assert (score.value, score.delta, score.exploratory) == (iv(0.75), iv(0.25), False)
    assert (win.value, win.delta, win.exploratory) == (iv(0.25), None, False)
    assert (empty.delta, empty.tone, empty.exploratory) == (iv(0.125), "", True)
    assert none == Cell(None, None, "", False)
    # Higher than the first model's is better, and below a half is worse than the opponent.
    assert score.tone and win.tone and score.tone != win.tone
    turned: Any = metrics | {"deltas": {"initial": {"score/j": iv(-0.25)}}}
    assert _make_cell("score/j", turned).tone == win.tone
    unsure: Any = metrics | {"deltas": {"initial": {"score/j": iv(0.25, 0.5)}}}
    assert _make_cell("score/j", unsure).tone == ""


def test_a_cell_is_written_with_its_change_and_its_mark() -> None:
    def said(*given: Any) -> str:
        found: Text = _cell_text(Cell(*given))
        return found.plain

    assert said(None, None, "", False) == "-"
    value, change = iv(0.75), iv(0.25)
    assert said(value, None, "", False) == show_interval(value)
    assert said(value, None, "", True) == show_interval(value) + " *"
    both = f"{show_interval(value)}\n{show_interval(change, signed=True)}"
    assert said(value, change, "", False) == both
    assert said(value, change, "", True) == both + " *"


def test_the_smallest_keys_are_kept_in_their_order_whatever_comes_first() -> None:
    keys = [7, 3, 9, 1, 8, 2, 6, 0, 5, 4]
    for given in (keys, keys[::-1], sorted(keys)):
        kept = _Smallest(3)
        for key in given:
            kept.offer(key, f"value of {key}")
        assert kept.keys() == [0, 1, 2]
        assert kept.values() == ["value of 0", "value of 1", "value of 2"]


def words(**about: Any) -> str:
    rows = [
        {"n": n, "gold": iv(gold), "proxy": iv(n / 8), "kl": 0.5}
        for n, gold in about.pop("gold", ())
    ]
    found: Any = {
        "figures": {"accuracy": about.get("accuracy", iv(0.75))},
        "staleness": about.get("staleness"),
        "label_noise": about.get("noise"),
        "best_of_n": rows,
    }
    return " ".join(reward_words(found))


def test_a_reward_models_sentences_take_the_side_of_its_figures() -> None:
    assert words() == ""
    assert "it may be guessing" in words(accuracy=iv(0.5))
    old, new = iv(0.875) | {"round": 2}, iv(0.625) | {"round": 5}
    stale = {"oldest": old, "newest": new, "stale": True}
    assert words(staleness=stale) == (
        f"Accuracy is {show_interval(old)} on round 2 and {show_interval(new)} on round 5: it is "
        "stale: retrain it, with the newest pairs."
    )
    assert "no sign that it is stale" in words(staleness=stale | {"stale": False})
    assert words(noise={"share": 0.125}).startswith("At least 12.5% of the training labels look")
    assert words(noise={"share": 0.0}).startswith("No training label looks wrong")
    assert words(noise={"share": None}) == ""
    assert "Gold is highest at best of 4 and lower at 8" in words(
        gold=[(1, 0.25), (4, 0.75), (8, 0.5)]
    )
    assert "Gold still rises at best of 8" in words(gold=[(1, 0.25), (4, 0.5), (8, 0.75)])
    assert words(gold=[(1, 0.25)]) == ""


@pytest.mark.parametrize(
    ("answer", "raw", "values", "rationale"),
    [
        ({"text": "Yes", "reasoning": "since"}, "Yes", None, "since"),
        ({"label_probs": {"a": 0.25, "b": 0.5}}, None, {"a": 0.25, "b": 0.5}, None),
    ],
)
def test_what_was_asked_and_answered_is_shown(
    answer: Any, raw: Any, values: Any, rationale: Any
) -> None:
    row = {
        "call_id": "c",
        "role": "by",
        "annotator_id": "m:w",
        "principle": "kind",
        "template_hash": "t",
        "shown": ["a", "b"],
        "sample_index": 2,
        "answer": answer,
    }
    found = answer_facts(row)
    asked = {k: row[k] for k in row if k != "answer"}
    assert found.items() >= (asked | {"rationale": rationale, "raw": raw, "error": None}).items()
    assert (found["values"] or None) == values
    assert answer_facts(row | {"rationale": "first"})["rationale"] == "first"
    assert answer_facts(row | {"answer": {"error": "no"}})["error"] == "no"
    assert answer_facts({"call_id": "c"})["shown"] == []
