"""`when`: steps that run in some rounds, and what reads their output in the others."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from rlaif.core.errors import ConfigError
from rlaif.pipeline.experiment import run_experiment
from rlaif.pipeline.manifest import read_rounds, resolved_yaml
from rlaif.pipeline.plan.base import Planned
from rlaif.pipeline.plan.unroll import make_plan
from rlaif.pipeline.prepare import prepare
from rlaif.pipeline.reading import load_experiment
from rlaif.pipeline.stages import Rounds, in_rounds

ROUNDS: TypeAdapter[Any] = TypeAdapter(Rounds)


@pytest.mark.parametrize(
    ("said", "rounds"),
    [
        (2, {2}),
        ("2", {2}),
        ("2-", {2, 3, 4, 5, 6}),
        ("1,3-4", {1, 3, 4}),
        ("5-,1", {1, 5, 6}),
        ({"every": 3}, {3, 6}),
        ({"every": 1}, {1, 2, 3, 4, 5, 6}),
    ],
)
def test_which_rounds_are_meant(said: Any, rounds: set[int]) -> None:
    value = ROUNDS.validate_python(said)
    assert {n for n in range(1, 7) if in_rounds(value, n)} == rounds
    assert all(in_rounds(None, n) for n in range(1, 7))


@pytest.mark.parametrize("said", ["0", "3-2", "-2", "1,", "a", "1-2-3", 0, {"every": 0}, {}])
def test_what_names_no_rounds_is_refused(said: Any) -> None:
    with pytest.raises(ValidationError):
        ROUNDS.validate_python(said)


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 5)), min_size=1))
def test_ranges_are_unions(parts: list[tuple[int, int]]) -> None:
    text = ",".join(f"{first}-{first + more}" for first, more in parts)
    value = ROUNDS.validate_python(text)
    meant = {n for first, more in parts for n in range(first, first + more + 1)}
    assert {n for n in range(1, 20) if in_rounds(value, n)} == meant


FILE = """\
name: when
seed: 3
models: {policy: {path: builtin/smollm2-135m-instruct}}
constitution: constitutions/concise_helper.yaml
prompts: {path: prompts.jsonl, holdout: 2}
rounds: 4
steps:
  - sample: {n: 2, prompts: 3}
  - judge: {id: checks, kind: rules}
  - pair: {id: actor}
  - sample: {id: again, n: 2, prompts: 2}
    when: "1-2"
  - judge: {id: second, kind: rules}
    when: "1-2"
  - pair: {id: judging, uses: [second]}
    when: "1-2"
  - train: {uses: USES, lora: {r: 2}}
  - evaluate: {}
    when: {every: 2}
