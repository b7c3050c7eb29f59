"""Ablation, the reach of a change, and fitted weights, from stored judgements alone."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from msgspec.structs import replace

from rlaif.analysis.fit_weights import fitted, one_vote_each, run_votes
from rlaif.analysis.reach import measure_reach
from rlaif.analysis.whatif import (
    Pairing,
    ablate_principles,
    effect,
    find_labelled,
    load_pairings,
    measure_agreements,
    rescore_completions,
)
from rlaif.config.steps import PairStep
from rlaif.constitution.model import Constitution, load_constitution
from rlaif.core.errors import ConfigError
from rlaif.core.labelled import LabelledPair
from rlaif.core.records import Completion, Judgement, content_hash, make_prompt
from rlaif.metrics.ridge import predict_probability
from rlaif.metrics.votes import VotedPair, fit_weights, principle_votes
from rlaif.pipeline.constitutions import principle_weights, run_constitution
from rlaif.pipeline.experiment import run_experiment
from rlaif.pipeline.runs import Run, load_run
from tests.support.planted import REPLIES, two_checks_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, write_experiment: Callable[..., Path]) -> Run:
    """A run of a scripted policy whose pairs two programs make."""
    return load_run(two_checks_run(tmp_path_factory.mktemp("whatif"), write_experiment))


def human(run: Run, better: str) -> list[LabelledPair]:
    """Labels on the run's own answers: every pair of different texts of which one is `better`."""
    [pairing] = load_pairings(run)
    made = []
    for prompt_id, row in pairing.completions.items():
        texts = {c.text: c for c in row}
        for other in (t for t in texts if t != better and better in texts):
            name = content_hash(prompt_id, other)
            pair = (texts[other], texts[better])
            made.append(LabelledPair(name, pairing.prompts[prompt_id], *pair, label=0.0))
    return made


def other(constitution: Constitution, **fields: dict[str, Any]) -> Constitution:
    """The constitution with some fields of some principles changed; None removes one."""
    data = constitution.model_dump()
    kept = [p | fields.get(p["id"], {}) for p in data["principles"] if fields.get(p["id"]) != {}]
    return Constitution.model_validate(data | {"principles": kept})


def test_the_runs_own_weights_flip_nothing(run: Run) -> None:
    pairings = load_pairings(run)
    weights = principle_weights(run_constitution(run))
    same = effect(pairings, weights, weights)
    assert (same.flipped, same.tied, same.missing) == (0, 0, 0)
    assert same.preferences == len(run.preferences) > 5
    assert same.flip_rate is not None and same.flip_rate.mean == 0
    assert same.other_pairs is not None and same.other_pairs.mean == 0
    scores = rescore_completions(pairings[0], weights)
    for row in pairings[0].preferences:
        assert scores[row.prompt_id][row.chosen_id] == pytest.approx(row.score_chosen)


def test_ablation_flips_what_hangs_on_a_principle(run: Run) -> None:
    found = {row.principle: row for row in ablate_principles(run).rows}
    preferences = list(run.rows("preferences"))
    texts = {
        row["completion_id"]: row["messages"][-1]["content"] for row in run.rows("completions")
    }
    # "Yes it is." beats the list by `brief` (weight 2) and loses to it by `listed`.
    contested = sum(
        texts[p["chosen_id"]] == REPLIES[0] and texts[p["rejected_id"]] == REPLIES[1]
        for p in preferences
    )
    assert contested > 0
    assert found["brief"].effect.flipped == contested
    assert found["listed"].effect.flipped == 0
    assert found["brief"].judgements == len(texts)
    assert found["brief"].agreement is None


def test_ablation_measures_agreement_with_and_without(run: Run) -> None:
    labels = human(run, REPLIES[0])
    made = ablate_principles(run, labels)
    found = {row.principle: row for row in made.rows}
    assert made.labelled == len(labels)
    assert made.agreement is not None and made.agreement.mean == 1
    for name in ("brief", "listed"):
        row = found[name]
        assert row.agreement is not None and row.change is not None
        assert row.change.mean == pytest.approx(row.agreement.mean - made.agreement.mean)
    assert found["brief"].change is not None and found["brief"].change.mean < 0
    assert found["listed"].change is not None and found["listed"].change.mean >= 0


