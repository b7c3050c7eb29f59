"""Judges that are trained: questions, marks, groups of prompts and a bench, in whole runs."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from rlaif.config.prompts import Columns, PromptSetSpec
from rlaif.core.errors import ConfigError
from rlaif.core.records import Completion, Judgement, Prompt, to_json
from rlaif.core.store import Store
from rlaif.data.sources import every_prompt, load_prompts
from rlaif.judges.posed import named_label, said_label
from rlaif.pipeline.experiment import run_experiment
from rlaif.pipeline.forecast import forecast
from rlaif.pipeline.manifest import read_manifest
from rlaif.pipeline.plan.base import group_prompts, round_prompts
from rlaif.pipeline.plan.unroll import make_plan
from rlaif.pipeline.prepare import prepare
from rlaif.pipeline.runs import Run
from rlaif.pipeline.steps.judge import Groups
from rlaif.report.build import build_report

TRAIN = {"learning_rate": 1e-3, "batch_size": 2, "precision": "fp32"}
COMPARE = {"id": "compare", "kind": "pairwise", "by": "policy", "verdict": "written",
           "max_new_tokens": 5}  # fmt: skip
JUDGES = [
    COMPARE,
    {"id": "right", "kind": "verdict", "of": "compare"},
    {"id": "consistent", "kind": "verdict", "of": "compare", "both_orders": True},
    {"id": "points", "kind": "additive", "by": "policy", "samples": 2},
    {"id": "meta", "kind": "judgements", "of": "points", "by": "policy"},
]
STEPS: list[dict[str, Any]] = [
    {"load": {"id": "labelled", "type": "pairs", "path": "labelled.jsonl"}},
    {"questions": {"id": "cases", "judge": "compare", "uses": ["labelled"]}},
    {"sample": {"id": "tries", "n": 2, "prompts": "cases", "max_new_tokens": 5}},
    {"judge": {"id": "right", "uses": ["tries"]}},
    {"train": {"id": "cold", "method": "sft", "uses": ["tries"], **TRAIN}},
    {
        "train": {
            **TRAIN,
            "id": "j1",
            "method": "grpo",
            "prompts": "cases",
            "n": 2,
            "rollouts": 2,
            "sync_every": 2,
            "max_new_tokens": 5,
            "max_length": 2000,
            "rewards": {"consistent": 1},
        }
    },
    {"bench": {"judges": ["compare"], "pairs": "labelled", "by": ["initial", "cold", "j1"]}},
]

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path, small_model: Path) -> Write:
    """`write(KEY=VALUE)`: J1 of the tiny model, beside labelled pairs."""
    pairs = [
        {"prompt": f"Which {n}?", "chosen": f"The {n}th.", "rejected": "No."} for n in range(6)
    ]
    (tmp_path / "labelled.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))

    def write_file(**keys: Any) -> Path:
        whole = {
            "name": "j1",
            "models": {"policy": {"path": str(small_model), "dtype": "float32"}},
            "prompts": {"holdout": 2},
            "judges": JUDGES,
            "steps": STEPS,
        }
        path = tmp_path / "experiment.yaml"
        path.write_text(yaml.safe_dump(whole | keys, sort_keys=False))
        return path

    return write_file


def prompts_of(run: Path) -> dict[str, dict[str, Any]]:
    lines = (run / "prompts.jsonl").read_text().splitlines()
    return {row["prompt_id"]: row for row in map(json.loads, lines)}


def test_j1_leaves_its_trace(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rlaif.train.loop import optimiser_step

    learned: list[list[str]] = []

    def record(task: Any, model: Any, optimizer: Any, batch: Any, *rest: Any) -> Any:
        learned.append([task.examples[i].prompt_id for part in batch for i in part])
        return optimiser_step(task, model, optimizer, batch, *rest)

    monkeypatch.setattr("rlaif.train.on_policy.optimiser_step", record)
    path, run = write(), tmp_path / "run"
    expected = {row.hash: row for row in forecast(prepare(path), Store(tmp_path / "none"))}
    run_experiment(path, run)
    manifest = read_manifest(run)
    steps = {step["id"]: step for step in manifest["steps"]}
    made = [(s["id"], s["models"]["start"][0]) for s in manifest["steps"] if "made" in s["models"]]
    assert made == [("cold", "M0"), ("j1", "cold")]
    assert steps["tries"]["inputs"] == {"questions/cases": steps["cases"]["hash"]}
    assert steps["j1"]["inputs"] == {"questions/cases": steps["cases"]["hash"]}
    store = Store(run)

    def done(name: str) -> dict[str, int]:
        marker = store.step(steps[name]["hash"]).done()
        assert marker is not None
        return dict(marker["counts"])

    # Four pairs of training prompts, in both orders.
    assert done("cases") == {"questions": 8, "groups": 4}
    assert done("cold")["completions"] == done("tries")["completions"] == 16
    for name, count in (
        ("cases", "questions"),
        ("tries", "completions"),
        ("right", "judgements"),
        ("bench", "figures"),
        ("bench.compare.1", "calls"),
    ):
        row = expected[steps[name]["hash"]]
        assert (row.calls if count == "calls" else row.units) == done(name)[count], name
    # Rollouts and optimiser steps have whole groups.
    groups = {name: row.get("group") for name, row in prompts_of(run).items()}
    rollouts: dict[str, set[str]] = defaultdict(set)
    for completion in store.step(steps["j1"]["hash"]).records(Completion):
        rollouts[completion.model].add(completion.prompt_id)
    assert len(rollouts) == 2
    for drawn in rollouts.values():
        assert set(Counter(groups[name] for name in drawn).values()) == {2} and len(drawn) == 4
    assert len(learned) == 4 and all(len({groups[name] for name in own}) == 1 for own in learned)
    # What the program said can be made again from the records.
    answers = {c.completion_id: c for c in store.step(steps["tries"]["hash"]).records(Completion)}
    marks = list(store.step(steps["right"]["hash"]).records(Judgement))
    assert len(marks) == 16 and {m.annotator_kind for m in marks} == {"rule"}
    every = Run(run).prompt_records()
    judge = prepare(path).judges["compare"]
    for mark in marks:
        prompt, answer = every[mark.prompt_id], answers[mark.subject]
        right = said_label(judge, prompt, answer) == named_label(judge, prompt.reference)
        assert mark.score == float(right)
    (result,) = store.step(steps["bench"]["hash"]).read("bench")
    assert result["pairs"]["n"] == 2 and list(result["judges"]) == [
        *("compare/0", "compare/1", "compare/2")
    ]
    by = [label for label, _ in steps["bench"]["models"].values()]
    assert by == ["M0", "cold", "j1"]
    page = build_report(Run(run).view(), tmp_path / "report.html").read_text()
    assert "Judges on labelled pairs" in page and "<td>cold</td>" in page


def plan_of(path: Path) -> Any:
    return make_plan(prepare(path, fetch=False))


def changed(name: str, **keys: Any) -> list[dict[str, Any]]:
    """The steps, with other keys of one of them; without it where there are none."""
    found = []
    for entry in STEPS:
        ((kind, spec),) = entry.items()
        mine = spec.get("id", kind) == name
        if not mine or keys:
            found.append({kind: spec | (keys if mine else {})})
    return found


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        (changed("j1", batch_size=3, sync_every=1), "take a multiple of 2"),
        (changed("cases", orders="random"), "4 of 4 training prompts stand alone"),
        (changed("cases", judge="compere"), "'compere' is no judge of this file"),
        (changed("cases", uses=["tries"]), "'tries' names no earlier pair, filter or judge"),
        ([{"questions": {"judge": "compare"}}, *STEPS], "no labelled pairs are loaded before it"),
        (changed("bench", judges=["right"]), "measure the judge that it is of"),
        (changed("bench", judges=["who"]), "'who' is no judge"),
        (changed("bench", judges=["meta"]), "'meta' compares judgements"),
        (changed("bench", pairs="cases"), "'cases' is no load of labelled pairs"),
        (changed("bench", by=["later"]), "'later' is no model"),
        (changed("bench", by=["cold", "cold"]), "'cold' is named twice"),
        (
            [*STEPS, {"evaluate": {"judges": ["right"]}}],
            "measured by a `bench` step",
        ),
    ],
    ids=lambda value: None if isinstance(value, list) else value.split()[0].strip("'"),
)
def test_what_cannot_be_trained_or_measured_is_refused(
    write: Write, steps: list[dict[str, Any]], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        plan_of(write(steps=steps))


def test_a_judge_that_reads_labels_asks_no_questions(write: Write) -> None:
    judges = [COMPARE | {"verdict": "labels", "max_new_tokens": 256}]
    with pytest.raises(ConfigError, match="set `verdict: written`"):
        plan_of(write(judges=judges, steps=STEPS[:2]))


def test_an_arm_asks_the_questions_of_its_own_judge(write: Write) -> None:
    arms = {"plain": {}, "long": {"set": {"judges.compare.preamble": "detailed"}}}
    # Without the bench, which measures all arms by one judge.
    inputs = prepare(write(arms=arms, steps=STEPS[:-1]), fetch=False)
    own, other = (
        {p.prompt_id for p in i.sets["cases"].train} for i in (inputs, inputs.arms["long"])
    )
    assert len(own) == len(other) == 8 and not own & other
    drawn = {p.arms: set(p.prompts) for p in make_plan(inputs) if p.id == "tries"}
    assert drawn == {("plain",): own, ("long",): other}
    # A run finds the prompts of both.
    assert own | other <= inputs.prompts_by_id.keys()
    with pytest.raises(ConfigError, match="measures all arms"):
        plan_of(write(arms=arms))


def test_a_bench_counts_a_model_once(write: Write) -> None:
    plan = plan_of(write(steps=changed("bench", by=["initial", "cold", "j1", "policy", "current"])))
    assert [p.id for p in plan if p.id.startswith("bench.compare")] == [
        *("bench.compare.0", "bench.compare.1", "bench.compare.2")
    ]


def test_a_renamed_training_changes_no_bench(write: Write) -> None:
    def bench(path: Path) -> str:
        return next(p.hash for p in plan_of(path) if p.kind == "bench")

    renamed = json.loads(json.dumps(STEPS).replace('"cold"', '"start"'))
    assert bench(write()) == bench(write(steps=renamed))
    assert bench(write()) != bench(write(steps=changed("cold", learning_rate=1e-4)))


def test_scores_of_a_pair_are_trained_together(write: Write) -> None:
    judges = [
        {"id": "score", "kind": "rating", "by": "policy"},
        {"id": "right", "kind": "verdict", "of": "score"},
    ]
    grpo = STEPS[5]["train"] | {"rewards": {"right": 1}}
    steps = [STEPS[0], {"questions": {"id": "cases", "judge": "score"}}, {"train": grpo}]
    inputs = prepare(write(judges=judges, steps=steps), fetch=False)
    (train,) = [p for p in make_plan(inputs) if p.kind == "train"]
    assert len(train.prompts) == 8
    odd = [*steps[:2], {"train": grpo | {"batch_size": 1}}]
    with pytest.raises(ConfigError, match="take a multiple of 2"):
        plan_of(write(judges=judges, steps=odd))


def test_a_window_has_whole_groups(write: Write) -> None:
    drawn = changed("tries", prompts={"set": "cases", "count": 3})
    inputs = prepare(write(steps=drawn), fetch=False)
    groups = {p.prompt_id: p.group for p in inputs.sets["cases"].train}
    (tries,) = [p for p in make_plan(inputs) if p.id == "tries"]
    counts = Counter(groups[name] for name in tries.prompts)
    assert set(counts.values()) == {2} and len(counts) in (1, 2)


def test_groups_are_judged_once_they_are_whole(tmp_path: Path) -> None:
    """While a sampler writes, a prompt waits for the others of its group."""
    prompts = [Prompt(f"p{n}", [], group=f"g{n // 2}") for n in range(4)]
    store = Store(tmp_path)
    folder = store.step("samples")

    def sample(*names: str) -> None:
        made = [Completion(f"k{n}", n, 0, [], "m", "", {}, "stop") for n in names]
        folder.append("completions", made)

    names = tuple(p.prompt_id for p in prompts)
    planned = SimpleNamespace(compares_judgements=False, prompts=names)
    sampling = SimpleNamespace(prompts=planned.prompts, step=SimpleNamespace(n=1))
    waits: list[tuple[str, ...]] = [("p3", "p1"), ("p2",)]

    def wait() -> None:
        if waits:
            sample(*waits.pop(0))
        else:
            folder.finish({})

    context = SimpleNamespace(
        planned=planned,
        prompts={p.prompt_id: p for p in prompts},
        store=store,
        inputs_under=lambda prefix: ["samples"],
        live_samples=SimpleNamespace(steps={"samples": sampling}, wait=wait),
        refuse_strangers=lambda names: None,
    )
    sample("p0")
    groups = Groups(context)  # type: ignore[arg-type]
    assert [list(wave) for wave in groups.waves()] == [["p0", "p1"], ["p2", "p3"]]
    ((beside, answers),) = groups.read_beside("p3")
    assert beside.prompt_id == "p2" and [a.completion_id for a in answers] == ["kp2"]


@given(
    sizes=st.lists(st.integers(1, 3), min_size=1, max_size=9),
    count=st.integers(1, 12),
    first=st.integers(0, 30),
)
def test_windows_part_no_group_and_leave_none_out(sizes: list[int], count: int, first: int) -> None:
    prompts = [
        Prompt(f"p{place}{n}", [], group=f"g{place}" if size > 1 else None)
        for place, size in enumerate(sizes)
        for n in range(size)
    ]
    whole = {frozenset(unit) for unit in group_prompts(prompts)}
    seen: set[str] = set()
    for number in range(1, len(prompts) + 1):
        window = set(round_prompts(prompts, count, 5, number, first))
        assert window and all(unit <= window or not unit & window for unit in whole)
        assert len(window) <= max(count, 3) + 2
        seen |= window
    assert seen == {p.prompt_id for p in prompts}


def test_prompts_of_a_file_may_stand_in_groups(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    rows_of = [{"prompt": f"Q{n}?", "reference": "1", "of": f"g{n // 2}"} for n in range(4)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows_of))
    spec = PromptSetSpec(path=str(path), columns=Columns(group="of"))
    assert sorted(p.group or "" for p in load_prompts(spec).train) == ["g0", "g0", "g1", "g1"]
    # Prompts that a run has written have it by themselves; of others `group` may be anything.
    made = [to_json(p) for p in load_prompts(spec).train]
    path.write_text("".join(json.dumps(row) + "\n" for row in made))
    assert all(p.group for p in every_prompt(path))
    path.write_text(json.dumps({"prompt": "Q?", "group": 7}))
    (plain,) = every_prompt(path)
    assert plain.group is None and "group" not in to_json(plain)
