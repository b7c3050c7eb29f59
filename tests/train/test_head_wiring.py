"""What a fitted head gets from its step: ratings by judge, objectives, levels, gate and seed are
told apart, and pairs and lengths are those of their own answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter

from rlaif.config.methods import AnyDistill
from rlaif.core.errors import RlaifError
from rlaif.core.records import Judgement
from rlaif.train import probe
from rlaif.train.fits import Features
from rlaif.train.loop import TrainJob, TrainProgress
from rlaif.train.tokenise import Example, Ranked

# The first prompt has three answers of 1, 3 and 2 tokens, the second two of 4 and 5.
EXAMPLES = [
    Example(
        "e0",
        "p0",
        [1],
        ([2], [3, 3, 3], [4, 4]),
        scores=(0.1, 0.2, 0.3),
        ids=("a", "b", "c"),
        ranked=(Ranked(2, 0, 0.75, 1.5, 2.0), Ranked(1, 2, 0.9, None, 6.0)),
    ),
    Example("e1", "p1", [1], ([5] * 4, [6] * 5), 5.0, 0.25, scores=(0.4, 0.5), ids=("d", "e")),
]
FEATURES = Features(
    torch.arange(15.0).reshape(5, 3),
    torch.arange(6.0).reshape(2, 3),
    torch.tensor([0, 0, 0, 1, 1]),
    ["p0", "p1"],
)
RATED = {"a": (1.0, 10.0), "b": (2.0, 30.0), "c": (3.0, 20.0), "d": (4.0, 50.0), "e": (5.0, 40.0)}


def rated(judge: str, name: str, score: float, raw: float, principle: str | None) -> Judgement:
    who: Any = ("completion", [name], name, judge, judge, "model", principle, "ok", score)
    key = f"{judge}{name}{principle}"
    return Judgement(f"j{key}", f"c{key}", "p", *who, raw_value=raw)


JUDGEMENTS = [
    judgement
    for name, (low, high) in RATED.items()
    for judgement in (
        rated("j", name, low / 10, low, "kind"),
        rated("k", name, high / 100, high, None),
    )
]


def job(tmp_path: Path, seen: list[TrainProgress], **keys: Any) -> TrainJob[Any]:
    options = TypeAdapter(AnyDistill).validate_python({"id": "rm", **keys})
    return TrainJob(
        options,
        tmp_path / "start",
        tmp_path / "out",
        tmp_path / "work",
        11,
        torch.device("cpu"),
        judgements=JUDGEMENTS,
        progress=seen.append,
    )


def test_pairs_are_of_their_own_answers_among_all() -> None:
    found = probe.comparisons(EXAMPLES)
    assert (found.chosen.tolist(), found.rejected.tolist()) == ([2, 1, 3], [0, 2, 4])
    assert found.prob.tolist() == pytest.approx([0.75, 0.9, 0.25])
    assert found.weight.tolist() == [2.0, 6.0, 5.0]


def test_ratings_go_by_judge_and_principle_and_objectives_by_the_order_asked_for() -> None:
    known = probe.ratings(JUDGEMENTS)
    assert list(known) == ["j/kind", "k"]
    # The scores, and not the raw values beside them.
    assert known["j/kind"] == pytest.approx({n: low / 10 for n, (low, _) in RATED.items()})
    assert known["k"] == pytest.approx({n: high / 100 for n, (_, high) in RATED.items()})
    names, labels = probe.labels_of(EXAMPLES, known, ["k", "j/kind"])
    assert names == ["k", "j/kind"]
    assert labels[:, 0].tolist() == pytest.approx([known["k"][n] for n in "abcde"])
    assert labels[:, 1].tolist() == pytest.approx([known["j/kind"][n] for n in "abcde"])
    # Without judgements the pairs' own scores.
    names, labels = probe.labels_of(EXAMPLES, {}, None)
    assert labels[:, 0].tolist() == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])


def test_objectives_that_are_always_the_same_are_left_out_unless_they_were_asked_for() -> None:
    known = {
        "flat": dict.fromkeys("abcde", 1.0),
        "elsewhere": {"z": 0.5},
        **probe.ratings(JUDGEMENTS),
    }
    names, labels = probe.labels_of(EXAMPLES, known, None)
    assert names == ["j/kind", "k"]
    assert labels[:, 1].tolist() == pytest.approx([known["k"][n] for n in "abcde"])
    with pytest.raises(RlaifError, match="objective 'flat' is always the same"):
        probe.labels_of(EXAMPLES, known, ["k", "flat"])
    with pytest.raises(RlaifError, match="objective 'elsewhere' has no rating of these answers"):
        probe.labels_of(EXAMPLES, known, ["elsewhere"])
    with pytest.raises(RlaifError, match="objective 'flat' is always the same"):
        probe.labels_of(EXAMPLES, {"flat": known["flat"]}, None)


@pytest.mark.parametrize("method", ["multi_objective", "quantile"])
def test_a_gated_head_is_fitted_with_the_keys_of_its_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    asked: dict[str, Any] = {}

    def note(name: str, result: Any) -> Any:
        def call(*given: Any) -> Any:
            asked[name] = given
            return result

        return call

    rows = [{"loss": 0.5, "accuracy": 0.25}, {"loss": 0.75, "accuracy": 1.0}]
    monkeypatch.setattr(probe, "fit_objectives", note("objectives", [0.1, 0.2, 0.3]))
    monkeypatch.setattr(probe, "fit_quantiles", note("quantiles", 0.4))
    monkeypatch.setattr(probe, "debias", note("debias", {"k": 0.01}))
    monkeypatch.setattr(probe, "fit_gate", note("gate", rows))
    seen: list[TrainProgress] = []
    keys: Any = {
        "objectives": ["k", "j/kind"],
        "debias": 0.07,
        "gate_layers": 2,
        "gate_width": 6,
        "gate_temperature": 3.0,
        "gate_steps": 9,
        "gate_batch": 4,
    }
    if method == "quantile":
        keys |= {"quantiles": 5, "risk": 0.6}
    given = job(tmp_path, seen, method=method, **keys)
    head, metrics, depth = probe.fit_gated_head(given, EXAMPLES, {4: FEATURES})
    config = head.config
    assert (config.kind, config.width, depth) == ("gated", 3, 4)
    assert config.objectives == ("k", "j/kind", "length") and config.verbosity == "length"
    assert (config.gate_layers, config.gate_width, config.gate_temperature) == (2, 6, 3.0)
    fit = "quantiles" if method == "quantile" else "objectives"
    assert (config.quantiles, config.risk) == ((5, 0.6) if method == "quantile" else (1, 1.0))
    own, features, labels, seed = asked[fit]
    assert (own, features, seed) == (head, FEATURES, 11)
    # The length's place among all: of 1, 3, 2, 4 and 5 tokens.
    assert labels[:, 2].tolist() == pytest.approx([0.1, 0.5, 0.3, 0.7, 0.9])
    assert asked["debias"] == (head, FEATURES, 0.07)
    own, features, pairs, *rest = asked["gate"]
    assert (own, features, rest) == (head, FEATURES, [9, 4, 11])
    assert pairs.weight.tolist() == [2.0, 6.0, 5.0]
    assert [(p.step, p.total_steps, p.loss) for p in seen] == [(1, 9, 0.5), (2, 9, 0.75)]
    assert metrics["gate_loss"] == 0.75 and metrics["length_spearman/k"] == 0.01
    assert metrics["steps"] == 9
    if method == "quantile":
        assert metrics["held_out_pinball"] == 0.4
    else:
        errors = [metrics[f"held_out_mse/{n}"] for n in ("k", "j/kind", "length")]
        assert errors == [0.1, 0.2, 0.3]
    # One objective has no gate, and length is left alone where that is asked for.
    monkeypatch.setattr(probe, "fit_objectives", note("objectives", [0.1]))
    alone = job(tmp_path, seen, method=method, objectives=["k"], debias=None, gate_layers=2)
    head, _, _ = probe.fit_gated_head(alone, EXAMPLES, {4: FEATURES})
    assert (head.config.objectives, head.config.verbosity) == (("k",), None)
    assert head.config.gate_layers == 0


def test_an_ordinal_head_takes_its_objective_levels_and_rated_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(probe, "fit_ordinal", lambda *given: asked.append(given) or 0.25)
    given = job(tmp_path, [], method="ordinal", objective="k", levels=2)
    # Nobody rated the answer b.
    given = TrainJob(
        **{**given.__dict__, "judgements": [j for j in JUDGEMENTS if j.subject != "b"]}
    )
    head, metrics, depth = probe.fit_ordinal_head(given, EXAMPLES, {4: FEATURES})
    ((own, features, level, seed),) = asked
    assert (own, seed, depth, metrics) == (head, 11, 4, {"held_out_nll": 0.25, "rated": 4.0})
    assert features.last.tolist() == FEATURES.last[[0, 2, 3, 4]].tolist()
    assert features.of.tolist() == [0, 0, 1, 1] and features.names == ["p0", "p1"]
    # 10 and 20, 50 and 40: two levels of equal mass.
    assert level.tolist() == [0, 0, 1, 1]
    low, high = head.config.levels
    assert high / low == pytest.approx(3.0)
