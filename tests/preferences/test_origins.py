"""Pairs by where answers are from."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from rlaif.config.steps import PairStep
from rlaif.core.records import Completion, Judgement, make_prompt
from rlaif.preferences.origins import Match, OriginSettings, match_answers, origin_preferences

PROMPT = make_prompt([{"role": "user", "content": "Name a fruit."}], reference="A plum.")


def answer(
    name: str, index: int = 0, parent: str | None = None, text: str | None = None
) -> Completion:
    said = f"answer {name}" if text is None else text
    turns: Any = [{"role": "assistant", "content": said}] if said is not None else []
    return Completion(
        name, PROMPT.prompt_id, index, turns, "M0", "w", {}, "stop", parent_id=parent, digest=said
    )


def settings(match: Match = "all", **keys: Any) -> OriginSettings:
    step = PairStep(**{"chosen": "new", "rejected": "old"} | keys)
    return OriginSettings(step, match, 2, {"j": 1.0} if step.asks_scores else {}, {})


def names(pairs: list[tuple[Completion, Completion]]) -> list[tuple[str, str]]:
    return [(one.completion_id, other.completion_id) for one, other in pairs]


def test_answers_belong_together_by_number_parent_or_all() -> None:
    old = [answer("o0", 0), answer("o1", 1)]
    # r0 revises o0 at once, r1 revises o1 over m, which is among the revisions.
    new = [answer("r0", 5, "o0"), answer("m", 6, "o1"), answer("r1", 1, "m")]
    assert names(match_answers(new, old, "parent")) == [("m", "o1"), ("r0", "o0"), ("r1", "o1")]
    # It is the same where the originals are chosen.
    assert names(match_answers(old, new, "parent")) == [("o0", "r0"), ("o1", "m"), ("o1", "r1")]
    assert names(match_answers(new, old, "index")) == [("r1", "o1")]
    assert len(match_answers(new, old, "all")) == 6
    # Without the answer in between nothing says where the last one is from.
    assert names(match_answers([new[2]], old, "parent")) == []


def test_answers_that_claim_to_revise_each_other_end_the_search() -> None:
    one, other = answer("a", parent="b"), answer("b", parent="a")
    assert names(match_answers([one, other], [answer("o")], "parent")) == []


def test_an_answer_that_is_named_twice_makes_one_pair() -> None:
    made, counts = origin_preferences(
        settings(source="mine"), PROMPT, [answer("a"), answer("a")], [answer("o")], {}
    )
    assert [(p.chosen_id, p.source) for p in made] == [("a", "mine")]
    assert counts == {"matched": 1}


def test_answers_too_much_alike_are_counted() -> None:
    # One of two 3-grams is in both.
    new, old = answer("a", text="one two three four"), answer("o", text="one two three")
    for most, count in ((0.5, {"matched": 1}), (0.49, {"matched": 1, "overlapping": 1})):
        made, counts = origin_preferences(settings(max_overlap=most), PROMPT, [new], [old], {})
        assert counts == count and len(made) == 2 - len(count)


def test_what_says_nothing_or_the_same_makes_no_pair() -> None:
    new = [answer("a"), answer("blank", text=" "), answer("same", text="answer o ")]
    made, counts = origin_preferences(settings(), PROMPT, new, [answer("o")], {})
    assert [(p.chosen_id, p.rejected_id, p.margin) for p in made] == [("a", "o", None)]
    assert counts == {"matched": 2, "alike": 1}
    assert made[0].source == "rlaif" and made[0].round == 2
    assert made[0].prompt == PROMPT.messages


def test_a_reference_stands_for_one_side() -> None:
    for side, other in (("chosen", "rejected"), ("rejected", "chosen")):
        keys = {side: "reference", other: "new"}
        given = {side: [], other: [answer("a"), answer("b", 1), answer("p", 2, text="A plum.")]}
        made, _ = origin_preferences(
            settings(**keys), PROMPT, given["chosen"], given["rejected"], {}
        )
        assert len(made) == 2 and {p.source for p in made} == {"reference"}
        assert all(getattr(p, side)[0]["content"] == "A plum." for p in made)
    without = make_prompt([{"role": "user", "content": "Name a fruit."}])
    assert origin_preferences(settings(**keys), without, [answer("a")], [], {})[0] == []


def rated(
    name: str, score: float | None, judge: str = "j", principle: str | None = None
) -> Judgement:
    status: Any = "unparsed" if score is None else "ok"
    who = ("completion", [name], name, judge, judge, "ai", principle, status)
    return Judgement(f"j_{name}", f"c_{name}", PROMPT.prompt_id, *who, score)  # type: ignore[arg-type]


def test_with_scores_the_chosen_has_to_be_better_by_the_margin() -> None:
    new = [answer(f"n{i}", i) for i in range(5)]
    old = [answer(f"o{i}", i) for i in range(5)]
    scores = [(0.9, 0.5), (0.6, 0.5), (0.5, 0.5), (0.2, 0.9), (None, 0.1)]
    said = {
        "j": [rated(f"{s}{i}", row[k]) for i, row in enumerate(scores) for k, s in enumerate("no")]
    }
    made, counts = origin_preferences(settings("index", min_margin=0.3), PROMPT, new, old, said)
    assert [(p.chosen_id, round(p.margin or 0, 3)) for p in made] == [("n0", 0.4)]
    assert counts == {"matched": 5, "not_better": 3, "unscored": 1}
    assert made[0].judgement_ids == ["j_n0", "j_o0"]
    # Without a margin, but by scores, it has to score more.
    made, counts = origin_preferences(settings("index", uses=["j"]), PROMPT, new, old, said)
    assert [p.chosen_id for p in sorted(made, key=lambda p: p.chosen_id)] == ["n0", "n1"]
    assert counts["not_better"] == 2


def test_a_margin_just_reached_makes_a_pair() -> None:
    said = {"j": [rated("n", 0.75), rated("o", 0.5)]}
    for least, count in ((0.25, 1), (0.2500001, 0)):
        found = settings(min_margin=least)
        made, _ = origin_preferences(found, PROMPT, [answer("n")], [answer("o")], said)
        assert len(made) == count
    made, _ = origin_preferences(settings(uses=["j"]), PROMPT, [answer("n")], [answer("o")], said)
    assert made[0].reason.startswith("origin: new against old: combined 0.750 against 0.500")


def test_scores_are_those_of_the_judges_and_principles_by_their_weights() -> None:
    new, old = [answer("n")], [answer("o")]
    said = {
        "j": [rated("n", 0.8), rated("o", 0.0)],
        "k": [rated("n", 0.4), rated("o", None)],
    }
    step = PairStep(chosen="new", rejected="old", uses=["j", "k"])
    weighed = OriginSettings(step, "all", 2, {"j": 3.0, "k": 1.0}, {})
    assert origin_preferences(weighed, PROMPT, new, old, said)[1]["unscored"] == 1
    made, _ = origin_preferences(
        replace(weighed, step=step.model_copy(update={"missing": "renormalise"})),
        PROMPT,
        new,
        old,
        said,
    )
    assert made[0].score_chosen == pytest.approx(0.7) and made[0].score_rejected == 0.0
    principles = {
        "j": [rated("n", 1.0, principle="x"), rated("n", 0.0, principle="y"), rated("o", 0.0)]
    }
    alone = OriginSettings(step, "all", 2, {"j": 1.0}, {"x": 3.0, "y": 1.0})
    made, _ = origin_preferences(alone, PROMPT, new, old, principles)
    assert made[0].score_chosen == 0.75
