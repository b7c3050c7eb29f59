"""One prompt's answers and what judges said of them, put together."""

from __future__ import annotations

from typing import Any

from rlaif.config.steps import PairStep
from rlaif.core.records import Completion, Judgement, Status, make_prompt
from rlaif.preferences.pairing import (
    PairSettings,
    against_reference,
    prompt_preferences,
    reference_answer,
)

PROMPT = make_prompt([{"role": "user", "content": "Name a red fruit."}])


def answer(name: str, text: str | None = None) -> Completion:
    turns: Any = [{"role": "assistant", "content": f"answer {name}" if text is None else text}]
    return Completion(name, PROMPT.prompt_id, 0, turns, "M0", "w", {}, "stop", digest=name)


def rated(
    name: str, score: float | None, principle: str | None = None, status: Status = "ok"
) -> Judgement:
    who = ("completion", [name], name, "one", "one", "model", principle, status)
    key = f"{name}_{principle}"
    return Judgement(f"j_{key}", f"c_{key}", PROMPT.prompt_id, *who, score)  # type: ignore[arg-type]


def test_what_is_drawn_depends_on_the_seed_of_the_step() -> None:
    said = {
        "one": [
            rated(name, score) for name, score in zip("abcd", (0.9, 0.1, 0.2, 0.3), strict=True)
        ]
    }

    def drawn(seed: int) -> str:
        settings = PairSettings(PairStep(strategy="best_vs_random"), seed, 1, {"one": 1.0}, {})
        (made,), _ = prompt_preferences(settings, PROMPT, list(map(answer, "abcd")), said)
        assert made.chosen_id == "a"
        return made.rejected_id

    assert {drawn(seed) for seed in range(20)} == {"b", "c", "d"}
    assert drawn(7) == drawn(7)


def test_a_blank_answer_does_not_win_by_what_it_escapes() -> None:
    said = [
        rated("blank", None, "plain", "not_applicable"),
        rated("said", 0.6, "plain"),
        rated("blank", 1.0, "brief"),
        rated("said", 0.6, "brief"),
    ]
    settings = PairSettings(PairStep(), 0, 1, {"one": 1.0}, {})
    answers = [answer("blank", "..."), answer("said")]
    (made,), _ = prompt_preferences(settings, PROMPT, answers, {"one": said})
    assert (made.chosen_id, made.score_chosen, made.score_rejected) == ("said", 0.6, 0.5)


def test_one_scored_answer_is_no_tie() -> None:
    settings = PairSettings(PairStep(), 0, 1, {"one": 1.0}, {})
    answers = [answer("a"), answer("b")]
    one = [rated("a", 0.5), rated("b", None, status="unparsed")]
    assert prompt_preferences(settings, PROMPT, answers, {"one": one}) == ([], None)
    both = [rated("a", 0.5), rated("b", 0.5)]
    assert prompt_preferences(settings, PROMPT, answers, {"one": both}) == ([], "tied_prompts")


def test_the_same_pair_of_two_sources_is_two_records() -> None:
    known = make_prompt(PROMPT.messages, reference="A cherry.")
    samples = [answer("a")]
    ids = {against_reference(known, samples, 1, s)[0].preference_id for s in (None, "x", "y")}
    assert len(ids) == 3
    rows = {"one": [rated("a", 0.9), rated("b", 0.1)]}
    made = []
    for source in (None, "x", "y"):
        settings = PairSettings(PairStep(source=source), 0, 1, {"one": 1.0}, {})
        made += prompt_preferences(settings, PROMPT, list(map(answer, "ab")), rows)[0]
    assert [p.source for p in made] == ["rlaif", "x", "y"]
    assert len({p.preference_id for p in made}) == 3


def test_a_reference_of_blanks_is_none() -> None:
    assert reference_answer(make_prompt(PROMPT.messages, reference=" \n")) is None
    assert against_reference(PROMPT, [answer("a")], 1) == []
