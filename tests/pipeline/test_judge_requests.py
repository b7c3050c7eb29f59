"""Who answers a judge, about what, and what is kept of it: models, roles, prompts and costs differ
in every place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from rlaif.config.models import ModelSpec
from rlaif.core.records import Completion, Judgement, Prompt, make_prompt
from rlaif.core.store import Store
from rlaif.engines.base import (
    GenerateRequest,
    GenerateResult,
    Model,
    RewardRequest,
    RewardResult,
    Sampling,
)
from rlaif.judges.base import Answered, Call
from rlaif.pipeline.plan.base import Planned
from rlaif.pipeline.steps import judge as judge_step
from rlaif.pipeline.steps.asking import Kept, verdicts
from tests.support.recording import BIRD, FRUIT, WRITER, Pool, Recorder, answer, context


@dataclass
class TwoRoles:
    """A judge that asks one model for a reward and another in words, with the seed of the step."""

    id: str = "two"
    judge_hash: str = "jh"
    comparative: bool = False
    roles: Mapping[str, frozenset[Any]] = field(
        default_factory=lambda: {"by": frozenset({"reward"}), "critic": frozenset({"generate"})}
    )
    seen: list[Any] = field(default_factory=list)

    def calls(self, prompt: Prompt, completions: Sequence[Completion], seed: int) -> list[Call]:
        self.seen.append((prompt.prompt_id, [c.completion_id for c in completions], seed))
        made = []
        for c in completions:
            turn = c.messages[-1]
            name = f"by/{c.completion_id}"
            request = RewardRequest(name, prompt.messages, turn)
            made.append(Call(name, prompt, (c,), "kind", 4, request, template_hash="t"))
        return made

    def follow(
        self, calls: Sequence[Call], answers: Mapping[str, Answered], seed: int
    ) -> list[Call]:
        if len(calls) > 1 or not calls:
            return []
        (call,) = calls
        self.seen.append((call.call_id, answers[call.call_id].annotator_id, seed))
        request = GenerateRequest("critic", call.prompt.messages, Sampling(seed=3))
        return [Call("critic", call.prompt, call.shown, "kind", 0, request, role="critic")]

    def conclude(self, calls: Sequence[Call], answers: Mapping[str, Answered]) -> list[Judgement]:
        made = []
        for call in calls:
            told = answers[call.call_id]
            subject = call.shown[0].completion_id
            who: Any = ("completion", [subject], subject, "two", told.annotator_id, "ai")
            made.append(
                Judgement(
                    f"j_{call.call_id}",
                    call.call_id,
                    call.prompt.prompt_id,
                    *who,
                    "kind",
                    "ok",
                    0.5,
                    latency=told.latency,
                    cost=told.cost,
                )
            )
        return made


def test_each_role_of_a_judge_is_answered_by_its_own_model(tmp_path: Path) -> None:
    groups = [(FRUIT, [answer("a", FRUIT)]), (BIRD, [answer("c", BIRD), answer("b", BIRD)])]
    rewards = {
        f"by/{n}": RewardResult(f"by/{n}", 1.0, 5, seconds=s, cost=k)
        for n, s, k in (("a", 1.5, 0.25), ("b", 2.5, 0.5), ("c", 3.5, 0.75))
    }
    scorer = Recorder(rewards, "w1", concurrent=True)
    words = {"critic": GenerateResult("critic", "Fine.", [1], "stop", 9, seconds=4.5, cost=2.0)}
    critic = Recorder(words, "w2", concurrent=True)
    other = Model("other", "critic model", ModelSpec(path="none", engine="fake"))
    models = {"critic": other, "by": WRITER}
    judge: Any = TwoRoles()
    engines: Any = Pool({"writer": scorer, "critic model": critic})
    folder = Store(tmp_path).step("h")
    made = verdicts(judge, models, engines, groups, 13, Kept(folder))
    assert [r.request_id for r in scorer.asked] == ["by/a", "by/c", "by/b"]
    assert [r.request_id for r in critic.asked] == ["critic"]
    assert judge.seen == [
        (FRUIT.prompt_id, ["a"], 13),
        (BIRD.prompt_id, ["c", "b"], 13),
        ("by/a", "writer:w1", 13),
    ]
    assert [(j.call_id, j.annotator_id, j.latency, j.cost) for j in made] == [
        ("by/a", "writer:w1", 1.5, 0.25),
        ("critic", "critic model:w2", 4.5, 2.0),
        ("by/c", "writer:w1", 3.5, 0.75),
        ("by/b", "writer:w1", 2.5, 0.5),
    ]
    # What was asked stands beside each answer.
    rows = {row["call_id"]: row for row in folder.rows("answers")}
    about = ("role", "principle", "sample_index", "shown", "template_hash")
    assert [rows["by/c"][key] for key in about] == ["by", "kind", 4, ["c"], "t"]
    assert [rows["critic"][key] for key in about] == ["critic", "kind", 0, ["a"], None]
    assert (rows["by/b"]["kind"], rows["critic"]["kind"]) == ("RewardResult", "GenerateResult")
    # What is stored is read again as it was, and nobody is asked twice.
    again = verdicts(judge, models, engines, groups, 13, Kept(folder))
    assert again == made
    assert (len(scorer.asked), len(critic.asked)) == (3, 1)


@dataclass
class Rewarding:
    """A judge that asks a reward model once for each answer, and a program for empty ones."""

    id: str = "once"
    judge_hash: str = "jh"
    comparative: bool = False
    needs: frozenset[Any] = frozenset({"reward"})
    seen: list[Any] = field(default_factory=list)

    def calls(self, prompt: Prompt, completions: Sequence[Completion], seed: int) -> list[Call]:
        self.seen.append((prompt.prompt_id, [c.completion_id for c in completions], seed))
        made = []
        for c in completions:
            request = RewardRequest(c.completion_id, prompt.messages, c.messages[-1])
            asked = None if c.finish_reason == "length" else request
            made.append(Call(c.completion_id, prompt, (c,), "kind", request=asked))
        return made

    def read(self, call: Call, result: Any, annotator: str) -> list[Judgement]:
        subject = call.shown[0].completion_id
        who: Any = ("completion", [subject], subject, "once", annotator, "model", "kind")
        name = f"j_{subject}"
        if result is None or result.reward is None:
            return [Judgement(name, subject, call.prompt.prompt_id, *who, "failed")]
        return [Judgement(name, subject, call.prompt.prompt_id, *who, "ok", result.reward)]


@pytest.mark.parametrize("concurrent", [False, True])
def test_a_judge_sees_the_answers_of_all_inputs_to_the_prompts_of_its_step(
    tmp_path: Path, concurrent: bool
) -> None:
    third = make_prompt([{"role": "user", "content": "Name a fish."}])
    first = [answer("a", FRUIT), answer("b", BIRD), answer("x", third)]
    second = [answer("c", FRUIT), answer("d", BIRD, finish_reason="length"), answer("e", BIRD)]
    given = {
        "a": RewardResult("a", 0.25, 5, seconds=1.5, cost=2.0),
        "b": RewardResult("b", 0.5, 6, seconds=2.5, cost=4.0),
        "c": RewardResult("c", None, 7, "does not fit", seconds=3.5, cost=8.0),
        "e": RewardResult("e", 0.75, 8),
    }
    engine, judge = Recorder(given, "w7", concurrent), Rewarding()
    planned = Planned(
        "h",
        "judge",
        "ev.once",
        13,
        3,
        judge,
        {"completions/0": "one", "completions/1": "two"},
        {"by": WRITER},
        (FRUIT.prompt_id, BIRD.prompt_id),
        {"kin": "of the same"},
        judges={"once": judge},  # type: ignore[dict-item]
    )
    records = {"completions/0": first, "completions/1": second}
    step = context(tmp_path, planned, {"writer": engine}, records)
    kept = judge.read(judge.calls(BIRD, [second[2]], 13)[0], given["e"], "writer:w7")
    step.folder.append("judgements", kept)
    judge.seen.clear()
    summary = judge_step.run(step)
    # In the order of the inputs, and of no prompt that is not the step's.
    ordered = sorted([(FRUIT.prompt_id, ["a", "c"], 13), (BIRD.prompt_id, ["b", "d", "e"], 13)])
    assert judge.seen[-2:] == ordered and set(map(str, judge.seen)) == set(map(str, ordered))
    asked = {r.request_id: (r.messages, r.answer["content"]) for r in engine.asked}
    shown = {"a": FRUIT, "b": BIRD, "c": FRUIT, **({} if concurrent else {"e": BIRD})}
    assert asked == {n: (p.messages, f"answer {n}") for n, p in shown.items()}
    rows = {j.call_id: j for j in step.folder.records(Judgement)}
    assert {n: (j.annotator_id, j.score, j.status) for n, j in rows.items()} == {
        "a": ("writer:w7", 0.25, "ok"),
        "b": ("writer:w7", 0.5, "ok"),
        "c": ("writer:w7", None, "failed"),
        "d": ("program:once", None, "failed"),
        "e": ("writer:w7", 0.75, "ok"),
    }
    assert [rows[n].cost for n in "abc"] == [2.0, 4.0, 8.0]
    assert [rows[n].prompt_tokens for n in "abc"] == [5, 6, 7]
    assert [rows[n].error for n in "abc"] == [None, None, "does not fit"]
    if concurrent:
        assert [rows[n].latency for n in "abc"] == [1.5, 2.5, 3.5]
    assert summary["counts"] == {"calls": 5, "judgements": 5, "with_value": 3}
    assert summary["kin"] == "of the same"
    assert summary["statuses"] == {"ok": 3, "failed": 2}
    assert step.progress.said[0] == ("judgements", 5, 1)  # type: ignore[attr-defined]
