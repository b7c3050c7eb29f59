"""Pairs by where answers are from."""

from __future__ import annotations

from typing import Any

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


def rated(name: str, score: float | None) -> Judgement:
    status: Any = "unparsed" if score is None else "ok"
    who = ("completion", [name], name, "j", "j", "ai", None, status)
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
