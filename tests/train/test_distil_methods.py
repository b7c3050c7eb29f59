"""Every kind of reward model from preferences to an engine's rewards, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from msgspec.structs import replace
from pydantic import TypeAdapter

from rlaif.config.methods import AnyDistill
from rlaif.config.models import ModelSpec
from rlaif.core.errors import RlaifError
from rlaif.core.records import Judgement
from rlaif.engines.base import RewardRequest
from rlaif.engines.build import load_engine
from rlaif.kernels.heads import HeadConfig, OrdinalHead
from rlaif.train.fits import ALPHAS, _ordinal_once
from rlaif.train.loop import TrainJob
from rlaif.train.methods.heads import OrdinalDistill
from rlaif.train.probe import binned, ratings
from rlaif.train.reward_model import by_prompt, prepared
from rlaif.train.run import find_trainer, train
from rlaif.train.tokenise import Example

CPU = torch.device("cpu")


def options(**keys):
    return TypeAdapter(AnyDistill).validate_python(keys)


def distil(start: Path, folder: Path, preferences, **keys):
    trained = {"learning_rate": 3e-3, "batch_size": 4, "epochs": 6, "precision": "fp32"}
    step = options(**{**trained, **keys})
    outcome = train(step, preferences, {}, start, None, folder / "rm", folder / "work", 0)
    return outcome, folder / "rm"


def fitted(start: Path, folder: Path, preferences, judgements=(), **keys):
    step = options(precision="fp32", **keys)
    job = TrainJob(
        step,
        start,
        folder / "rm",
        folder / "work",
        0,
        CPU,
        preferences=preferences,
        judgements=judgements,
    )
    return find_trainer(job)(job), folder / "rm"


def results(folder: Path, preferences):
    engine = load_engine(ModelSpec(path=str(folder), dtype="float32"), folder, "rm")
    requests = [
        RewardRequest(f"{i}/{side}", p.prompt, getattr(p, side)[0])
        for i, p in enumerate(preferences)
        for side in ("chosen", "rejected")
    ]
    found = {r.request_id: r for batch in engine.reward(requests) for r in batch}
    return [(found[f"{i}/chosen"], found[f"{i}/rejected"]) for i in range(len(preferences))]


def ranked_right(folder: Path, preferences) -> int:
    return sum(a.reward > b.reward for a, b in results(folder, preferences))


def judged(preferences, name="kind", of=lambda text: float("y" in text)) -> list[Judgement]:
    found = {}
    for p in preferences:
        for side, subject in ((p.chosen, p.chosen_id), (p.rejected, p.rejected_id)):
            score = of(side[0]["content"])
            found[subject] = Judgement(
                f"{name}{subject}", "c", p.prompt_id, "completion", [subject], subject, name, "a",
                "ai", None, "ok", score=score,
            )  # fmt: skip
    return list(found.values())


def test_k_wise_computes_each_answer_once_and_weighs_prompts_alike():
    def example(name, a, b, prompt=(1, 2)):
        return Example(name, "p", list(prompt), (a, b), ids=(str(a), str(b)), scores=(1.0, 0.0))

    joined = by_prompt(
        [example("x", [5], [6]), example("y", [5], [7]), example("z", [8], [9], (3,))]
    )
    assert [len(e.completions) for e in joined] == [3, 2]
    assert [(p.chosen, p.rejected) for p in joined[0].pairs] == [(0, 1), (0, 2)]
    assert joined[0].ids == ("[5]", "[6]", "[7]")


def test_k_wise_of_two_answers_is_bradley_terry(tmp_path, make_model, make_preferences):
    preferences = [
        replace(p, prompt=[{"role": "user", "content": f"{i}"}], prompt_id=f"q{i}")
        for i, p in enumerate(make_preferences(6))
    ]
    one, _ = distil(make_model(0), tmp_path / "a", preferences)
    other, _ = distil(make_model(0), tmp_path / "b", preferences, method="k_wise")
    assert one.metrics["last_loss"] == pytest.approx(other.metrics["last_loss"], abs=1e-5)


def test_k_wise_learns_the_order_of_three_answers(tmp_path, make_model, make_preferences):
    base = make_preferences(3)
    same = [{"role": "user", "content": "Say it"}]
    texts = ["yes yes yes", "maybe so", "no"]
    pairs = [
        replace(
            base[k],
            prompt=same,
            prompt_id="p",
            chosen=[{"role": "assistant", "content": texts[a]}],
            rejected=[{"role": "assistant", "content": texts[b]}],
            chosen_id=f"c{a}",
            rejected_id=f"c{b}",
        )
        for k, (a, b) in enumerate([(0, 1), (0, 2), (1, 2)])
    ]
    outcome, folder = distil(make_model(0), tmp_path, pairs, method="k_wise", epochs=20)
    assert outcome.steps == 20
    assert ranked_right(folder, pairs) == 3


def test_a_cost_model_says_safe_above_zero(tmp_path, make_model, make_preferences):
    preferences = [replace(p, score_chosen=0.9, score_rejected=0.2) for p in make_preferences(8)]
    _, folder = distil(make_model(0), tmp_path, preferences, method="cost", epochs=15)
    found = results(folder, preferences)
    assert all(a.reward > 0 > b.reward for a, b in found)
    same = [replace(p, score_chosen=0.9, score_rejected=0.8) for p in preferences]
    with pytest.raises(RlaifError, match="every answer is safe"):
        distil(make_model(0), tmp_path / "b", same, method="cost")


def test_a_conditional_model_changes_its_mind_with_the_condition(
    tmp_path, make_model, make_preferences
):
    base = make_preferences(8)
    preferences = [replace(p, source="plain") for p in base] + [
        replace(p, source="odd", preference_id=f"o{i}", chosen=p.rejected, rejected=p.chosen)
        for i, p in enumerate(base)
    ]
    conditions = {"plain": "Be plain.", "odd": "Be odd!"}
    _, folder = distil(
        make_model(0), tmp_path, preferences, method="conditional", conditions=conditions, epochs=40
    )
    for source, wanted in (("plain", 8), ("odd", 0)):
        system = {"role": "system", "content": conditions[source]}
        asked = [replace(p, prompt=[system, *p.prompt]) for p in base]
        assert ranked_right(folder, asked) == wanted
        assert all(abs(a.reward) < 5 for a, _ in results(folder, asked))
    with pytest.raises(RlaifError, match="no system prompt is given"):
        distil(
            make_model(0), tmp_path / "b", preferences, method="conditional",
            conditions={"plain": "x"},
        )  # fmt: skip


def test_a_linear_head_is_what_transformers_loads(tmp_path, make_model, make_preferences):
    from transformers import AutoModelForSequenceClassification

    preferences = make_preferences(20)
    outcome, folder = fitted(make_model(0), tmp_path, preferences, method="linear")
    assert outcome.metrics["pairs"] == 20
    assert ranked_right(folder, preferences) >= 18
    module = AutoModelForSequenceClassification.from_pretrained(folder)
    assert module.config.num_labels == 1


def test_fitting_again_goes_on_from_what_was_computed(
    tmp_path, make_model, make_preferences, monkeypatch
):
    from rlaif.train import probe

    preferences = make_preferences(20)
    step = {"method": "linear", "micro_batch_tokens": 64}
    whole, folder = fitted(make_model(0), tmp_path / "a", preferences, **step)
    calls = []
    compute = probe._compute_features

    def dies_at_third(model, rows, depths, path):
        calls.append(path.name)
        if len(calls) == 3:
            raise KeyboardInterrupt
        compute(model, rows, depths, path)

    monkeypatch.setattr(probe, "_compute_features", dies_at_third)
    with pytest.raises(KeyboardInterrupt):
        fitted(make_model(0), tmp_path / "b", preferences, **step)
    first = list(calls)
    again, other = fitted(make_model(0), tmp_path / "b", preferences, **step)
    assert first[:2] == calls[:2] and not set(first[:2]) & set(calls[3:])
    assert again.metrics == whole.metrics
    names = ("model.safetensors", "reward_head.safetensors")
    assert all((folder / n).read_bytes() == (other / n).read_bytes() for n in names)


def test_several_objectives_from_judgements(tmp_path, make_model, make_preferences):
    preferences = make_preferences(40)
    said = judged(preferences) + judged(preferences, "digits", lambda s: sum(map(str.isdigit, s)))
    outcome, folder = fitted(
        make_model(0), tmp_path, preferences, said,
        method="multi_objective", gate_width=8, gate_layers=1, gate_steps=50, gate_batch=32,
    )  # fmt: skip
    assert {"held_out_mse/kind", "held_out_mse/digits", "held_out_mse/length"} <= set(
        outcome.metrics
    )
    chosen, rejected = results(folder, preferences)[0]
    assert chosen.reward == pytest.approx(
        chosen.parts["objective/kind"] + chosen.parts["objective/digits"], rel=1e-6, abs=1e-5
    )
    assert chosen.parts["gate/kind"] == pytest.approx(rejected.parts["gate/kind"])
    assert ranked_right(folder, preferences) > 25


def test_quantiles_and_ratings_from_the_pairs_own_scores(tmp_path, make_model, make_preferences):
    preferences = [
        replace(p, score_chosen=0.6 + 0.1 * (i % 3), score_rejected=0.1 * (i % 3))
        for i, p in enumerate(make_preferences(40))
    ]
    keys = {"gate_steps": 30, "gate_batch": 32, "debias": None}
    _, folder = fitted(
        make_model(0), tmp_path / "q", preferences, method="quantile", quantiles=3, **keys
    )
    chosen, rejected = results(folder, preferences)[0]
    levels = [chosen.parts[f"quantile/{x}"] for x in ("0.25", "0.5", "0.75")]
    assert levels == sorted(levels) and chosen.reward > rejected.reward
    _, folder = fitted(make_model(0), tmp_path / "o", preferences, method="ordinal", levels=4)
    chosen, rejected = results(folder, preferences)[0]
    assert 0 <= rejected.parts["rating"] < 0.5 < chosen.parts["rating"] < 1


def test_an_ordinal_fit_ends_where_nobody_gave_a_level():
    torch.manual_seed(0)
    features, level = torch.randn(8, 16), torch.tensor([0, 2, 0, 2, 2, 0, 0, 2])
    head = OrdinalHead(HeadConfig("ordinal", 16, levels=(0.0, 0.5, 1.0)))
    for alpha in ALPHAS:
        _ordinal_once(head, features, level, alpha)
        thresholds = head.thresholds().detach()
        assert torch.isfinite(head.weight).all() and torch.isfinite(thresholds).all()
        assert thresholds[1] - thresholds[0] < 1e-3


def test_ordinal_refuses_weights_between_left_out_and_kept():
    keys = {"method": "ordinal", "source_weights": {"human": 0.5}}
    with pytest.raises(ValueError, match="a weight is 0"):
        OrdinalDistill.model_validate(keys)
    OrdinalDistill.model_validate(keys | {"source_weights": {"human": 0, "rlaif": 1}})


def test_ratings_are_means_over_samples_and_leave_out_what_has_no_value(make_preferences):
    said = judged(make_preferences(1))
    again = replace(said[0], judgement_id="x", score=0.0)
    unread = replace(said[1], judgement_id="y", score=None, status="unparsed")
    assert ratings([said[0], again, unread]) == {"kind": {"c0": 0.5}}


def test_many_ratings_are_put_into_bins_of_equal_mass():
    values = torch.arange(100.0)
    levels, place = binned(values, 4, "x")
    assert levels == (12.0, 37.0, 62.0, 87.0)
    assert place.bincount().tolist() == [25, 25, 25, 25]
    levels, place = binned(torch.tensor([1.0, 3.0, 1.0]), 5, "x")
    assert (levels, place.tolist()) == ((1.0, 3.0), [0, 1, 0])


def test_replay_keeps_the_newest_round_and_a_share_of_the_earlier_ones(make_preferences):
    pairs = [replace(p, round=1 + i // 200) for i, p in enumerate(make_preferences(300))]
    kept, repeated = prepared(pairs, options(replay=0.3))
    assert repeated == 0
    assert sum(p.round == 2 for p in kept) == 100
    assert 35 < sum(p.round == 1 for p in kept) < 85
    assert prepared(list(reversed(pairs)), options(replay=0.3))[0] == kept[::-1]
    assert len(prepared(pairs, options(replay=0.0))[0]) == 100
    assert len(prepared(pairs, options())[0]) == 300


def test_what_cannot_teach_is_refused_in_words(tmp_path, make_model, make_preferences):
    preferences = make_preferences(8)
    plain = options()
    tied = [replace(p, prob=0.5) for p in preferences]
    with pytest.raises(RlaifError, match="all 8 pairs are ties"):
        prepared(tied, plain)
    clash = [preferences[0], replace(preferences[1], preference_id="r0")]
    with pytest.raises(RlaifError, match="two different pairs have the id r0"):
        prepared(clash, plain)
    kept, repeated = prepared([preferences[0], preferences[0], preferences[1]], plain)
    assert (len(kept), repeated) == (2, 1)
    with pytest.raises(RlaifError, match="no pair has the source 'humans'"):
        prepared(preferences, options(source_weights={"humans": 2.0}))
    with pytest.raises(RlaifError, match="every pair has weight 0"):
        prepared(preferences, options(source_weights={"test": 0.0}))
    weighted, _ = prepared(preferences, options(source_weights={"test": 0.25}))
    assert {p.weight for p in weighted} == {0.25}
    heavy = [replace(p, weight=2.0) for p in preferences]
    assert {p.weight for p in prepared(heavy, options(source_weights={"test": 0.25}))[0]} == {0.5}
    bare = [replace(p, score_chosen=None, score_rejected=None) for p in preferences]
    with pytest.raises(RlaifError, match="nobody rated these answers"):
        fitted(make_model(0), tmp_path / "a", bare, method="ordinal")
    same = judged(preferences, of=lambda s: 0.5)
    with pytest.raises(RlaifError, match="'kind' is always the same"):
        fitted(make_model(0), tmp_path / "b", preferences, same, method="multi_objective")
    two = judged(preferences) + judged(preferences, "other")
    with pytest.raises(RlaifError, match="set `objective`"):
        fitted(make_model(0), tmp_path / "c", preferences, two, method="ordinal")
    with pytest.raises(RlaifError, match="nobody rated 'kin'"):
        fitted(make_model(0), tmp_path / "d", preferences, two, method="ordinal", objective="kin")
    with pytest.raises(RlaifError, match="held-out prompts"):
        fitted(make_model(0), tmp_path / "e", preferences[:1], method="linear")


def test_methods_that_ask_for_scores_say_which_pairs_have_none() -> None:
    pair = Example("f_1", "p_1", [1], ([2], [3]), scores=(None, None))
    with pytest.raises(RlaifError, match="cost: 2 of 2 answers have no score"):
        options(method="cost").arrange_examples([pair])
    with pytest.raises(RlaifError, match="1 of 1 pairs have no margin"):
        options(method="bradley_terry", margin="score").arrange_examples([pair])
    assert options(method="bradley_terry").arrange_examples([pair]) == [pair]