def test_without_any_principle_there_is_no_score_and_no_flip(run: Run) -> None:
    pairings = load_pairings(run)
    weights = principle_weights(run_constitution(run))
    nothing = effect(pairings, weights, dict.fromkeys(weights, 0.0))
    assert nothing.missing == nothing.preferences
    assert nothing.flipped == nothing.tied == 0


def test_an_empty_answer_fails_the_principle_that_it_would_escape() -> None:
    """As when the pairs were made: a principle that applies to the other answer counts for both."""
    prompt = make_prompt([{"role": "user", "content": "Name a red fruit."}])
    answers = [
        Completion(
            name, prompt.prompt_id, n, [{"role": "assistant", "content": text}], *"mw", {}, ""
        )
        for n, (name, text) in enumerate((("full", "Cherry"), ("empty", " ")))
    ]
    rows = [
        replace(judged("true", "full", 0.4), prompt_id=prompt.prompt_id),
        replace(judged("true", "empty", None, "not_applicable"), prompt_id=prompt.prompt_id),
        *(replace(judged("kind", n, 0.9), prompt_id=prompt.prompt_id) for n in ("full", "empty")),
    ]
    name = prompt.prompt_id
    given = {"one": {name: rows}}
    pairing = Pairing(PairStep(), 0, {name: prompt}, {name: answers}, given, {}, [])
    found = rescore_completions(pairing, {})[name]
    assert found == pytest.approx({"full": 0.65, "empty": 0.45})


def test_labels_of_other_texts_are_refused(run: Run) -> None:
    [pair, *_] = human(run, REPLIES[0])
    strange = Completion("c", pair.prompt.prompt_id, 0, [], "m", "", {}, "stop")
    with pytest.raises(ConfigError, match="none of the 1 labelled pairs is about two answers"):
        ablate_principles(run, [LabelledPair("p", pair.prompt, strange, pair.second, 1.0)])


def test_reach_of_weights_removals_and_texts(run: Run) -> None:
    own = run_constitution(run)
    heavier = measure_reach(run, own, other(own, listed={"weight": 9.0}))
    assert [(j.judge, j.kept) for j in heavier.judges] == [("checks", True)]
    assert heavier.effect.flipped > 0 and heavier.unknown == ()
    assert heavier.same_start

    removed = measure_reach(run, own, other(own, brief={}))
    assert removed.judges[0].kept
    assert removed.judges[0].unchanged == removed.judges[0].judgements / 2
    assert removed.effect.flipped == ablate_principles(run).rows[0].effect.flipped

    reworded = measure_reach(run, own, other(own, brief={"text": "The answer has few words."}))
    # A program checks it, whatever its words.
    assert reworded.unknown == () and reworded.judges[0].kept
    assert reworded.effect.flipped == 0
    assert not measure_reach(run, other(own, brief={}), own).same_start


