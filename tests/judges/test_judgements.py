"""The strengths of judgements by comparisons in both orders, and which are compared. Numbers by
hand, after Meta-Rewarding (arXiv 2407.19594, section 2.3)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from rlaif.core.records import Completion, Judgement, make_prompt
from rlaif.judges.judgements import compute_strengths, group_judgements
from rlaif.judges.meta import fair_wins
from rlaif.metrics.ranking import fit_strengths

PROMPT = make_prompt([{"role": "user", "content": "Name a fruit."}])


def compared(first: str, second: str, prob: float | None) -> Judgement:
    status: Any = "unparsed" if prob is None else "tie" if prob == 0.5 else "ok"
    return Judgement(
        f"{first}{second}", "c", "p", "judgement", [first, second], first, "meta", "M0", "ai", None,
        status, prob_first=prob,
    )  # fmt: skip


def both_orders(beats: dict[tuple[str, str], tuple[float, float]]) -> list[Judgement]:
    """By pair, the probability that the first shown wins as it stands and in the other order."""
    return [
        row
        for (a, b), (one, other) in beats.items()
        for row in (compared(a, b, one), compared(b, a, other))
    ]


def test_a_slot_that_wins_more_weighs_less() -> None:
    # 30 wins in slot 1 and 10 in slot 2.
    verdicts = [(0, 1, 1.0)] * 30 + [(0, 1, 0.0)] * 10
    wins, _ = fair_wins(verdicts)
    assert set(wins[:40].round(9)) == {0.25, 0.0} and set(wins[40:].round(9)) == {0.75, 0.0}


def test_strengths_of_three_wins_against_one_are_ln_3_apart() -> None:
    table = np.array([[3.0, 1.0]])
    (found,) = fit_strengths(table, np.array([[0, 1], [1, 0]]), 2, 1e-9)
    assert found[0] - found[1] == pytest.approx(math.log(3), abs=1e-6)


def test_the_judgement_that_wins_in_both_orders_is_the_strongest() -> None:
    rows = both_orders({("a", "b"): (0.9, 0.2), ("a", "c"): (0.6, 0.4), ("b", "c"): (0.7, 0.1)})
    found = compute_strengths(["a", "b", "c"], rows)
    assert found["a"] > found["b"] > found["c"]
    # How sure the model was says nothing: a win is a win.
    sure = both_orders({("a", "b"): (1.0, 0.0), ("a", "c"): (1.0, 0.0), ("b", "c"): (1.0, 0.0)})
    assert compute_strengths(["a", "b", "c"], sure) == found


def test_a_judge_that_always_takes_one_slot_says_nothing() -> None:
    rows = both_orders({("a", "b"): (0.9, 0.8), ("a", "c"): (0.7, 0.9), ("b", "c"): (0.8, 0.8)})
    assert compute_strengths(["a", "b", "c"], rows) == {"a": 0.0, "b": 0.0, "c": 0.0}


def test_ties_and_missing_verdicts_count_for_neither() -> None:
    won = [compared("a", "b", 0.9), compared("b", "a", 0.1)]
    more = [compared("a", "b", 0.5), compared("b", "a", None)]
    assert compute_strengths(["a", "b"], [*won, *more]) == compute_strengths(["a", "b"], won)
    assert compute_strengths(["a", "b"], more) == {"a": 0.0, "b": 0.0}


def judged(name: str, answer: str, score: float | None, text: str, index: int) -> Judgement:
    status: Any = "unparsed" if score is None else "ok"
    who = ("completion", [answer], answer, "self", "M0", "ai", None, status)
    return Judgement(
        name, f"c_{name}", PROMPT.prompt_id, *who, score, raw=text, sample_index=index  # type: ignore[arg-type]
    )  # fmt: skip


def test_those_of_one_answer_are_compared_that_have_a_score() -> None:
    turns: Any = [{"role": "assistant", "content": "A plum."}]
    answers = [
        Completion(n, PROMPT.prompt_id, i, turns, "M0", "", {}, "stop", digest=n)
        for i, n in enumerate("ab")
    ]
    rows = [
        judged("j1", "a", 0.5, "Good.", 0),
        judged("j2", "a", 0.7, "Bad.", 1),
        judged("j3", "a", None, "Hm.", 2),
        judged("j4", "b", 0.1, "Alone.", 0),
        judged("j5", "elsewhere", 0.1, "No.", 0),
    ]
    ((prompt, texts),) = group_judgements(PROMPT, answers, [*rows[::-1], rows[0]])
    assert [t.completion_id for t in texts] == ["j1", "j2"]
    assert [t.text for t in texts] == ["Good.", "Bad."]
    more = [*rows[:3], *(judged(f"j{n}", "b", n / 10, f"It is {n}.", n) for n in (1, 9))]
    picked = group_judgements(PROMPT, answers, more, widest=True)
    assert [[t.text for t in texts] for _, texts in picked] == [["It is 1.", "It is 9."]]
    assert len(group_judgements(PROMPT, answers, more)) == 2
    # The conversation ends with the answer that was judged.
    assert prompt.messages == [*PROMPT.messages, *turns] and prompt.prompt_id == PROMPT.prompt_id
