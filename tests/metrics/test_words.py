"""Sentences about a self-judge: what they say for clear, unclear, missing and scarce evidence."""

from __future__ import annotations

import pytest

from rlaif.metrics.diagnostics import RoundMetrics
from rlaif.metrics.intervals import IntervalJson
from rlaif.metrics.words import ceiling_words, movement_words, self_judge_words


def iv(mean: float, half: float = 0.01, n: int = 64) -> IntervalJson:
    return {"mean": mean, "low": mean - half, "high": mean + half, "n": n}


def words(metrics: dict[str, IntervalJson], **initial: IntervalJson) -> str:
    changes = {f"score/{judge}": change for judge, change in initial.items()}
    rounds: list[RoundMetrics] = [
        {"metrics": {}, "deltas": {}},
        {"metrics": metrics, "deltas": {"initial": changes}},
    ]
    return " ".join(self_judge_words("self", rounds))


def test_no_round_and_no_measurement() -> None:
    assert self_judge_words("self", []) == []
    assert words({}) == "Nothing was measured about judge 'self' in this round."
    assert "Nothing was measured" in words({"score/other": iv(0.5)})


def test_label_mass() -> None:
    assert "put 93% of its probability on the allowed labels, so" in words(
        {"label_mass/self": iv(0.93)}
    )
    low = words({"label_mass/self": iv(0.2)})
    assert "so its scores are based on a small part of its distribution" in low
    assert "noise until shown otherwise: it does not answer with the labels." in low


def test_a_score_that_moved() -> None:
    text = words({"score/self": iv(0.6)}, self=iv(0.1, 0.05))
    assert "scored the answers 0.500 at the start and 0.600 now" in text
    assert "+0.100 [+0.050, +0.150]: the whole interval lies above zero." in text
    assert "noise" not in text


def test_a_score_that_did_not_move() -> None:
    text = words({"score/self": iv(0.6)}, self=iv(0.1, 0.2))
    assert "the interval includes zero, so this is not evidence of any change" in text


def test_a_score_at_the_end_of_its_scale_cannot_move() -> None:
    at_top = words({"score/self": iv(0.995)}, self={**iv(0.005, 0.006), "old": 0.99})
    assert "0.990 at the start and 0.995 now" in at_top
    assert (
        "it cannot move: it was 0.990 at the start, 0.010 from the end of its scale, 1." in at_top
    )
    assert "not evidence" not in at_top
    fell = words({"score/self": iv(0.8)}, self={**iv(-0.19, 0.05), "old": 0.99})
    assert "the whole interval lies below zero" in fell and "cannot move" not in fell
    middle = words({"score/self": iv(0.6)}, self={**iv(0.1, 0.2), "old": 0.5})
    assert "cannot move" not in middle


@pytest.mark.parametrize(
    ("old", "better", "words"),
    [
        (1.0, 1, "it cannot move: it was 1 at the start, the end of its scale"),
        (0.0, -1, "it cannot move: it was 0 at the start, the end of its scale"),
        (0.0, 1, None),
        (1.0, -1, None),
        (0.99, 0, None),
        (0.97, 1, None),
        (1.4, 1, None),
    ],
)
def test_which_end_a_figure_cannot_move_beyond(old: float, better: int, words: str | None) -> None:
    change: IntervalJson = {**iv(0.0, 0.01), "old": old}
    assert ceiling_words(change, better) == words
    # No prompt differed: there are no ends.
    assert ceiling_words({**change, "low": None, "high": None}, better) == words
    assert ceiling_words(iv(0.0, 0.01), better) is None, "rows of earlier versions do not say"


def test_too_few_prompts_are_no_evidence() -> None:
    text = words({"score/self": iv(0.6)}, self=iv(0.1, 0.0, n=3))
    assert "3 prompts are too few to tell a change from noise" in text
    assert movement_words(iv(0.1, 0.0, n=1)).startswith("1 prompt ")


def test_a_score_without_a_comparison() -> None:
    assert words({"score/self": iv(0.6)}) == (
        "The frozen initial model as judge 'self' gives 0.600 [0.590, 0.610]."
    )


def test_a_judge_that_drifted() -> None:
    assert "grown more generous, which is no improvement" in words({"drift/self": iv(0.1)})
    assert "grown stricter" in words({"drift/self": iv(-0.1)})
    still = words({"drift/self": iv(0.001, 0.1)})
    assert "not evidence of any change" in still
    assert "no improvement" not in still


def test_a_judge_that_cannot_tell_answers_apart() -> None:
    text = words({"samples/spread/self": iv(0.004)})
    assert "it hardly tells the answers apart" in text
    assert "Treat the feedback of judge 'self' as noise" in text
    assert "noise" not in words({"samples/spread/self": iv(0.1)})


def test_agreement_with_the_checks() -> None:
    assert "prefer the answers that the rules prefer" in words({"judge_corr/self": iv(0.4)})
    none = words({"judge_corr/self": iv(0.02, 0.1)})
    assert "this is not evidence of any agreement" in none
    assert "its ranking shows no agreement with the checks" in none
    against = words({"judge_corr/self": iv(-0.4)})
    assert "the answers that the rules reject" in against
    assert "as noise" in against
