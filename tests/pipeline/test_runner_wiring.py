"""What a run says of its steps, stops for and keeps, where several seeds and arms are under way,
and what a train step makes of an outcome."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from pydantic import TypeAdapter

from rlaif.config.filters import FilterStep
from rlaif.config.methods import AnyTrain
from rlaif.config.models import ModelSpec
from rlaif.core.errors import GateStopped
from rlaif.core.progress import QuietProgress
from rlaif.core.records import Completion, RoundRecord, content_hash, make_prompt
from rlaif.core.store import Store
from rlaif.data.sources import PromptSet
from rlaif.engines.base import Model
from rlaif.engines.build import EnginePool
from rlaif.pipeline.experiment import _check_gate, _drop_masters, _Runner, unfinished
from rlaif.pipeline.experiment_file import Experiment
from rlaif.pipeline.plan.base import PlanInputs, Planned
from rlaif.pipeline.steps import train
from rlaif.pipeline.steps.context import StepContext
from rlaif.train.loop import TrainOutcome

ASKED = [make_prompt([{"role": "user", "content": f"Question {i}?"}]) for i in range(2)]
EXPERIMENT: dict[str, Any] = {
    "name": "runner",
    "seeds": [3, 5],
    "models": {"policy": {"path": "policy"}},
    "prompts": {"path": "p.jsonl"},
    "arms": {"one": {"labels": "human"}, "two": {"labels": "random"}},
    "steps": [
        {"load": {"type": "pairs", "path": "pairs.jsonl"}},
        {"label": {}},
        {"train": {}},
        {"evaluate": {}},
    ],
}
SPEC = ModelSpec(path="policy")


def experiment(**keys: Any) -> Experiment:
    return Experiment.model_validate(EXPERIMENT | keys)


def inputs_of(folder: Path) -> PlanInputs:
    place: Any = (folder / "experiment.yaml", {}, None, PromptSet(ASKED, [], 0), {}, {})
    return PlanInputs(experiment(), *place)


class Watched(QuietProgress):
    """Progress that is written down."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def begin_step(self, title: str) -> None:
        self.said.append(title)


def test_a_finished_step_says_whose_it_is_and_what_it_has_read(tmp_path: Path) -> None:
    store = Store(tmp_path / "run")
    store.prepare()
    for number, name in enumerate(("first", "second")):
        turns: Any = [{"role": "assistant", "content": f"Answer {number}."}]
        prompt = ASKED[number].prompt_id
        made = Completion(f"k{number}", prompt, 0, turns, "m", "w", {}, "stop")
        store.step(name).append("completions", [made])
        store.step(name).finish({"counts": {}, "digest": f"of {name}"}, None)
    rule = {"kind": "duplicates", "of": "answers"}
    step = FilterStep.model_validate({"records": "completions", "filters": [rule]})
    sources = {"completions/0": "first", "completions/1": "second"}
    planned = Planned("made", "filter", "kept", 5, 2, step, sources, arms=("two",))
    runner = _Runner(inputs_of(tmp_path), store, {p.prompt_id: p for p in ASKED}, None)
    shown, pool = Watched(), EnginePool(store)
    runner.run([planned], pool, shown)
    pool.close()
    assert shown.said == ["[seed 5, two, round 2] kept"]
    done = store.step("made").done()
    assert done is not None
    read = {"first": "of first", "second": "of second"}
    assert (done["hash"], done["kind"], done["id"]) == ("made", "filter", "kept")
    assert (done["inputs"], done["read"]) == (sources, read)
    assert done["digest"] == content_hash(read)
    assert done["counts"] == {"completions": 2, "refused": 0}
    # For all arms none is named.
    both = Planned("all", "filter", "kept", 3, 1, step, sources, arms=("one", "two"))
    assert runner._make_title(both) == "[seed 3, round 1] kept"


def test_alarms_stop_a_run_for_their_own_seed_arm_and_round_alone() -> None:
    def record(seed: int, arm: str, number: int, severity: str) -> RoundRecord:
        alarm = {"severity": severity, "message": f"alarm of {seed} {arm} {number}"}
        return RoundRecord(arm, seed, number, "M0", "M1", "", {}, {"alarms": [alarm]})

    rounds = [
        record(seed, arm, number, "alarm" if (seed, arm, number) == (5, "two", 1) else "warning")
        for seed in (3, 5)
        for arm in ("one", "two")
        for number in (1, 2)
    ]
    stops = experiment(alarms={"on_alarm": "stop"})

    def check(seed: int, number: int, *arms: str, of: Experiment = stops) -> None:
        _check_gate(of, rounds, Planned("e", "evaluate", "ev", seed, number, None, arms=arms))

    for seed, number, arm in ((3, 1, "two"), (5, 2, "two"), (5, 1, "one")):
        check(seed, number, arm)
    check(5, 1, "two", of=experiment())
    for arms in (("two",), ("one", "two")):
        with pytest.raises(GateStopped, match=r"after round 1 .*\n  alarm of 5 two 1\nEverything"):
            check(5, 1, *arms)


