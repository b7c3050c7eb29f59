"""What the analyses of a run hand on: weights of judges and principles, what is missing, seeds, the
sides of labels. Judges of unequal weights, principles of unequal weights, outcomes by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlaif.analysis import whatif
from rlaif.analysis.fit_weights import fitted, judges_of, pair_votes, run_votes
from rlaif.analysis.reach import measure_reach
from rlaif.analysis.whatif import (
    LabelledCandidates,
    Pairing,
    effect,
    measure_agreements,
    rescore_completions,
)
from rlaif.config.models import ModelSpec
from rlaif.config.steps import PairStep
from rlaif.constitution.model import Constitution
from rlaif.core.errors import ConfigError
from rlaif.core.labelled import LabelledPair
from rlaif.core.progress import QuietProgress
from rlaif.core.records import Completion, Judgement, Preference, content_hash, make_prompt
from rlaif.engines.base import Model
from rlaif.judges.pairwise import Pairwise
from rlaif.judges.scored import Scored
from rlaif.judges.yes_no import YesNo
from rlaif.metrics.votes import VotedPair, fit_weights
from rlaif.pipeline.constitutions import run_constitution
from rlaif.pipeline.experiment import run_experiment
from rlaif.pipeline.runs import load_run
from rlaif.pipeline.single_step import asking

PROMPTS = {n: make_prompt([{"role": "user", "content": f"Question {n}?"}]) for n in range(4)}
WEIGHTS = {"a": 3.0, "b": 1.0}
Said = Mapping[tuple[str, str, str], float | None]
"""Judge, principle and answer to a score."""


def answer(number: int, name: str) -> Completion:
    text = f"text of {name}"
    said: Any = [{"role": "assistant", "content": text}]
    about = (f"{name}{number}", PROMPTS[number].prompt_id, 0, said, "m", "w", {}, "stop")
    return Completion(*about, digest=content_hash(text))


def judged(number: int, said: Said) -> list[Judgement]:
    made = []
    for (judge, principle, name), score in said.items():
        key, subject = f"{judge}{principle}{name}{number}", f"{name}{number}"
        made.append(
            Judgement(
                key, key, PROMPTS[number].prompt_id, "completion", [subject], subject, judge, "m",
                "ai", principle, "unparsed" if score is None else "ok", score,
            )
        )  # fmt: skip
    return made


def preferred(number: int, chosen: str, rejected: str) -> Preference:
    name = f"{number}{chosen}{rejected}"
    return Preference(
        name, PROMPTS[number].prompt_id, 1, [], [], [], 1, 0, 1, 1, 1, "", "", [],
        f"{chosen}{number}", f"{rejected}{number}",
    )  # fmt: skip


def pairing(
    said: Mapping[int, Said],
    preferences: list[Preference] | None = None,
    initial: Said | None = None,
    **keys: Any,
) -> Pairing:
    rows = {number: judged(number, own) for number, own in said.items()}
    judges = sorted({j.judge for own in rows.values() for j in own})
    names = {number: sorted({key[2] for key in own}) for number, own in said.items()}
    first = judged(0, initial or {})
    return Pairing(
        PairStep(**({"weights": {"j": 3.0, "k": 1.0, "l": 0.0}} | keys)),
        5,
        {p.prompt_id: p for p in PROMPTS.values()},
        {PROMPTS[n].prompt_id: [answer(n, name) for name in own] for n, own in names.items()},
        {
            judge: {
                PROMPTS[n].prompt_id: [j for j in own if j.judge == judge]
                for n, own in rows.items()
            }
            for judge in judges
        },
        {judge: [j for j in first if j.judge == judge] for judge in judges},
        preferences or [],
    )


CONTESTED: Said = {
    ("j", "a", "x"): 0.8,
    ("j", "b", "x"): 0.4,
    ("j", "a", "y"): 0.4,
    ("j", "b", "y"): 0.8,
    ("k", "a", "x"): 0.2,
    ("k", "a", "y"): 0.6,
    ("l", "a", "x"): 0.0,
    ("l", "a", "y"): 1.0,
    ("j", "a", "z"): 0.5,
    ("j", "b", "z"): 0.1,
    ("k", "a", "z"): None,
}
"""By j 0.7, 0.5 and 0.4, by k 0.2, 0.6 and nothing; l weighs nothing."""


@pytest.mark.parametrize(("missing", "z"), [("drop", None), ("renormalise", 0.4)])
def test_scores_are_by_the_weights_of_judges_and_principles(missing: str, z: float | None) -> None:
    made = pairing({0: CONTESTED}, missing=missing)
    found = rescore_completions(made, WEIGHTS)[PROMPTS[0].prompt_id]
    expected = {"x0": (3 * 0.7 + 0.2) / 4, "y0": (3 * 0.5 + 0.6) / 4, "z0": z}
    assert found == {name: v if v is None else pytest.approx(v) for name, v in expected.items()}
    turned = rescore_completions(made, {"a": 1.0, "b": 3.0})[PROMPTS[0].prompt_id]
    assert turned["x0"] == pytest.approx((3 * 0.5 + 0.2) / 4)
    # Without `a` the judge k says nothing, and counts no more.
    alone = rescore_completions(made, {"a": 0.0, "b": 3.0})[PROMPTS[0].prompt_id]
    assert alone == pytest.approx({"x0": 0.4, "y0": 0.8, "z0": 0.1})
    # And where `a` is one of its own constitution, in which it weighs nothing.
    own = rescore_completions(made, {"a": 1.0, "b": 3.0, "k/a": 0.0})[PROMPTS[0].prompt_id]
    assert own == pytest.approx({"x0": 0.5, "y0": 0.7, "z0": 0.2})


def test_a_standardised_judge_is_weighed_by_its_spread_under_these_weights() -> None:
    initial: Said = {
        ("j", "a", "x"): 0.9,
        ("j", "b", "x"): 0.1,
        ("j", "a", "y"): 0.1,
        ("j", "b", "y"): 0.9,
        ("k", "a", "x"): 0.5,
        ("k", "a", "y"): 0.7,
    }
    made = pairing({0: CONTESTED}, initial=initial, standardise="initial", missing="renormalise")
    # Spreads of 0.2 (0.7 and 0.3) and 0.1: weights of 3 / 0.2 and 1 / 0.1.
    found = rescore_completions(made, WEIGHTS)[PROMPTS[0].prompt_id]
    assert found["x0"] == pytest.approx((15 * 0.7 + 10 * 0.2) / 25)
    assert found["y0"] == pytest.approx((15 * 0.5 + 10 * 0.6) / 25)


def test_an_effect_counts_each_kind_of_change_from_before_to_after() -> None:
    # By `a` alone, then by `b` alone: x and y, and z of the last prompt.
    scores: dict[int, list[tuple[str, float, float | None]]] = {
        0: [("x", 0.9, 0.1), ("y", 0.2, 0.6)],
        1: [("x", 0.9, 0.5), ("y", 0.2, 0.5)],
        2: [("x", 0.9, 0.7), ("y", 0.2, None)],
        3: [("x", 0.9, 0.9), ("y", 0.5, 0.5), ("z", 0.2, 0.6)],
    }
    one: dict[int, Said] = {
        number: {("j", p, name): v for name, *row in rows for p, v in zip("ab", row, strict=True)}
        for number, rows in scores.items()
    }
    preferences = [preferred(n, "x", "y") for n in range(4)]
    preferences += [preferred(3, "y", "z"), preferred(3, "x", "z")]
    made = pairing(one, preferences, weights={"j": 1.0}, missing="renormalise", strategy="all")
    found = effect([made], {"a": 1.0, "b": 0.0}, {"a": 0.0, "b": 1.0})
    assert (found.preferences, found.flipped, found.tied, found.missing) == (6, 2, 1, 1)
    assert found.flip_rate is not None and found.flip_rate.mean == pytest.approx(2 / 6)
    assert found.other_pairs is not None and found.other_pairs.mean == 1.0
    back = effect([made], {"a": 0.0, "b": 1.0}, {"a": 1.0, "b": 0.0})
    assert (back.flipped, back.tied, back.missing) == (0, 0, 0)
    same = effect([made, made], {"a": 0.0, "b": 2.0}, {"a": 0.0, "b": 1.0})
    assert same.preferences == 12 and same.other_pairs is not None
    assert same.other_pairs.mean == 0.0


def test_a_label_is_compared_with_the_scores_of_its_own_pairing_and_sides() -> None:
    here, there = pairing({0: CONTESTED}), pairing({1: CONTESTED}, weights={"k": 1.0})
    rows = [
        LabelledCandidates(0, PROMPTS[0].prompt_id, "x0", "y0", 0.8),
        LabelledCandidates(0, PROMPTS[0].prompt_id, "y0", "x0", 0.8),
        LabelledCandidates(1, PROMPTS[1].prompt_id, "x1", "y1", 0.8),
        LabelledCandidates(1, PROMPTS[1].prompt_id, "x1", "y1", 0.1),
        LabelledCandidates(1, PROMPTS[1].prompt_id, "x1", "y1", 0.5),
        LabelledCandidates(0, PROMPTS[0].prompt_id, "x0", "z0", 1.0),
    ]
    assert measure_agreements([here, there], rows, WEIGHTS) == [1.0, 0.0, 0.0, 1.0, None, None]


def labelled(number: int, first: str, second: str, label: float) -> LabelledPair:
    return LabelledPair(
        f"{first}{second}", PROMPTS[number], answer(number, first), answer(number, second), label
    )


def test_votes_are_of_the_judges_that_count_or_that_are_named() -> None:
    said: Said = {
        ("j", "a", "x"): 0.8,
        ("j", "a", "y"): 0.3,
        ("k", "b", "x"): 0.2,
        ("k", "b", "y"): 0.6,
        ("l", "c", "x"): 0.5,
        ("l", "c", "y"): 0.4,
    }
    made = [pairing({0: said}), pairing({1: said})]
    given = [labelled(1, "y", "x", 0.7), labelled(0, "x", "y", 0.2), labelled(2, "x", "y", 1.0)]
    voted, strange = run_votes(made, given)
    assert strange == 1
    assert {v.prompt_id: v.label for v in voted} == {
        PROMPTS[0].prompt_id: 0.2,
        PROMPTS[1].prompt_id: 0.7,
    }
    votes = {v.prompt_id: v.votes for v in voted}
    assert votes[PROMPTS[0].prompt_id] == pytest.approx({"a": 0.5, "b": -0.4})
    assert votes[PROMPTS[1].prompt_id] == pytest.approx({"a": -0.5, "b": 0.4})
    named, _ = run_votes(made[:1], given[1:], ["l"])
    assert named[0].votes == pytest.approx({"c": 0.1})


MIXED = Constitution.model_validate(
    {
        "name": "mixed",
        "principles": [
            {"id": "kind", "text": "It is kind.", "weight": 5},
            {
                "id": "brief",
                "text": "It is brief.",
                "check": {"rule": "word_limits", "params": {"min": 1, "max": 2}},
                "weight": 2,
            },
            {"id": "asks", "check": {"rule": "word_limits", "params": {"min": 3, "max": 9}}},
        ],
    }
)


def test_a_constitution_is_judged_by_programs_and_by_a_judge_of_the_kind() -> None:
    kinds = {"yes_no": YesNo, "pairwise": Pairwise, "rating": Scored}
    for kind, made in kinds.items():
        checks, model = judges_of(MIXED, kind)
        assert (checks.id, model.id) == ("checks", "model") and isinstance(model, made)
        assert [p.id for p in model.principles] == ["kind"]


def test_pairs_are_voted_on_side_by_side_with_their_labels(tmp_path: Path) -> None:
    texts = {"s": "Two words", "t": "Three short words"}
    sides = []
    given = (("s", "t", 0.8), ("t", "s", 0.3), ("s", "t", None))
    for number, (first, second, label) in enumerate(given):
        prompt = PROMPTS[number]
        one, other = (
            Completion(
                content_hash(number, name), prompt.prompt_id, place,
                [{"role": "assistant", "content": texts[name]}], "m", "w", {}, "stop",
                digest=content_hash(name),
            )
            for place, name in enumerate((first, second))
        )  # fmt: skip
        sides.append(LabelledPair(f"pair{number}", prompt, one, other, label))
    checks = judges_of(MIXED, "yes_no")[:1]
    with asking(tmp_path) as (store, engines):
        voted = pair_votes(sides, checks, None, engines, store, QuietProgress(), 7)
        # What a program said stands, whichever model is asked about the rest.
        model = Model("k", "m", ModelSpec(path="m", engine="fake"))
        assert pair_votes(sides, checks, model, engines, store, QuietProgress(), 7) == voted
        assert len(list((store.root / "steps").iterdir())) == 1
    # A word too many of two is half as good, and two of three words two thirds.
    assert [(v.prompt_id, v.label) for v in voted] == [
        (PROMPTS[0].prompt_id, 0.8),
        (PROMPTS[1].prompt_id, 0.3),
    ]
    assert voted[0].votes == pytest.approx({"brief": 0.5, "asks": -1 / 3})
    assert voted[1].votes == pytest.approx({"brief": -0.5, "asks": 1 / 3})


def test_a_fit_starts_from_the_constitutions_weights_with_its_folds_and_seed() -> None:
    signs = [(1, 1), (1, -1), (-1, 1), (1, -1), (-1, -1), (1, 0), (0, 1), (1, -1), (-1, 1)]
    pairs = [
        VotedPair(f"p{n}", {"kind": 0.5 * a, "brief": 1.0 * b}, float(n % 4 != 0))
        for n, (a, b) in enumerate(signs * 2)
    ]
    made = fitted(pairs, MIXED, folds=3, seed=4)
    current = {"kind": 5.0, "brief": 2.0, "asks": 1.0}
    assert made == fit_weights(pairs, current, 3, 4)
    assert made not in (fit_weights(pairs, current, 5, 4), fit_weights(pairs, current, 3, 0))
    assert {row.principle: row.current for row in made.weights} == {"kind": 5.0, "brief": 2.0}


def test_reach_asks_with_the_runs_own_seeds_and_counts_what_is_asked_twice(
    tmp_path: Path, write_experiment: Callable[..., Path]
) -> None:
    """A judge that draws its orders by the seed, and writes reasons first; beside a program."""
    limits = {"rule": "word_limits", "params": {"min": 1, "max": 3}}
    rules: dict[str, Any] = {
        "name": "two",
        "principles": [
            {"id": "brief", "check": limits, "weight": 2},
            {"id": "warm", "text": "It is warm."},
        ],
    }
    folder = tmp_path / "here"
    path = write_experiment(
        folder,
        None,
        seed=None,
        seeds=[3, 8],
        models={"policy": {"path": "none", "engine": "fake", "script": "script.yaml"}},
        rounds=1,
        steps=[
            {"sample": {"n": 3, "temperature": 1.0, "max_new_tokens": 40}},
            {"judge": {"id": "checks", "kind": "rules"}},
            {
                "judge": {
                    "id": "asked", "kind": "pairwise", "by": "policy", "cot": True,
                    "order": "random",
                }
            },
            {"pair": {"strategy": "all"}},
        ],
    )  # fmt: skip
    (folder / "constitution.yaml").write_text(yaml.safe_dump(rules), "utf-8")
    script = {"rules": [{"match": ".", "replies": ["one", "two words", "many long words here"]}]}
    (folder / "script.yaml").write_text(yaml.safe_dump(script), "utf-8")
    run_experiment(path, tmp_path / "run")
    run = load_run(tmp_path / "run")
    own = run_constitution(run)
    found = {j.judge: j for j in measure_reach(run, own, own).judges}
    assert found["asked"].kept and found["checks"].kept
    assert found["asked"].unchanged == found["asked"].judgements > 20
    data = own.model_dump()
    for principle in data["principles"]:
        if principle["id"] == "warm":
            principle["text"] = "It is warm and kind."
        else:
            principle["check"]["params"]["max"] = 2
    changed = measure_reach(run, own, Constitution.model_validate(data))
    found = {j.judge: j for j in changed.judges}
    unasked = found["asked"].unchanged + found["asked"].made
    assert found["asked"].asked == 2 * (found["asked"].judgements - unasked) > 0
    assert (found["checks"].made, found["checks"].asked) == (found["checks"].judgements, 0)
    assert set(changed.unknown) == {"brief", "warm"}


def test_a_fit_needs_pairs_of_enough_prompts_that_have_every_vote() -> None:
    whole = [VotedPair(f"p{n}", {"kind": 0.5, "brief": -1.0}, 1.0) for n in range(3)]
    partly = [VotedPair(f"q{n}", {"kind": 0.5, "brief": None}, 1.0) for n in range(5)]
    with pytest.raises(ConfigError, match="pairs of 3 prompts have every vote, and --folds 4"):
        fitted([*whole, *partly], MIXED, folds=4)
    flat = [VotedPair(f"p{n}", {"kind": 0.0, "other": 1.0}, 1.0) for n in range(4)]
    with pytest.raises(ConfigError, match=r"any of the 4 labelled pairs .*\(5 lack one\)"):
        fitted([*flat, *partly], MIXED, folds=4)


def test_a_change_of_agreement_is_over_labels_that_have_both_scores(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A label that one side has no score for counts in neither mean of the difference."""
    whole, without = [1.0, 0.0, None, 1.0], [1.0, None, 1.0, 0.0]
    labels = [LabelledCandidates(0, f"p{n}", "a", "b", 1.0) for n in range(4)]
    given: list[Any] = []
    monkeypatch.setattr(whatif, "run_weights", lambda *_: {"one": 1.0})
    monkeypatch.setattr(whatif, "load_pairings", lambda *_: [])
    monkeypatch.setattr(whatif, "judges_constitutions", lambda *_: {})
    monkeypatch.setattr(whatif, "arms_alike", lambda *_: ([], []))
    monkeypatch.setattr(whatif, "_count_judged", lambda *_: {"one": 3})
    monkeypatch.setattr(whatif, "find_labelled", lambda *_: (labels, 0))
    monkeypatch.setattr(
        whatif, "measure_agreements", lambda p, found, weights: whole if weights["one"] else without
    )
    monkeypatch.setattr(whatif, "effect", lambda *_: None)
    monkeypatch.setattr(whatif, "paired_interval", lambda now, then: given.append((now, then)))
    whatif.ablate_principles(None, [None])  # type: ignore[arg-type, list-item]
    ((now, then),) = given
    assert now == whatif.labelled_by_prompt(labels, [1.0, None, None, 0.0])
    assert then == whatif.labelled_by_prompt(labels, [1.0, None, None, 1.0])
