"""Which model stands in which role of a plan, where several judges ask several models, and what
on-policy training hands from the plan to its rollouts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rlaif.config.models import ModelSpec
from rlaif.constitution.model import Constitution
from rlaif.core.progress import QuietProgress
from rlaif.core.records import Completion, Judgement, Prompt, content_hash, make_prompt
from rlaif.core.store import Store
from rlaif.data.sources import PromptSet
from rlaif.engines.base import GenerateResult, Sampling
from rlaif.judges.build import build_judge
from rlaif.pipeline.experiment_file import Experiment
from rlaif.pipeline.explain.words import _describe_train
from rlaif.pipeline.plan.base import PlanInputs, Planned, replace_path, round_prompts
from rlaif.pipeline.plan.unroll import make_plan
from rlaif.pipeline.steps import on_policy
from rlaif.pipeline.steps.context import StepContext
from rlaif.pipeline.steps.train import _count_answered_prompts, _models_of_judge
from rlaif.pipeline.steps.valued import Valuation
from rlaif.train.redraws import Redraw

HELD = [make_prompt([{"role": "user", "content": f"Held out {i}?"}]) for i in range(2)]
ASKED = [
    make_prompt([{"role": "user", "content": f"Question {i}?"}], tags=["even"] * (i % 2 == 0))
    for i in range(8)
]
NAMES = ("policy", "other", "third")
RULES: dict[str, Any] = {
    "name": "rules",
    "version": "1",
    "principles": [
        {"id": "kind", "text": "It is kind.", "weight": 3},
        {"id": "true", "text": "It is true.", "weight": 2},
    ],
}
IMPLICIT = {"id": "ratio", "kind": "implicit_reward", "by": "policy", "reference": "other"}
VERSUS = {"id": "versus", "kind": "pairwise", "by": "third", "principles": ["kind"]}


def planned(folder: Path, **keys: Any) -> tuple[list[Planned], PlanInputs]:
    data: dict[str, Any] = {
        "name": "roles",
        "seed": 4,
        "rounds": 2,
        "models": {name: {"path": name} for name in NAMES},
        "prompts": {"path": "p.jsonl"},
    }
    experiment = Experiment.model_validate(data | keys)
    constitution = Constitution.model_validate(RULES)
    judges = {n: build_judge(s, constitution, folder) for n, s in experiment.all_judges().items()}
    inputs = PlanInputs(
        experiment,
        folder / "experiment.yaml",
        {},
        constitution,
        PromptSet(ASKED, HELD, 0),
        judges,
        {name: f"weights:{name}" for name in NAMES},
    )
    return make_plan(inputs), inputs


def roles(step: Planned) -> dict[str, str]:
    return {role: model.label for role, model in step.models.items()}


def test_every_role_of_a_judge_has_its_own_model_in_a_round_and_in_an_evaluation(
    tmp_path: Path,
) -> None:
    sample = {"n": 4, "temperature": 0.9, "top_p": 0.7, "top_k": 6, "max_new_tokens": 12}
    plan, _ = planned(
        tmp_path,
        steps=[
            {"sample": {**sample, "stop": ["END"]}},
            {"judge": IMPLICIT},
            {"judge": VERSUS},
            {"pair": {"uses": ["ratio"], "standardise": "initial"}},
            {"train": {"reference": "earlier"}},
            {"evaluate": {"id": "ev", "n": 3, "temperature": 0.25, "max_new_tokens": 10}},
        ],
    )

    def of(kind: str, name: str, number: int) -> Planned:
        (found,) = [p for p in plan if (p.kind, p.id, p.round) == (kind, name, number)]
        return found

    for number, policy in ((1, "M0"), (2, "M1")):
        assert roles(of("judge", "ratio", number)) == {"by": policy, "reference": "other"}
        assert roles(of("judge", "versus", number)) == {"by": "third"}
        # An evaluation asks the frozen policy, and the drift is that of the moved one.
        assert roles(of("judge", "ev.ratio", number)) == {"by": "M0", "reference": "other"}
        drift = of("judge", "ev.drift.ratio", number)
        assert roles(drift) == {"by": f"M{number}", "reference": "other"}
        first = of("sample", "ev.sample", 0)
        assert drift.inputs == {"completions/0": first.hash}
        # Judges that compare are shown M0's answers beside the new ones.
        new = of("sample", "ev.sample", number)
        compared = of("judge", "ev.versus", number)
        assert compared.inputs == {"completions/0": new.hash, "completions/1": first.hash}
        assert set(compared.prompts) == {p.prompt_id for p in HELD}
        # M0 scores the answers of all; its own it has scored while it wrote them.
        assert roles(of("logprobs", "ev.logprobs", number)) == {"by": "M0"}
        assert of("logprobs", "ev.logprobs", number).options == {"own": False}
        measured = of("evaluate", "ev", number)
        assert roles(measured) == {"policy": f"M{number}", "initial": "M0"}
        assert measured.inputs["completions"] == new.hash
        assert measured.inputs["initial/completions"] == first.hash
        assert measured.inputs["drift/ratio"] == drift.hash
        assert measured.options == {"principle_weights": {"kind": 3.0, "true": 2.0}}
        own = of("judge", "ratio", number)
        assert measured.inputs["train/judgements/ratio"] == own.hash
        # What is spread out is measured on the first round's judgements.
        pairs = of("pair", "pair", number)
        assert pairs.inputs["judgements/ratio"] == own.hash
        assert pairs.inputs["initial/ratio"] == of("judge", "ratio", 1).hash
        step = new.step
        kept = (step.n, step.temperature, step.top_p, step.top_k, step.max_new_tokens, step.stop)
        assert kept == (3, 0.25, 0.7, 6, 10, ["END"])
        assert new.options == {"sampling_seed": "heldout/4"}
        drawn = of("sample", "sample", number)
        assert (drawn.options, drawn.step.temperature) == ({"sampling_seed": f"4/{number}"}, 0.9)
        assert drawn.step.max_new_tokens == 12
    assert not [p for p in plan if p.id == "ev.versus" and p.round == 0]
    assert of("logprobs", "ev.logprobs", 0).options == {"own": True}
    trained = [roles(of("train", "train", number)) for number in (1, 2)]
    assert trained == [
        {"start": "M0", "reference": "M0", "made": "M1"},
        {"start": "M1", "reference": "M0", "made": "M2"},
    ]
    assert (
        of("evaluate", "ev", 2).inputs["previous/completions"] == of("sample", "ev.sample", 1).hash
    )


def test_a_reward_model_knows_its_last_round_and_judges_ask_the_newest(tmp_path: Path) -> None:
    distill: Any = {"id": "rm", "method": "bradley_terry", "from": "rm", "refresh": {"drop": 0.1}}
    plan, _ = planned(
        tmp_path,
        steps=[
            {"sample": {"n": 2}},
            {"judge": IMPLICIT},
            {"pair": {"uses": ["ratio"]}},
            {"distill": distill},
            {"judge": {"id": "score", "kind": "reward_model", "by": "rm"}},
            {"pair": {"id": "again", "uses": ["score"]}},
            {"train": {}},
        ],
    )
    made = [roles(p) for p in plan if p.kind == "distill"]
    assert made == [
        {"start": "M0", "made": "rm1"},
        {"start": "rm1", "last": "rm1", "made": "rm2"},
    ]
    assert [roles(p) for p in plan if p.id == "score"] == [{"by": "rm1"}, {"by": "rm2"}]
    first, second = (p for p in plan if p.kind == "distill")
    assert second.models["last"].train_hash == first.hash


TERMS: list[dict[str, Any]] = [
    {"judge": "ratio", "value": "score", "when": {"tags": ["even"]}},
    {"judge": "rank", "weight": 2.0},
    {"judge": "ratio", "weight": 0.5, "normalise": "reference"},
]
GRPO: dict[str, Any] = {
    "method": "grpo",
    "n": 3,
    "batch_size": 2,
    "sync_every": 1,
    "rollouts": 2,
    "max_new_tokens": 9,
    "temperature": 0.7,
    "stop": ["END"],
    "importance": "none",
    "rewards": TERMS,
}


def rollouts(folder: Path, number: int = 2) -> on_policy.Rollouts:
    """The rollouts of a round, of which nothing was sampled and no model loaded."""
    rank = {"id": "rank", "kind": "yes_no", "by": "third", "principles": ["kind", "true"]}
    plan, inputs = planned(folder, judges=[IMPLICIT, rank], steps=[{"train": GRPO}])
    (step,) = [p for p in plan if p.round == number]
    store = Store(folder / "run")
    by_id = {p.prompt_id: p for p in ASKED}
    made: Any = (step, store.step(step.hash), store, inputs, by_id, None, QuietProgress())
    found = object.__new__(on_policy.Rollouts)
    found.context, found.step, found.prompts = StepContext(*made), step.step, ASKED
    found.terms = step.step.terms
    weights, turned = step.options["principle_weights"], step.options["turned_costs"]
    adds = step.step.adds_terms
    found.valuation = Valuation(found.terms, [], turned, step.judges, weights, adds)
    found.fitted = [2]
    return found


def test_on_policy_training_finds_the_models_of_each_judge_by_role(tmp_path: Path) -> None:
    found = rollouts(tmp_path)
    step, judges = found.context.planned, found.context.inputs.judges
    assert roles(step) == {
        "start": "M1",
        "reference": "M1",
        "judge/ratio": "M1",
        "judge/ratio/reference": "other",
        "judge/rank": "third",
        "made": "M2",
    }
    wanted = {"ratio": {"by": "M1", "reference": "other"}, "rank": {"by": "third"}}
    for name, models in wanted.items():
        both = found._models_of_judge(judges[name]), _models_of_judge(step, name, judges[name])
        for own in both:
            assert {role: model.label for role, model in own.items()} == models


def test_a_rollout_samples_the_next_prompts_with_the_seeds_of_its_place(tmp_path: Path) -> None:
    """Two rollouts of two prompts in round 1 come before those of round 2."""
    found = rollouts(tmp_path)
    windows = [round_prompts(ASKED, 2, 4, place) for place in (1, 2, 3, 4)]
    assert len({name for window in windows for name in window}) == 8
    chosen = [[p.prompt_id for p in found._choose_prompts(n, range(3))] for n in (0, 1)]
    assert chosen == windows[2:]
    first = rollouts(tmp_path / "first", 1)
    assert [p.prompt_id for p in first._choose_prompts(1, range(3))] == windows[1]
    # Draws of the start policy are of the prompts that some fitted term is for.
    even = [p for p in ASKED if p.tags]
    drawn = found._choose_prompts(-1, [0])
    assert {p.prompt_id for p in drawn} == {p.prompt_id for p in even}
    by_judge = found.valuation.prompts_by_judge
    assert by_judge(ASKED, [0, 1], costs=True) == {"ratio": even, "rank": ASKED}
    assert by_judge(ASKED, [0, 2], costs=True) == {"ratio": ASKED}
    name = ASKED[0].prompt_id
    seed = int(content_hash("rollout", 4, 2, 5, name, 1, length=8), 16) & 0x7FFFFFFF
    wanted = Sampling(9, 0.7, stop=("END",), seed=seed)
    assert found._make_sampling((5,), ASKED[0], 1) == wanted


def test_a_redraw_is_of_prompts_that_the_rollout_has_not_asked(tmp_path: Path) -> None:
    found = rollouts(tmp_path)
    names = [p.prompt_id for p in ASKED]
    asked = frozenset(names[:3])

    def others(number: int, place: int, count: int) -> list[str]:
        redraw = Redraw(place, count, asked)
        return [p.prompt_id for p in found._choose_others(number, redraw)]

    drawn = others(0, 1, 2)
    assert len(set(drawn)) == 2 and not asked & set(drawn)
    assert others(0, 1, 2) == drawn
    # Each redraw of each rollout has an order of its own, and no more than there are.
    different = {tuple(others(number, place, 2)) for number in (0, 1) for place in (1, 2)}
    assert len(different) > 1
    assert others(0, 1, 99) == sorted(set(names) - asked)
    found.prompts = ASKED[:3]
    assert others(0, 1, 2) == []


@pytest.mark.parametrize(("resample", "prompts"), [(0, 2), (1, 4), (999, len(ASKED))])
def test_a_forecast_counts_every_redraw(tmp_path: Path, resample: int, prompts: int) -> None:
    """Two rollouts of two prompts, three answers to each, and no more prompts than there are."""
    grpo = GRPO | {"resample": resample, "rewards": [{"judge": "ratio"}]}
    plan, inputs = planned(tmp_path, judges=[IMPLICIT], steps=[{"train": grpo}])
    assert _count_answered_prompts(inputs, plan[0]) == 2 * min(prompts, len(plan[0].prompts))
    words = " ".join(_describe_train(plan[0]))
    assert (f"replaced, {resample} time" in words) == (resample > 0)


def answer(name: str, prompt: Prompt, text: str = "Yes.", **keys: Any) -> Completion:
    turns: Any = [{"role": "assistant", "content": text}]
    how = {"token_ids": [1, 2], "logprobs": [-1.0, -2.0]} | keys
    ending = how.pop("finish_reason", "stop")
    return Completion(name, prompt.prompt_id, 0, turns, "m", "w", {}, ending, **how)


def said(judge: str, subject: str, prompt: Prompt, score: float, **keys: Any) -> Judgement:
    principle = keys.pop("principle", None)
    name = f"{judge}_{subject}_{principle}"
    who: Any = ("completion", [subject], subject, judge, judge, "model", principle, "ok", score)
    return Judgement(f"j_{name}", f"c_{name}", prompt.prompt_id, *who, **keys)


def test_the_values_of_an_answer_stand_at_the_places_of_their_terms(tmp_path: Path) -> None:
    found = rollouts(tmp_path)
    even, odd = ASKED[0], ASKED[1]
    made = {p.prompt_id: [answer(f"a{i}", p)] for i, p in enumerate((even, odd))}
    ratio = {
        p.prompt_id: [
            said("ratio", name, p, score, principle=principle, raw_value=raw)
            for principle, score, raw in rows
        ]
        for name, p, rows in (
            ("a0", even, (("kind", 0.9, 3.0), ("true", 0.4, 0.5))),
            ("a1", odd, (("kind", 0.1, -4.0), ("true", 0.2, -1.5))),
        )
    }
    # Kindness counts three, truth two.
    rank = {
        p.prompt_id: [
            said("rank", name, p, kind, principle="kind"),
            said("rank", name, p, true, principle="true"),
        ]
        for name, p, kind, true in (("a0", even, 1.0, 0.5), ("a1", odd, 0.25, 0.0))
    }
    judged = {"ratio": ratio, "rank": rank}
    values = found.valuation.value([even, odd], judged, range(3), made)
    assert values["a0"].values == pytest.approx((0.7, 0.8, 2.0))
    assert values["a1"].values[0] is None and values["a1"].idle == {0}
    assert values["a1"].values[1:] == pytest.approx((0.15, -3.0))
    # A draw from the start policy has the values of fitted terms alone.
    fitted = found.valuation.value([even, odd], {"ratio": ratio}, found.fitted, made)
    assert {name: own.values for name, own in fitted.items()} == {
        "a0": (None, None, pytest.approx(2.0)),
        "a1": (None, None, pytest.approx(-3.0)),
    }
    watched = {"a0": {"distance/ratio": 1.5}}
    kept = found._make_answer(made[even.prompt_id][0], values, watched)
    assert kept is not None
    assert (kept.ids, kept.logprobs, kept.ended) == ([1, 2], [-1.0, -2.0], True)
    assert (kept.values, kept.watched) == (values["a0"].values, {"distance/ratio": 1.5})
    cut = found._make_answer(answer("a1", odd, finish_reason="length"), values, watched)
    assert cut is not None and (cut.ended, cut.values) == (False, values["a1"].values)
    assert found._make_answer(answer("b", odd, finish_reason="failed"), values, {}) is None


class Writer:
    weights_hash = "w7"


class Encoding:
    """What is asked of an encoding where completions are made."""

    class chat:
        system_prompt = "Own."


def test_a_sampled_answer_is_recorded_with_its_place_and_its_policy(tmp_path: Path) -> None:
    found = rollouts(tmp_path)
    found.encoding = Encoding()  # type: ignore[assignment]
    result = GenerateResult(
        "k", "Yes.", [5, 6], "length", 9, None, [-1.0, -2.0], "rendered", reasoning="Hm."
    )
    row = found._make_completion(result, ASKED[3], 2, (5,), Writer())  # type: ignore[arg-type]
    assert (row.completion_id, row.prompt_id, row.sample_index) == ("k", ASKED[3].prompt_id, 2)
    assert (row.model, row.weights_hash, row.finish_reason) == ("M2, rollout 6", "w7", "length")
    assert (row.token_ids, row.logprobs) == ([5, 6], [-1.0, -2.0])
    assert (row.system_prompt, row.rendered_hash, row.reasoning) == ("Own.", "rendered", "Hm.")
    sampling = found._make_sampling((5,), ASKED[3], 2)
    assert (row.sampling["seed"], row.sampling["temperature"]) == (sampling.seed, 0.7)
    drawn = found._make_completion(result, ASKED[3], 2, (-2,), Writer())  # type: ignore[arg-type]
    assert drawn.model == "M2, start, draw 2"


def test_another_folder_has_the_policys_settings_and_not_its_adapter_or_role() -> None:
    spec = ModelSpec(path="a", role="policy", adapter="of a", dtype="float32", max_context=9)
    assert replace_path(spec, "b") == ModelSpec(path="b", dtype="float32", max_context=9)


def test_a_filter_of_pairs_knows_the_answers_and_the_judgements_below(tmp_path: Path) -> None:
    filters = [{"kind": "duplicates"}]
    steps = [
        {"sample": {"n": 2}},
        {"judge": IMPLICIT},
        {"pair": {"uses": ["ratio"]}},
        {"filter": {"records": "preferences", "filters": filters}},
        {"train": {}},
    ]
    plan = {p.id: p for p in planned(tmp_path, rounds=1, steps=steps)[0]}
    assert plan["filter"].inputs == {
        "preferences/0": plan["pair"].hash,
        "completions/sample": plan["sample"].hash,
        "judgements/ratio": plan["ratio"].hash,
    }


def test_a_judge_on_a_server_is_asked_about_the_prompts_of_its_terms_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = rollouts(tmp_path)
    asked: list[tuple[str, list[str]]] = []

    def note(judge: Any, prompts: list[Prompt], ready: Any) -> None:
        asked.append((judge.id, [p.prompt_id for p in prompts]))

    monkeypatch.setattr(found, "_is_remote", lambda judge: True)
    monkeypatch.setattr(found, "_judge_answers", note)
    # The first three prompts have all of their answers before the others.
    names = [p.prompt_id for p in ASKED]
    ready: Any = [{name: [] for name in own} for own in (names[:3], names[3:])]
    monkeypatch.setattr(found, "_sample_answers", lambda *_: iter(ready))
    wanted = found.valuation.prompts_by_judge(ASKED, [0, 1], costs=True)
    assert found._sample_and_judge((0,), ASKED, None, wanted, None).keys() == set(names)
    assert asked == [
        ("ratio", names[:3:2]),
        ("rank", names[:3]),
        ("ratio", names[4::2]),
        ("rank", names[3:]),
    ]