def trained(seed: int, number: int, arm: str, start: Model, kind: str = "train") -> Planned:
    name = f"{kind}{seed}{number}{arm}"
    made = Model(f"train:{name}", f"M{number}", SPEC, name)
    step: Any = TypeAdapter(AnyTrain).validate_python({"method": "sft"})
    models = {"start": start, "made": made}
    return Planned(name, kind, "train", seed, number, step, {}, models, arms=(arm,))


def test_masters_are_kept_of_the_last_training_of_each_seed_and_arm(tmp_path: Path) -> None:
    store, first = Store(tmp_path), Model("weights", "M0", SPEC)
    plan: list[Planned] = []
    for number in (1, 2, 3):
        for seed in (3, 5):
            for arm in ("one", "two"):
                before = next(
                    (
                        p.models["made"]
                        for p in reversed(plan)
                        if (p.seed, p.arms) == (seed, (arm,))
                    ),
                    first,
                )
                plan.append(trained(seed, number, arm, before))

    def kept(given: Experiment, until: int) -> list[str]:
        for planned in plan:
            (store.model_path(planned.hash) / "masters").mkdir(parents=True, exist_ok=True)
        _drop_masters(given, plan, plan[until], store)
        return [p.hash for p in plan if (store.model_path(p.hash) / "masters").is_dir()]

    hashes = [p.hash for p in plan]
    # After round 2 of seed 3: its first arm's round 1 is needed by nobody, the others' by round 2.
    assert kept(experiment(), 4) == [h for h in hashes if h != "train31one"]
    assert kept(experiment(), 5) == [h for h in hashes if h not in ("train31one", "train31two")]
    assert kept(experiment(), 11) == hashes[8:]
    assert kept(experiment(retention={"masters": "all"}), 11) == hashes
    # What starts from masters that were dropped has its start trained again.
    for planned in plan:
        store.step(planned.hash).finish({"counts": {}}, None)
    kept(experiment(), 11)
    assert unfinished(plan, store) == set()
    extra = trained(5, 4, "one", plan[4].models["made"])
    assert unfinished([*plan, extra], store) == {extra.hash, "train32one", "train31one"}


class Engines:
    """Engines that make room, and know where models lie."""

    def __init__(self, root: Path):
        self.root, self.said = root, []  # type: ignore[var-annotated]

    def make_room(self, processes: int = 1) -> None:
        self.said.append("room")

    def folder(self, model: Model) -> str:
        return str(self.root / model.label)


def test_a_train_step_says_what_its_outcome_says_and_of_how_many_pairs(
    tmp_path: Path, make_preferences: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    step: Any = TypeAdapter(AnyTrain).validate_python({"method": "sft"})
    store, engines = Store(tmp_path / "run"), Engines(tmp_path)
    pairs = [replace(p, round=2) for p in make_preferences(3)]
    store.step("p").append("preferences", pairs[:2])
    store.step("q").append("preferences", pairs[2:])
    planned = Planned(
        "made",
        "train",
        "teach",
        7,
        2,
        step,
        {"preferences/0": "p", "preferences/1": "q"},
        {
            "start": Model("k", "M1", ModelSpec(path="policy", device="cpu")),
            "made": Model("m", "M2", SPEC, "made"),
        },
        options={"completions": [], "judgements": []},
    )
    made: Any = (planned, store.step("made"), store, inputs_of(tmp_path), {}, engines)
    run = StepContext(*made, QuietProgress())
    jobs: list[Any] = []

    def work(job: Any) -> TrainOutcome:
        engines.said.append("train")
        jobs.append(job)
        job.out.mkdir(parents=True)
        (job.out / "checksums.json").write_text(json.dumps({}))
        return TrainOutcome(
            6,
            90,
            {"last_loss": 0.25},
            {"overlong": 4, "reasoning_lost": 2},
            1.5,
            "float32",
            {"left_out": ["a kernel"], "attention": "ours"},
            ["warned"],
        )

    monkeypatch.setattr("rlaif.train.run.find_trainer", lambda job: work)
    monkeypatch.setattr(train, "weights_hash", lambda folder: f"hash of {folder.name}")
    monkeypatch.setattr(train, "add_file", lambda *given: engines.said.append(given))
    summary = train.run(run)
    out = store.model_path("made")
    assert engines.said == ["room", "train", (out, "README.md")]
    assert [p.preference_id for p in jobs[0].preferences] == ["r0", "r1", "r2"]
    assert jobs[0].start == tmp_path / "M1"
    counts = {"preferences": 3, "steps": 6, "overlong": 4, "reasoning_lost": 2}
    assert (summary["counts"], summary["tokens"]) == (counts, 90)
    assert summary["summary"] == {"last_loss": 0.25}
    assert summary["kernels"]["attention"] == "ours"
    assert summary["weights_hash"] == "hash of made"
    *notes, lost = summary["notes"]
    assert notes == ["teach: a kernel", "teach: warned"]
    assert lost.startswith("teach: the model is not shown the reasoning in 2 turns")
    assert "# runner: M2 (seed 7)" in (out / "README.md").read_text()
