"""`until`: when a stage stops, which round it keeps, and that rounds not needed never run."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from rlaif.cli import cli
from rlaif.core.errors import ConfigError
from rlaif.core.records import Judgement
from rlaif.core.store import StepFolder, Store
from rlaif.pipeline import experiment
from rlaif.pipeline.experiment import find_stopped, run_experiment
from rlaif.pipeline.manifest import read_manifest, read_rounds
from rlaif.pipeline.plan.base import Planned
from rlaif.pipeline.plan.unroll import make_plan
from rlaif.pipeline.prepare import prepare
from rlaif.pipeline.runs import Run
from rlaif.pipeline.steps import choose
from rlaif.pipeline.steps.choose import best_round, has_stopped

SAMPLE = {"n": 5, "prompts": 3, "max_new_tokens": 20}
TRAIN = {"learning_rate": 1e-6, "batch_size": 2, "precision": "fp32"}
LOOP: dict[str, Any] = {
    "id": "loop",
    "rounds": 4,
    "until": {"by": "gold", "stops_rising": 1},
    "steps": [
        {"sample": SAMPLE},
        {"judge": "gold"},
        {"pair": {"strategy": "all"}},
        {"train": {"id": "dpo", **TRAIN}},
        {"evaluate": {"judges": ["gold"], "max_new_tokens": 5}},
    ],
}
LAST = {
    "id": "last",
    "steps": [
        {"train": {"id": "late", "method": "sft", "uses": ["pair@*"], **TRAIN}},
        {"evaluate": {"judges": ["gold"], "max_new_tokens": 5}},
    ],
}
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path, tiny_model: Path) -> Write:
    """`write(KEY=VALUE)`: the two stages above with other keys, beside their prompts."""
    lines = "".join(f'{{"prompt": "Question number {n}?"}}\n' for n in range(14))
    (tmp_path / "prompts.jsonl").write_text(lines)

    def write_file(**keys: Any) -> Path:
        whole: dict[str, Any] = {
            "name": "until",
            "models": {"policy": {"path": str(tiny_model), "dtype": "float32"}},
            "constitution": "constitutions/concise_helper.yaml",
            "prompts": {"path": "prompts.jsonl", "holdout": 2, "validation": 3},
            "judges": [{"id": "gold", "kind": "rules"}],
            "stages": [LOOP, LAST],
        }
        path = tmp_path / "experiment.yaml"
        path.write_text(yaml.safe_dump(whole | keys, sort_keys=False))
        return path

    return write_file


def test_the_best_round_is_the_first_of_the_highest() -> None:
    assert best_round({1: 0.2, 2: 0.5, 3: 0.5}) == 2
    assert best_round({1: None, 2: 0.1}) == 2
    assert best_round({1: None}) is None and best_round({}) is None


@given(st.lists(st.one_of(st.none(), st.floats(0, 1)), min_size=1, max_size=8), st.integers(1, 3))
def test_a_stage_stops_once_no_new_best_came_for_some_rounds(
    means: list[float | None], patience: int
) -> None:
    known = dict(enumerate(means, 1))
    recent = [mean for mean in means[-patience:] if mean is not None]
    before = [mean for mean in means[:-patience] if mean is not None]
    risen = bool(recent) and (not before or max(recent) > max(before))
    assert has_stopped(known, patience) == (len(means) >= patience and not risen)


def test_the_mean_is_over_prompts_and_of_what_has_a_value(tmp_path: Path) -> None:
    def judgement(prompt: str, subject: str, score: float | None) -> Judgement:
        return Judgement(
            judgement_id=f"{prompt}{subject}",
            call_id=f"{prompt}{subject}",
            prompt_id=prompt,
            subject_kind="completion",
            shown=[subject],
            subject=subject,
            judge="gold",
            annotator_id="program:gold",
            annotator_kind="rule",
            principle=None,
            status="ok" if score is not None else "unparsed",
            score=score,
        )

    rows = [
        judgement("p1", "a", 0.2), judgement("p1", "b", 0.4), judgement("p2", "c", 0.9),
        judgement("p3", "d", None),
    ]  # fmt: skip
    step = Planned(
        "h", "choose", "x", 0, 1, choose.Until(by="gold"), options={"principle_weights": {}}
    )

    def mean_of(given: list[Judgement]) -> float | None:
        folder = StepFolder(tmp_path / str(len(given)))
        folder.path.mkdir()
        folder.append("judgements", given)
        return choose._mean_of(step, folder)

    assert mean_of(rows) == pytest.approx((0.3 + 0.9) / 2)
    assert mean_of(rows[3:]) is None


def choice_of(path: Path) -> Planned:
    (found,) = [p for p in make_plan(prepare(path)) if p.kind == "choose"]
    return found


def script_means(monkeypatch: pytest.MonkeyPatch, means: Mapping[str, float]) -> None:
    """Verdicts have these means, by the hash of their step; all that follows of them is real."""
    monkeypatch.setattr(choose, "_mean_of", lambda planned, folder: means[folder.path.name])


def test_rounds_that_are_not_needed_never_run(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out = write(), tmp_path / "run"
    choice = choice_of(path)
    wanted = {choice.inputs[f"round/{n}"]: mean for n, mean in enumerate([0.2, 0.6, 0.5, 0.9], 1)}

    script_means(monkeypatch, wanted)
    result = run_experiment(path, out)
    steps = read_manifest(out)["steps"]
    state = {}
    for planned, row in zip(steps, Run(out).status()["steps"], strict=True):
        state[planned["id"], planned["number"]] = row["state"]
        assert (out / "steps" / planned["hash"]).exists() == (row["state"] == "done")
    # Round 3 did not rise above round 2.
    assert state["dpo", 3] == "done" and state["dpo", 4] == "stopped"
    assert {number for (_, number), said in state.items() if said == "stopped"} == {4}
    made = {(s["id"], s["number"]): s["hash"] for s in steps if "made" in s["models"]}
    best, chosen = out / "models" / made["dpo", 2], out / "models" / choice.hash
    assert (best / "model.safetensors").read_bytes() == (chosen / "model.safetensors").read_bytes()
    late = next(s for s in steps if s["id"] == "late")
    assert late["models"]["start"][0] == "loop-best"
    assert read_rounds(out)[-1].policy_in == "loop-best"
    rounds = [(r.stage, r.number, r.policy_out) for r in read_rounds(out)]
    assert rounds[-4:] == [
        ("loop", 1, "dpo@1"), ("loop", 2, "dpo@2"), ("loop", 3, "dpo@3"), ("last", 1, "late")
    ]  # fmt: skip
    stopped = sum(said == "stopped" for said in state.values())
    assert (result.ran, result.reused) == (len(steps) - stopped, 0)
    again = run_experiment(path, out)
    assert (again.ran, again.reused) == (0, len(steps) - stopped)
    told = json.loads(CliRunner().invoke(cli, ["status", str(out), "--json"]).stdout)
    assert (told["state"], told["steps_total"]) == ("done", len(steps) - stopped)


def test_a_stage_that_rises_to_the_end_keeps_its_last_round(write: Write, tmp_path: Path) -> None:
    stage = {**LOOP, "rounds": 2, "until": {"by": "gold", "stops_rising": 2}}
    path, out = write(stages=[stage]), tmp_path / "run"
    choice = choice_of(path)
    run_experiment(path, out)
    done = Run(out).store.step(choice.hash).done() or {}
    means = [done["summary"][f"mean_of_round_{n}"] for n in (1, 2)]
    assert done["counts"] == {"rounds": 2, "best_round": 1 + (means[1] > means[0])}
    # What is judged are the validation prompts, which nothing else sees.
    plan = make_plan(prepare(path))
    validation = {p.prompt_id for p in prepare(path).prompts.validation}
    seen = {p.id for p in plan if set(p.prompts) & validation}
    assert seen == {"loop-best.sample", "loop-best.gold"} and len(validation) == 3


def test_arms_are_compared_in_the_rounds_that_all_have(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arms = {"a": {}, "b": {"set": {"steps.dpo.beta": 0.5}}}
    path, out = write(stages=[{**LOOP, "rounds": 3}], arms=arms), tmp_path / "run"
    choices = [p for p in make_plan(prepare(path)) if p.kind == "choose"]
    scripts = {"a": [0.5, 0.4, 0.9], "b": [0.1, 0.2, 0.3]}
    means_of = {
        choice.inputs[f"round/{n}"]: mean
        for choice in choices
        for n, mean in enumerate(scripts[choice.arms[0]], 1)
    }

    script_means(monkeypatch, means_of)
    run_experiment(path, out)
    ends = [(r.arm, r.policy_out) for r in read_rounds(out) if r.round]
    assert ends == [
        ("a", "M1"), ("a", "M2"), ("b", "M1"), ("b", "M2"), ("b", "M3")
    ]  # fmt: skip
    run = Run(out)
    assert [row["round"] for row in run.comparisons()] == [1, 2]
    assert run.status()["state"] == "done"
    best = {p.arms: p.hash for p in choices}
    steps = {
        (s["id"], tuple(s["arms"]), s["number"]): s["hash"] for s in read_manifest(out)["steps"]
    }
    for arm, number in (("a", 1), ("b", 3)):
        chosen, own = best[arm,], steps["dpo", (arm,), number]
        first, second = (out / "models" / h / "model.safetensors" for h in (chosen, own))
        assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize(
    ("train", "words"),
    [
        ({"uses": ["pair"]}, "uses: 'pair' may not be there"),
        ({"uses": ["pair@last"]}, "pair@1 or pair@* is sure"),
        ({"uses": ["pair@3"]}, "uses: 'pair@3' may not be there"),
        ({"uses": ["pair@*"], "from": "dpo"}, "from: 'dpo' may not be there"),
        ({"uses": ["pair@1"], "from": "dpo@1"}, ""),
        ({"uses": ["pair@*"]}, ""),
    ],
)
def test_what_may_not_have_run_cannot_be_named(
    write: Write, train: dict[str, Any], words: str
) -> None:
    last = {"id": "last", "steps": [{"train": {"id": "late", "method": "sft", **train}}]}
    path = write(stages=[LOOP, last])
    if not words:
        assert make_plan(prepare(path, fetch=False))
        return
    with pytest.raises(ConfigError) as error:
        make_plan(prepare(path, fetch=False))
    assert words in str(error.value) and "experiment.yaml:" in str(error.value)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"until": {"by": "nobody"}}, "until: by: 'nobody' is no judge"),
        ({"until": {"by": "two"}}, "judge 'two' compares answers"),
        ({"rounds": 1}, "until: give the stage `rounds`"),
        ({"steps": LOOP["steps"][:3]}, "until: every round has to train a policy"),
        ({"until": {"by": "gold", "stops_rising": 0}}, "stops_rising"),
        ({"prompts": "red"}, "no prompts of the set 'red' are for validation"),
    ],
)
def test_what_until_cannot_do_is_refused(write: Write, keys: dict[str, Any], words: str) -> None:
    judges = [{"id": "gold", "kind": "rules"}, {"id": "two", "kind": "pairwise", "by": "initial"}]
    sets = {"red": {"path": "prompts.jsonl"}}
    path = write(stages=[{**LOOP, **keys}], judges=judges, prompt_sets=sets)
    with pytest.raises(ConfigError) as error:
        make_plan(prepare(path, fetch=False))
    assert words in str(error.value) and "experiment.yaml:" in str(error.value)


def test_a_choice_is_made_by_plain_answers(write: Write) -> None:
    told = {"sample": SAMPLE | {"system_prompt": "Be brief.", "temperature": 0.3}}
    stage = LOOP | {"steps": [told, *LOOP["steps"][1:]]}
    plan = make_plan(prepare(write(stages=[stage]), fetch=False))
    chosen = [p for p in plan if p.kind == "sample" and p.id.endswith(".sample") and "loop" in p.id]
    asked = [p for p in chosen if not p.id.startswith("evaluate")]
    assert len(asked) == 4
    assert {(p.step.n, p.step.system_prompt, p.step.temperature) for p in asked} == {(1, None, 0.3)}
    # Of the validation prompts, which no other step draws.
    others = {i for p in plan if p not in asked and p.kind == "sample" for i in p.prompts}
    assert {len(p.prompts) for p in asked} == {3}
    assert not others & {i for p in asked for i in p.prompts}


def test_rounds_are_needless_by_their_number_within_the_stage(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rounds 1 to 4 of the second stage are 2 to 5 over all; no new best came in its second."""
    first = {"id": "first", "steps": [*LOOP["steps"][:3], {"train": {"id": "before", **TRAIN}}]}
    plan = make_plan(prepare(write(stages=[first, LOOP, LAST])))
    monkeypatch.setattr(experiment, "round_means", lambda choice, store: {1: 0.6, 2: 0.5})
    stopped = find_stopped(plan, Store(tmp_path / "none"))
    found = {(p.stage, p.number, p.round) for p in plan if p.hash in stopped}
    assert found == {("loop", 3, 4), ("loop", 4, 5)}