@pytest.mark.parametrize("kept", [True, False])
def test_reach_finds_files_beside_the_experiment(
    tmp_path: Path, write_experiment: Callable[..., Path], kept: bool
) -> None:
    """The judge's template lies beside the experiment and nowhere else, or is gone."""
    folder = tmp_path / "folder"
    folder.mkdir()
    shipped = Path(__file__).parents[2] / "prompts" / "judges" / "yes_no.j2"
    (folder / "own.j2").write_text(shipped.read_text("utf-8"), "utf-8")
    content = {"name": "one", "principles": [{"id": "brief", "text": "It is brief."}]}
    (folder / "constitution.yaml").write_text(yaml.safe_dump(content), "utf-8")
    path = write_experiment(
        folder,
        None,
        models={"policy": {"path": "none", "engine": "fake", "script": "script.yaml"}},
        rounds=1,
        steps=[
            {"sample": {"n": 2, "temperature": 1.0, "max_new_tokens": 40}},
            {"judge": {"id": "asked", "kind": "yes_no", "by": "policy", "template": "own.j2"}},
            {"pair": {"strategy": "all"}},
        ],
    )
    rules = [
        {"match": "long words", "labels": {"yes": 0.1, "no": 0.9}},
        {"match": "Yes or No|yes or no|YES", "labels": {"yes": 0.8, "no": 0.2}},
        {"match": ".", "replies": ["brief", "many long words"]},
    ]
    (folder / "script.yaml").write_text(yaml.safe_dump({"rules": rules}), "utf-8")
    run_experiment(path, tmp_path / "runs" / "one")
    if not kept:
        (folder / "own.j2").unlink()
    used = load_run(tmp_path / "runs" / "one")
    own = run_constitution(used)
    found = measure_reach(used, own, own)
    [judge] = found.judges
    assert judge.kept == kept
    assert (judge.fault is None) == kept
    assert kept or "own.j2: not found" in "\n".join(found.lines())


def test_fit_on_a_run_finds_whose_side_people_take(run: Run) -> None:
    pairings, own = load_pairings(run), run_constitution(run)
    given = human(run, REPLIES[1])
    strange = LabelledPair("s", given[0].prompt, given[0].first, given[0].first, 1.0)
    lists, left = run_votes(pairings, [*given, strange])
    assert (len(lists), left) == (len(given), 1)
    made = fitted(lists, own, folds=2)
    weights = {row.principle: row for row in made.weights}
    assert weights["listed"].weight > weights["brief"].weight
    assert weights["brief"].coefficient < 0 and weights["brief"].weight == 0
    assert sum(row.weight for row in made.weights) == pytest.approx(3)
    assert made.current_agreement is not None and made.agreement is not None
    assert made.agreement.mean > made.current_agreement.mean
    with pytest.raises(ConfigError, match="no judge 'check'; did you mean 'checks'"):
        run_votes(pairings, human(run, REPLIES[1]), ["check"])
    with pytest.raises(ConfigError, match="--folds 50 needs at least 50"):
        fitted(lists, own, folds=50)


def planted(rows: int, truth: dict[str, float], seed: int = 0) -> list[VotedPair]:
    rng = np.random.default_rng(seed)
    votes = rng.uniform(-1, 1, (rows, len(truth)))
    label = rng.random(rows) < predict_probability(votes, np.asarray(list(truth.values())))
    return [
        VotedPair(f"p{i // 2}", dict(zip(truth, map(float, v), strict=True)), float(y))
        for i, (v, y) in enumerate(zip(votes, label, strict=True))
    ]


def test_planted_weights_are_recovered() -> None:
    truth = {"a": 6.0, "b": 3.0, "c": 1.0, "against": -2.0}
    made = fit_weights(planted(3000, truth), dict.fromkeys(truth, 1.0))
    rows = {row.principle: row for row in made.weights}
    for name, value in truth.items():
        assert rows[name].low - 0.25 < value < rows[name].high + 0.25, name
    assert rows["against"].weight == 0 and rows["against"].high < 0
    ratio = rows["a"].weight / rows["b"].weight
    assert ratio == pytest.approx(2, rel=0.2)
    assert sum(row.weight for row in made.weights) == pytest.approx(4)
    assert made.change is not None and made.change.low > 0, "better than equal weights"


def test_fit_leaves_out_pairs_with_a_missing_vote_and_principles_without_one() -> None:
    pairs = planted(200, {"a": 5.0, "b": 1.0})
    hidden = [VotedPair("q", {"a": None, "b": 1.0}, 0.0) for _ in range(50)]
    made = fit_weights(pairs + hidden, {"a": 1.0, "b": 1.0, "silent": 1.0})
    assert (made.pairs, made.left_out) == (200, 50)
    assert {row.principle for row in made.weights} == {"a", "b"}
    plain = fit_weights(pairs, {"a": 1.0, "b": 1.0})
    assert made.weights == plain.weights and plain.left_out == 0