"""


def plan_of(folder: Path, uses: str = '[actor, "judging?"]', text: str = FILE) -> list[Planned]:
    rows = "".join(f'{{"prompt": "question {n}"}}\n' for n in range(8))
    folder.joinpath("prompts.jsonl").write_text(rows)
    path = folder / "when.yaml"
    path.write_text(text.replace("USES", uses))
    return make_plan(prepare(path, fetch=False))


def read_by_trainings(plan: list[Planned]) -> dict[int, list[tuple[str, int]]]:
    """By round the id and round of every step whose preferences its training reads."""
    by_hash = {p.hash: p for p in plan}
    return {
        p.round: sorted((by_hash[h].id, by_hash[h].round) for h in p.inputs.values())
        for p in plan
        if p.kind == "train"
    }


def test_steps_run_in_their_rounds_alone(tmp_path: Path) -> None:
    ran: dict[str, list[int]] = defaultdict(list)
    for planned in plan_of(tmp_path):
        ran[planned.id].append(planned.round)
    assert ran["actor"] == ran["train"] == [1, 2, 3, 4]
    assert ran["judging"] == ran["second"] == ran["again"] == [1, 2]
    assert ran["evaluate"] == [0, 2, 4]


@pytest.mark.parametrize(
    ("uses", "read"),
    [
        ('[actor, "judging?"]', {3: [("actor", 3)], 2: [("actor", 2), ("judging", 2)]}),
        ('[actor, "judging@last"]', {4: [("actor", 4), ("judging", 2)]}),
        ('[actor, "judging@last"]', {1: [("actor", 1), ("judging", 1)]}),
        ('["actor@*", "judging@1"]', {2: [("actor", 1), ("actor", 2), ("judging", 1)]}),
        ('["judging@*", actor]', {4: [("actor", 4), ("judging", 1), ("judging", 2)]}),
    ],
)
def test_what_reads_a_step_that_is_left_out(
    tmp_path: Path, uses: str, read: dict[int, list[tuple[str, int]]]
) -> None:
    found = read_by_trainings(plan_of(tmp_path, uses))
    assert {number: found[number] for number in read} == read


@pytest.mark.parametrize(
    ("uses", "words"),
    [
        ("[actor, judging]", ["does not run in round 3", '"judging?"', "judging@last"]),
        ('["nothing?"]', ["'nothing?' names no earlier"]),
        ('["actor@9"]', ["'actor@9' names no earlier"]),
        ('["actor@soon"]', ["'actor@soon' names no earlier"]),
    ],
)
def test_an_output_that_is_not_there_is_refused(
    tmp_path: Path, uses: str, words: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        plan_of(tmp_path, uses)
    said = str(caught.value)
    line = FILE.splitlines().index(next(x for x in FILE.splitlines() if "USES" in x)) + 1
    assert f"when.yaml:{line}" in said
    assert all(word in said for word in words), said


def test_when_is_in_no_hash(tmp_path: Path) -> None:
    every = FILE.replace('    when: "1-2"\n', "").replace("    when: {every: 2}\n", "")
    always = {p.hash for p in plan_of(tmp_path, text=every)}
    first = {p.hash for p in plan_of(tmp_path) if p.round < 3 and p.kind != "evaluate"}
    assert first <= always


def test_a_step_that_never_runs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"evaluate 'evaluate' never runs.*1 to 4"):
        plan_of(tmp_path, text=FILE.replace("{every: 2}", "5"))


def test_means_of_a_round_without_the_judge_are_refused(tmp_path: Path) -> None:
    text = FILE.replace("judging, uses: [second]", "judging, uses: [second], standardise: initial")
    plan_of(tmp_path, text=text)
    late = text.replace('    when: "1-2"\n', '    when: "2-"\n').replace('"judging?"', "actor")
    with pytest.raises(ConfigError, match="judge 'second' has no verdicts in round 1"):
        plan_of(tmp_path, text=late)


def test_a_run_folder_keeps_when(tmp_path: Path) -> None:
    plan_of(tmp_path)
    experiment, _ = load_experiment(tmp_path / "when.yaml")
    written = resolved_yaml(experiment)
    assert written.count("when:") == 4
    (tmp_path / "again.yaml").write_text(written)
    again = load_experiment(tmp_path / "again.yaml")[0]
    assert [(e.kind, e.step, e.when) for e in again.steps] == [
        (e.kind, e.step, e.when) for e in experiment.steps
    ]


def test_a_round_without_training_begins_with_the_policy_before_it(
    tmp_path: Path, tiny_model: Path, write_experiment: Any
) -> None:
    """A real run: no training in round 2, no evaluation in round 1."""
    path = write_experiment(tmp_path, tiny_model, rounds=3)
    text = path.read_text().replace("- train:", "- when: 1,3\n  train:")
    text = text.replace("- evaluate:", "- when: 2-\n  evaluate:")
    path.write_text(text)
    result = run_experiment(path, tmp_path / "run")
    rows = read_rounds(tmp_path / "run")
    assert [(r.round, r.policy_in, r.policy_out) for r in rows] == [
        (0, "M0", "M0"),
        (2, "M1", "M1"),
        (3, "M1", "M3"),
    ]
    # The policy did not move in round 2: nothing differs from the round before.
    moved = rows[1].metrics["deltas"]["previous"]
    assert [moved[name]["mean"] for name in ("score/checks", "kl/initial", "distinct_2")] == [0] * 3
    assert rows[2].metrics["deltas"]["previous"]["kl/initial"]["mean"] != 0
    again = run_experiment(path, tmp_path / "run")
    assert (again.ran, again.reused) == (0, result.ran)
