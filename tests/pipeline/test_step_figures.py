"""What evaluations, comparisons and trainings read of their inputs: records are planted so that
each input, weight and side has a figure of its own, worked out by hand."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from pydantic import TypeAdapter

from rlaif.config.methods import AnyDistill, AnyTrain
from rlaif.config.models import ModelSpec
from rlaif.config.steps import EvaluateStep
from rlaif.constitution.model import Constitution
from rlaif.core.progress import QuietProgress
from rlaif.core.records import Completion, Judgement, Preference, content_hash, make_prompt
from rlaif.core.store import Store
from rlaif.data.sources import PromptSet
from rlaif.engines.base import Model
from rlaif.pipeline.experiment_file import Experiment
from rlaif.pipeline.plan.base import PlanInputs, Planned
from rlaif.pipeline.steps import compare, evaluate, train
from rlaif.pipeline.steps.context import StepContext
from rlaif.pipeline.steps.model_card import model_card
from rlaif.train.loop import TrainProgress

HELD, OTHER, FIRST, SECOND = (
    make_prompt([{"role": "user", "content": f"Question {i}?"}]) for i in range(4)
)
WEIGHTS = {"kind": 3.0, "true": 1.0}
EXPERIMENT: dict[str, Any] = {
    "name": "figures",
    "models": {"policy": {"path": "policy"}},
    "prompts": {"path": "p.jsonl"},
    "arms": {"one": {"labels": "human"}, "two": {"labels": "random"}},
    "steps": [
        {"load": {"type": "pairs", "path": "pairs.jsonl"}},
        {"label": {}},
        {"train": {"trackers": ["trackio"]}},
        {"evaluate": {"id": "ev"}},
    ],
}


def answer(name: str, prompt: Any, words: int = 1, **keys: Any) -> Completion:
    turns: Any = [{"role": "assistant", "content": " ".join([name] * words)}]
    how = {"finish_reason": "stop", "token_ids": [1, 2], "digest": name} | keys
    return Completion(name, prompt.prompt_id, 0, turns, "m", "w", {}, **how)


def scored(judge: str, subject: str, prompt: Any, by_whom: str = "model", **by: float) -> list[Any]:
    """Scores by principle."""
    made = []
    for principle, score in by.items():
        name = f"{judge}_{subject}_{principle}"
        who: Any = ("completion", [subject], subject, judge, judge, by_whom, principle, "ok")
        made.append(Judgement(f"j_{name}", f"c_{name}", prompt.prompt_id, *who, score))
    return made


def compared(judge: str, first: str, second: str, prompt: Any, prob: float) -> Judgement:
    name = f"{judge}_{first}_{second}"
    who: Any = ("completion", [first, second], first, judge, judge, "human", None, "ok")
    key: Any = f"j_{name}", f"c_{name}", prompt.prompt_id
    return Judgement(*key, *who, prob_first=prob)


def preference(chosen: str, rejected: str, prompt: Any, **keys: Any) -> Preference:
    side = lambda name: [{"role": "assistant", "content": name}]  # noqa: E731
    made: dict[str, Any] = {
        "preference_id": f"f_{min(chosen, rejected)}_{max(chosen, rejected)}",
        "prompt_id": prompt.prompt_id,
        "round": 2,
        "prompt": prompt.messages,
        "chosen": side(chosen),
        "rejected": side(rejected),
        "score_chosen": None,
        "score_rejected": None,
        "margin": 0.25,
        "prob": 1.0,
        "weight": 1.0,
        "reason": "",
        "source": "human",
        "judgement_ids": [],
        "chosen_id": chosen,
        "rejected_id": rejected,
    }
    return Preference(**made | keys)


def logprob(name: str, value: float, tokens: int = 2) -> dict[str, Any]:
    return {"completion_id": name, "logprob": value, "tokens": tokens}


def context(
    folder: Path,
    planned: Planned,
    records: Mapping[str, Mapping[str, Sequence[Any]]],
    engines: Any = None,
) -> StepContext:
    """A step whose inputs hold these records by file; each input has its name as its hash."""
    store = Store(folder)
    for name, files in records.items():
        for file, rows in files.items():
            store.step(planned.inputs.get(name, name)).append(file, rows)
    experiment = Experiment.model_validate(EXPERIMENT)
    rules: Any = {"name": "rules", "version": "1", "principles": [{"id": "kind", "text": "Kind."}]}
    inputs = PlanInputs(
        experiment,
        folder / "experiment.yaml",
        {},
        Constitution.model_validate(rules),
        PromptSet([FIRST, SECOND], [HELD, OTHER], 0),
        {},
        {"policy": "weights"},
    )
    prompts = {p.prompt_id: p for p in (HELD, OTHER, FIRST, SECOND)}
    made: Any = (planned, store.step(planned.hash), store, inputs, prompts, engines)
    return StepContext(*made, QuietProgress())


def named(names: Sequence[str]) -> dict[str, str]:
    return {name: name.replace("/", "-") for name in names}


def means(found: Mapping[str, Any], *names: str) -> list[float]:
    return [found[name]["mean"] for name in names]


def test_an_evaluation_weighs_principles_and_takes_each_figure_from_its_own_input(
    tmp_path: Path,
) -> None:
    records: dict[str, dict[str, Sequence[Any]]] = {
        "completions": {"completions": [answer("n", HELD, 5, logprobs=[-1.0, -2.0])]},
        "judgements/j": {"judgements": scored("j", "n", HELD, kind=0.8, true=0.4)},
        "logprobs": {"logprobs": [logprob("n", -8.0)]},
        "initial/completions": {"completions": [answer("o", HELD, 2, logprobs=[-1.0, -1.0])]},
        "initial/judgements/j": {"judgements": scored("j", "o", HELD, kind=0.2, true=0.6)},
        "initial/logprobs": {"logprobs": [logprob("o", -2.0)]},
        "drift/j": {"judgements": scored("j", "o", HELD, kind=0.6, true=0.2)},
        "train/completions/s": {
            "completions": [answer(n, p) for n, p in (("a", FIRST), ("b", FIRST), ("c", SECOND))]
        },
        "train/judgements/j": {
            "judgements": scored("j", "a", FIRST, kind=0.9, true=0.1)
            + scored("j", "b", FIRST, kind=0.1, true=0.9)
            + scored("j", "c", SECOND, kind=0.5, true=0.1)
        },
        "train/judgements/r": {
            "judgements": scored("r", "a", FIRST, "rule", length=0.25)
            + scored("r", "b", FIRST, "rule", length=0.75)
        },
        "train/preferences/p": {"preferences": [preference("a a a", "b", FIRST)]},
        "pairs/l": {
            "pairs": [{"pair_id": "l", "prompt_id": HELD.prompt_id, "first": "x", "second": "y"}],
            "judgements": [compared("human", "x", "y", HELD, 1.0)],
        },
        # Weighed alike, x would be better.
        "pair_judgements/j": {
            "judgements": scored("j", "x", HELD, kind=0.2, true=0.9)
            + scored("j", "y", HELD, kind=0.5, true=0.4)
        },
        # x has become likelier by 3 nats, and is the less likely one all the same.
        "pair_logprobs": {"logprobs": [logprob("x", -2.0), logprob("y", -1.0)]},
        "pair_logprobs_initial": {"logprobs": [logprob("x", -5.0), logprob("y", -1.0)]},
    }
    check = {"id": "short", "rule": "word_limits", "params": {"min": 1, "max": 4}}
    step = EvaluateStep.model_validate({"id": "ev", "checks": [check]})
    model = Model("k", "M2", ModelSpec(path="policy"))
    planned = Planned(
        "h",
        "evaluate",
        "ev",
        7,
        2,
        step,
        named([*records]),
        {"policy": model, "initial": model},
        (HELD.prompt_id, OTHER.prompt_id),
        {"principle_weights": WEIGHTS},
    )
    run = context(tmp_path, planned, records)
    row = evaluate._evaluate_round(run)
    found, moved = row["metrics"], row["deltas"]["initial"]
    names = "score/j", "score/j/kind", "drift/j", "length/words", "check/short"
    assert means(found, *names) == pytest.approx([0.7, 0.8, 0.2, 5.0, 0.75])
    assert means(moved, "score/j", "length/words") == pytest.approx([0.4, 3.0])
    # -3 nats by itself and -8 under M0, over two tokens.
    names = "kl/initial", "kl_per_token/initial", "loglik/initial", "entropy"
    assert means(found, *names) == pytest.approx([5.0, 2.5, -4.0, 1.5])
    assert means(moved, "kl/initial") == pytest.approx([5.0])
    # The judge finds y better where kindness counts three times.
    assert means(found, "reward_accuracy/human", "reward_accuracy/j") == [1.0, 0.0]
    # 0.7 and 0.3 of the first prompt, 0.4 of the second.
    names = "samples/score/j", "samples/spread/j", "samples/score/r", "samples/spread/r"
    assert means(found, *names) == pytest.approx([0.45, 0.2, 0.5, 0.25])
    # The program ranks the two answers the other way round.
    names = "judge_corr/j", "samples/zero_variance", "pairs/unpaired_prompts"
    assert means(found, *names) == pytest.approx([-1.0, 0.0, 0.5])
    assert means(found, "pairs/margin", "pairs/length_gap") == [0.25, 2.0]
    assert "judge_corr/r" not in found
    assert row["made_of"]["j"]["change"] == pytest.approx(0.4)
    assert row["made_of"]["j"]["parts"] == pytest.approx({"kind": 0.45, "true": -0.05})
    values = {r["metric"]: r["values"] for r in run.folder.rows("values")}
    assert values["score/j"] == {HELD.prompt_id: pytest.approx(0.7)}


def test_each_arm_has_a_line_in_each_tracker_that_says_whose_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[Any] = []
    module = ModuleType("trackio")
    vars(module).update(
        init=lambda **keys: said.append(keys),
        log=lambda numbers, step: said.append((step, dict(numbers))),
        finish=lambda: None,
    )
    monkeypatch.setitem(sys.modules, "trackio", module)
    step = EvaluateStep.model_validate({"id": "ev", "n": 3})
    records: Any = {
        "completions": {"completions": [answer("n", HELD, 5)]},
        "initial/completions": {"completions": [answer("o", HELD, 2)]},
    }
    planned = Planned(
        "h",
        "evaluate",
        "ev",
        7,
        2,
        step,
        named([*records]),
        prompts=(HELD.prompt_id,),
        options={"principle_weights": WEIGHTS},
        arms=("one", "two"),
    )
    assert evaluate.run(context(tmp_path, planned, records))["counts"]["prompts"] == 1
    root = content_hash(str(tmp_path.resolve()), length=8)
    begun = [row for row in said if isinstance(row, dict)]
    names = [f"ev-seed7-{arm}-{root}" for arm in ("one", "two")]
    assert [row["name"] for row in begun] == names
    assert [row["project"] for row in begun] == ["figures", "figures"]
    configs = [row["config"] for row in begun]
    about = ("step", "seed", "arm", "n")
    assert [[c[key] for key in about] for c in configs] == [["ev", 7, a, 3] for a in ("one", "two")]
    assert sorted(f.name for f in (tmp_path / "evaluations").iterdir()) == names
    logged = [row for row in said if isinstance(row, tuple)]
    assert [number for number, _ in logged] == [2, 2]
    for _, figures in logged:
        assert (figures["length/words"], figures["minus_initial/length/words"]) == (5.0, 3.0)


def test_a_comparison_takes_the_second_arm_less_the_first_and_each_ones_labels(
    tmp_path: Path,
) -> None:
    """Three arms: their answers have 2, 9 and 4 words, and b agrees with c alone."""
    words, flipped = {"b": 2, "a": 9, "c": 4}, {"b": False, "a": True, "c": False}
    records: dict[str, dict[str, Sequence[Any]]] = {}
    for arm in words:
        made = answer(f"of_{arm}", HELD, words[arm])
        records[f"arms/{arm}/completions"] = {"completions": [made]}
        score = {"kind": words[arm] / 10, "true": 0.0}
        of_judge = scored("j", f"of_{arm}", HELD, "model", **score)
        records[f"arms/{arm}/judgements/j"] = {"judgements": of_judge}
        sides = ("y", "x") if flipped[arm] else ("x", "y")
        records[f"labels/{arm}"] = {
            "preferences": [preference(*sides, FIRST), preference("u", "v", SECOND)]
        }
    planned = Planned(
        "h",
        "compare",
        "ev.arms",
        7,
        2,
        EvaluateStep(),
        named([*records]),
        prompts=(HELD.prompt_id,),
        options={"principle_weights": WEIGHTS, "arms": [*words]},
    )
    run = context(tmp_path, planned, records)
    assert compare.run(run) == {"counts": {"arms": 3, "pairs": 2}}
    (row,) = run.folder.read("comparison")
    assert row["arms"] == ["b", "a", "c"]
    gaps = {name: means(d, "length/words", "score/j") for name, d in row["deltas"].items()}
    # Kindness counts for three quarters of the score.
    assert gaps == {
        "b/a": pytest.approx([7.0, 0.525]),
        "b/c": pytest.approx([2.0, 0.15]),
        "a/c": pytest.approx([-5.0, -0.375]),
    }
    agreed = {name: found["agreement"]["mean"] for name, found in row["labels"].items()}
    assert agreed == {"b/a": 0.5, "b/c": 1.0, "a/c": 0.5}


class Folders:
    """Engines that know where models lie, and load none."""

    def __init__(self, root: Path):
        self.root = root

    def folder(self, model: Model) -> str:
        return str(self.root / model.label)


SPEC = ModelSpec(
    path="hub/start",
    device="cpu",
    system_prompt="Own.",
    system_role="merge",
    chat_template_kwargs={"enable_thinking": False},
)
START, REFERENCE = Model("k1", "M1", SPEC, "t1"), Model("k0", "M0", ModelSpec(path="hub/other"))


def planned_training(step: Any, kind: str = "train", **models: Model) -> Planned:
    return Planned(
        "d" * 24,
        kind,
        "teach",
        7,
        2,
        step,
        {"preferences/0": "p"},
        {"start": START, "made": Model("k2", "M2", SPEC, "d" * 24), **models},
        options={"completions": ["c1", "c2"], "judgements": ["j1", "j2"]},
    )


GIVEN: dict[str, dict[str, Sequence[Any]]] = {
    "c1": {"completions": [answer("a", FIRST, token_ids=[5]), answer("b", FIRST, token_ids=None)]},
    "c2": {"completions": [answer("c", SECOND, token_ids=[6, 7])]},
    "j1": {"judgements": scored("j", "a", FIRST, kind=0.5)},
    "j2": {"judgements": scored("k", "c", SECOND, "rule", true=0.25)},
}


def test_a_training_gets_what_its_step_and_its_models_say(tmp_path: Path) -> None:
    step: Any = TypeAdapter(AnyTrain).validate_python({"method": "dpo", "beta": 0.3})
    pairs = [preference("a", "b", FIRST)]
    seen: list[TrainProgress] = []
    planned = planned_training(step, reference=REFERENCE)
    run = context(tmp_path, planned, GIVEN, Folders(tmp_path / "at"))
    job = train._make_job(run, pairs, seen.append)
    assert (job.options, job.preferences, job.seed) == (step, pairs, 7)
    assert (job.start, job.reference) == (tmp_path / "at/M1", tmp_path / "at/M0")
    assert (job.out, job.work) == (run.store.model_path("d" * 24), run.folder.path / "work")
    assert job.token_ids == {"a": [5], "c": [6, 7]}
    assert job.judgements == []
    assert job.fingerprint == "d" * 24 and job.device.type == "cpu"
    chat = job.chat
    assert (chat.system_prompt, chat.system_role) == ("Own.", "merge")
    assert chat.template_kwargs == {"enable_thinking": False}
    assert (job.progress, job.member, job.collect) == (seen.append, False, None)
    # The start is no second model, and a method that looks at ratings gets them.
    same = context(
        tmp_path / "b", planned_training(step, reference=START), GIVEN, Folders(tmp_path)
    )
    assert train._make_job(same, pairs, seen.append).reference is None
    rated: Any = TypeAdapter(AnyDistill).validate_python(
        {"id": "rm", "method": "multi_objective", "objectives": ["kind"]}
    )
    fit = context(tmp_path / "c", planned_training(rated, "distill"), GIVEN, Folders(tmp_path))
    judged = train._make_job(fit, pairs, seen.append).judgements
    assert [(j.judge, j.subject, j.score) for j in judged] == [("j", "a", 0.5), ("k", "c", 0.25)]


def test_trackers_and_the_card_say_what_a_training_went_from(tmp_path: Path) -> None:
    step: Any = TypeAdapter(AnyTrain).validate_python(
        {"method": "ipo", "beta": 0.3, "from": "previous", "reference": "initial"}
    )
    run = context(tmp_path, planned_training(step, reference=REFERENCE), GIVEN)
    told = train._describe_training(run, 5)
    assert (told.project, told.folder) == ("figures", run.folder.path)
    assert told.name == "teach-seed7-round2-dddddddd"
    about: dict[str, Any] = {
        "step": "teach",
        "seed": 7,
        "round": 2,
        "model": "hub/start",
        "start": "M1",
        "reference": "M0",
        "preferences": 5,
        "hash": "d" * 24,
        "beta": 0.3,
        "from": "previous",
    }
    assert {key: told.parameters[key] for key in about} == about
    pairs = [preference("a", "b", FIRST, source="human"), preference("c", "d", SECOND, source="ai")]
    card = model_card(run, pairs)
    for line in (
        "pipeline_tag: text-generation",
        "tags: [rlaif, ipo]",
        "# figures: M2 (seed 7)",
        "Trained by `rlaif` in round 2 with IPO on 2 preferences: 1 ai, 1 human.",
        "| base model | hub/start |",
        "| started from | M1 (`k1`) |",
        "| reference | M0 |",
        "| constitution | rules |",
        f"| train step | `{'d' * 24}` |",
        ' "from": "previous",',
    ):
        assert line in card.splitlines(), line
    # By whom the judges' pairs were chosen is what their judgements say.
    chosen = model_card(run, [preference("a", "b", FIRST, source="rlaif")])
    assert "on 1 preference: 1 model and rule." in chosen
