"""Who prefers which of two given answers."""

from __future__ import annotations

from rlaif.core.labelled import GivenPair
from rlaif.core.records import Judgement
from rlaif.preferences.labels import annotator_verdicts


def rated(name: str, principle: str, score: float) -> Judgement:
    key = f"{name}_{principle}"
    who = ("completion", [name], name, "one", "one", "model", principle, "ok")
    return Judgement(f"j_{key}", f"c_{key}", "p", *who, score)  # type: ignore[arg-type]


def test_a_label_counts_principles_by_their_weights() -> None:
    """Scores of 0.75 and 0.25 by weights of 3 and 1, where equal ones would tie the two."""
    rows = [
        rated(name, principle, score)
        for name, scores in (("a", (1.0, 0.0)), ("b", (0.0, 1.0)))
        for principle, score in zip(("heavy", "light"), scores, strict=True)
    ]
    pair = GivenPair("l", "p", "a", "b")
    assert annotator_verdicts([pair], {"one": rows}, {"heavy": 3.0, "light": 1.0}) == {"l": 0.75}
    assert annotator_verdicts([pair], {"one": rows}, {}) == {"l": 0.5}
    # A judge with a constitution of its own goes by its weights, whatever the run's are.
    weights = {"heavy": 1.0, "light": 3.0, "one/heavy": 3.0, "one/light": 1.0}
    assert annotator_verdicts([pair], {"one": rows}, weights) == {"l": 0.75}
    assert annotator_verdicts([pair], {"other": rows}, weights) == {"l": 0.25}
