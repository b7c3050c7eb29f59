"""One prompt's answers and what judges said of them, put together."""

from __future__ import annotations

from typing import Any

from rlaif.config.steps import PairStep
from rlaif.core.records import Completion, Judgement, make_prompt
from rlaif.preferences.pairing import PairSettings, prompt_preferences

PROMPT = make_prompt([{"role": "user", "content": "Name a red fruit."}])


def answer(name: str) -> Completion:
    turns: Any = [{"role": "assistant", "content": f"answer {name}"}]
    return Completion(name, PROMPT.prompt_id, 0, turns, "M0", "w", {}, "stop", digest=name)


def rated(name: str, score: float) -> Judgement:
    who = ("completion", [name], name, "one", "one", "model", None, "ok")
    return Judgement(f"j_{name}", f"c_{name}", PROMPT.prompt_id, *who, score)  # type: ignore[arg-type]


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