def test_fit_names_votes_that_are_all_in_incomplete_pairs(run: Run) -> None:
    own = run_constitution(run)
    silent = [VotedPair(f"p{i}", {"brief": 0.0, "listed": 0.0}, 1.0) for i in range(6)]
    hidden = [VotedPair("q", {"brief": 1.0, "listed": None}, 1.0)]
    with pytest.raises(ConfigError, match=r"any of the 6 labelled pairs .*\(1 lack one\)"):
        fitted(silent + hidden, own, folds=2)


def judged(principle: str, subject: str, score: float | None, status: Any = "ok") -> Judgement:
    name = f"{principle}{subject}{status}"
    return Judgement(
        name, name, "p", "completion", [subject], subject, "j", "x", "ai", principle, status, score
    )


def compared(first: str, second: str, prob: float | None) -> Judgement:
    name = f"{first}{second}"
    status: Any = "ok" if prob is not None else "unparsed"
    shown = [first, second]
    return Judgement(
        name, name, "p", "completion", shown, first, "j", "x", "ai", "c", status, prob_first=prob
    )


def test_votes_of_principles() -> None:
    rows = [judged("a", "x", 0.75), judged("a", "y", 0.5), judged("a", "z", 0.0)]
    rows += [judged("gone", s, None, "not_applicable") for s in "xy"]
    rows += [judged("half", "x", 1.0), judged("half", "y", None, "unparsed")]
    rows += [compared("x", "y", 0.9), compared("y", "x", 0.3), compared("x", "z", 0.0)]
    assert principle_votes(rows, "x", "y") == {
        "a": 0.25,
        "half": None,
        "c": pytest.approx(2 * 0.8 - 1),
    }
    back = principle_votes(rows, "y", "x")
    assert back["a"] == -0.25 and back["c"] == pytest.approx(-0.6)
    rows.append(compared("z", "y", None))
    assert principle_votes(rows, "z", "y")["c"] is None


def test_one_principle_has_one_vote() -> None:
    assert one_vote_each({"j": {"a": 1.0}, "k": {"b": None}}) == {"a": 1.0, "b": None}
    with pytest.raises(ConfigError, match="'a' is judged by 'j' and by 'k'"):
        one_vote_each({"j": {"a": 1.0}, "k": {"a": 1.0}})


def test_a_run_without_constitution_or_pairs_is_refused(
    tmp_path: Path, write_experiment: Callable[..., Path]
) -> None:
    path = write_experiment(
        tmp_path, None, constitution=None, rounds=1, steps=[{"sample": {"n": 1}}]
    )
    run_experiment(path, tmp_path / "run")
    with pytest.raises(ConfigError, match="no constitution"):
        ablate_principles(load_run(tmp_path / "run"))
    with pytest.raises(ConfigError, match="no finished pair step"):
        load_pairings(load_run(tmp_path / "run"))


def test_reading_a_run_writes_nothing(run: Run) -> None:
    before = {p: p.stat().st_mtime_ns for p in run.root.rglob("*")}
    ablate_principles(run)
    measure_reach(run, run_constitution(run), run_constitution(run))
    assert {p: p.stat().st_mtime_ns for p in run.root.rglob("*")} == before
    assert json.loads((run.root / "manifest.json").read_text("utf-8"))["name"] == "small"
    assert load_constitution(run.root.parent / "constitution.yaml").name == "two"


def test_labels_are_compared_with_the_scores_of_the_pair_step_that_has_their_answers(
    run: Run,
) -> None:
    [pairing] = load_pairings(run)
    without = dataclasses.replace(pairing, completions={})
    weights, labels = principle_weights(run_constitution(run)), human(run, REPLIES[0])
    found, strange = find_labelled([without, pairing], labels)
    assert {pair.pairing for pair in found} == {1} and strange == 0
    assert measure_agreements([without, pairing], found, weights) == [1.0] * len(labels)
