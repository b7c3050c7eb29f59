"""What steps ask engines and what they keep of the answers: each value here differs from its
default and from its neighbours, so that none can stand for another."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from rlaif.config.models import ModelSpec
from rlaif.config.steps import EvaluateStep, SamplePrinciples, SampleStep
from rlaif.core.chat import CUT
from rlaif.core.progress import QuietProgress
from rlaif.core.records import Completion, Judgement, Prompt, content_hash, make_prompt
from rlaif.core.store import Store
from rlaif.data.sources import drawn
from rlaif.engines.base import (
    GenerateRequest,
    GenerateResult,
    Model,
    RewardRequest,
    RewardResult,
    Sampling,
    ScoreRequest,
    ScoreResult,
)
from rlaif.engines.remote.meter import Account
from rlaif.judges.base import Answered, Call
from rlaif.pipeline.plan.base import Planned
from rlaif.pipeline.steps import logprobs, sample
from rlaif.pipeline.steps.asking import Kept, verdicts
from rlaif.pipeline.steps.context import StepContext

FRUIT = make_prompt([{"role": "user", "content": "Name a red fruit."}], source="poems")
BIRD = make_prompt([{"role": "user", "content": "Name a bird."}], tags=["birds"])
WRITER = Model("key", "writer", ModelSpec(path="none", engine="fake", system_prompt="Own."))


@dataclass
class Recorder:
    """An engine that keeps what it is asked, and gives what is laid out for it, two at a time."""

    given: Mapping[str, Any]
    weights_hash: str
    concurrent: bool = False
    name: str = "recorder"
    capabilities: frozenset[str] = frozenset({"generate", "token_logprobs", "reward"})
    asked: list[Any] = field(default_factory=list)
    done: set[str] = field(default_factory=set)

    def _answer(self, requests: Iterable[Any], done: Iterable[str]) -> Iterator[list[Any]]:
        self.asked += requests
        self.done |= set(done)
        left = [self.given[r.request_id] for r in self.asked if r.request_id not in self.done]
        for start in range(0, len(left), 2):
            yield left[start : start + 2]

    def generate(self, requests: Any, done: Any = frozenset()) -> Any:
        return self._answer(requests, done)

    def score(self, requests: Any, done: Any = frozenset()) -> Any:
        return self._answer(requests, done)

    def reward(self, requests: Any, done: Any = frozenset()) -> Any:
        return self._answer(requests, done)


@dataclass
class Pool:
    """Engines by the label of the model."""

    engines: Mapping[str, Any]
    account: Account = field(default_factory=Account)

    def get(self, model: Model) -> Any:
        return self.engines[model.label]


@dataclass
class Watched(QuietProgress):
    """Progress that is written down."""

    said: list[tuple[Any, ...]] = field(default_factory=list)

    def start(self, name: str, total: int, already: int = 0, unit: str = "") -> None:
        self.said.append((name, total, already))

    def advance(self, count: int, tokens: int = 0, note: str = "") -> None:
        self.said.append((count, tokens))


def context(
    folder: Path, planned: Planned, engines: Mapping[str, Any], inputs: Mapping[str, Any] = {}
) -> StepContext:
    store = Store(folder)
    for name, rows in inputs.items():
        store.step(planned.inputs[name]).append("completions", rows)
    prompts = {p.prompt_id: p for p in (FRUIT, BIRD)}
    made: Any = (planned, store.step(planned.hash), store, None, prompts, Pool(engines), Watched())
    return StepContext(*made)


TEXTS = {"kind": [f"Be kind {n}." for n in range(9)], "short": [f"Be brief {n}." for n in range(9)]}
SAMPLE = SampleStep(
    n=2,
    temperature=0.7,
    top_p=0.9,
    top_k=5,
    max_new_tokens=11,
    stop=["END", "\n\n"],
    system_prompt="You are a test.",
    principles=SamplePrinciples(
        texts=TEXTS, shares={"poems": {"kind": 1.0}, "birds": {"short": 1.0}}
    ),
)


def planned_sample() -> Planned:
    # The seed of sampling is neither that of the plan nor its round.
    return Planned(
        "h",
        "sample",
        "draw",
        7,
        3,
        SAMPLE,
        models={"by": WRITER},
        prompts=tuple(sorted([BIRD.prompt_id, FRUIT.prompt_id], reverse=True)),
        options={"sampling_seed": "5/2"},
    )


def name_of(prompt: Prompt, index: int) -> str:
    return "k_" + content_hash("h", prompt.prompt_id, index)


def result(prompt: Prompt, index: int, **keys: Any) -> GenerateResult:
    ids = keys.pop("token_ids", [1] * (3 + index))
    how = {"logprobs": [-0.5 * len(ids)], "rendered_hash": f"r{index}", "new_tokens": 20} | keys
    ending = how.pop("finish_reason", "length")
    text = how.pop("text", f"said {index}")
    return GenerateResult(name_of(prompt, index), text, ids, ending, 99, **how)


@pytest.mark.parametrize("concurrent", [False, True])
def test_a_sample_asks_for_what_its_step_says_and_keeps_what_came(
    tmp_path: Path, concurrent: bool
) -> None:
    given = {
        name_of(FRUIT, 0): result(FRUIT, 0, reasoning="Apples?"),
        name_of(FRUIT, 1): result(FRUIT, 1, finish_reason="stop"),
        name_of(BIRD, 0): result(BIRD, 0, cut=True),
        name_of(BIRD, 1): result(
            BIRD, 1, finish_reason="failed", error="too long", token_ids=[], new_tokens=None
        ),
    }
    engine = Recorder(given, "w7", concurrent)
    planned = planned_sample()
    step = context(tmp_path, planned, {"writer": engine})
    seeds = {}
    for prompt in (FRUIT, BIRD):
        for index in (0, 1):
            digest = content_hash("sampling", "5/2", prompt.prompt_id, index, length=8)
            seeds[prompt.prompt_id, index] = int(digest, 16) & 0x7FFFFFFF
    told = {
        (p.prompt_id, i): drawn(SAMPLE.principles, p, "5/2", i)  # type: ignore[arg-type]
        for p in (FRUIT, BIRD)
        for i in (0, 1)
    }
    assert len({t.text for t in told.values()}) == 4
    # One is there already.
    old = Completion(name_of(FRUIT, 1), FRUIT.prompt_id, 1, [], "m", "w", {}, "stop", [4] * 6)
    step.folder.append("completions", [old])
    summary = sample.run(step)
    by_id = {p.prompt_id: p for p in (FRUIT, BIRD)}
    places = [(by_id[name], index) for name in planned.prompts for index in (0, 1)]
    wanted = [
        GenerateRequest(
            name_of(prompt, index),
            [
                {
                    "role": "system",
                    "content": f"You are a test.\n\n{told[prompt.prompt_id, index].text}",
                },
                *prompt.messages,
            ],
            Sampling(11, 0.7, 0.9, 5, ("END", "\n\n"), seeds[prompt.prompt_id, index]),
        )
        for prompt, index in places
        if not (concurrent and (prompt, index) == (FRUIT, 1))
    ]
    assert engine.asked == wanted
    assert engine.done == {old.completion_id}
    rows = {c.completion_id: c for c in step.folder.records(Completion)}
    sampling = {"n": 2, "temperature": 0.7, "top_p": 0.9, "top_k": 5, "max_new_tokens": 11}
    turns: Any = [{"role": "assistant", "content": "said 0"}]
    about = told[FRUIT.prompt_id, 0]
    assert rows.pop(name_of(FRUIT, 0)) == Completion(
        name_of(FRUIT, 0),
        FRUIT.prompt_id,
        0,
        turns,
        "writer",
        "w7",
        sampling | {"stop": ["END", "\n\n"]},
        "length",
        None if concurrent else [1, 1, 1],
        [-1.5],
        "kind",
        f"You are a test.\n\n{about.text}",
        "r0",
        digest=content_hash(turns),
        reasoning="Apples?",
    )
    assert rows.pop(name_of(FRUIT, 1)) == old
    shown = {n: (c.sample_index, c.messages, c.finish_reason, c.error) for n, c in rows.items()}
    assert shown == {
        name_of(BIRD, 0): (0, [], "failed", CUT),
        name_of(BIRD, 1): (1, [], "failed", "too long"),
    }
    assert {c.principle for c in rows.values()} == {"short"}
    assert summary["counts"] == {"completions": 4, "failed": 2, "cut_while_thinking": 1}
    assert summary["errors"] == {CUT: 1, "too long": 1}
    # The stored one's 6, and 3 each of the two that wrote any.
    assert summary["tokens"] == 12
    (note,) = summary["notes"]
    assert note.startswith("draw: 1 of 4 answers were ")
    assert step.progress.said[0] == ("completions", 4, 1)  # type: ignore[attr-defined]
    done = step.progress.said[1:]  # type: ignore[attr-defined]
    assert (sum(n for n, _ in done), sum(t for _, t in done)) == (3, 6)
    # A rerun finds everything, and says the same of it.
    again = sample.run(step)
    assert {k: again[k] for k in ("counts", "errors", "digest")} == {
        k: summary[k] for k in ("counts", "errors", "digest")
    }
    assert len(engine.asked) == len(wanted)


def test_an_answer_without_a_prompt_of_the_steps_has_that_of_its_model(tmp_path: Path) -> None:
    planned = planned_sample()
    plain = SAMPLE.model_copy(update={"system_prompt": None, "principles": None, "n": 1})
    planned = Planned(
        **{**planned.__dict__, "step": plain, "prompts": (BIRD.prompt_id,)}  # type: ignore[arg-type]
    )
    engine = Recorder({name_of(BIRD, 0): result(BIRD, 0)}, "w")
    step = context(tmp_path, planned, {"writer": engine})
    sample.run(step)
    assert [r.messages for r in engine.asked] == [BIRD.messages]
    (row,) = step.folder.records(Completion)
    assert (row.system_prompt, row.principle) == ("Own.", None)


def answer(name: str, prompt: Prompt, **keys: Any) -> Completion:
    turns: Any = [{"role": "assistant", "content": f"answer {name}"}]
    how = {"finish_reason": "stop"} | keys
    return Completion(name, prompt.prompt_id, 0, turns, "m", "w", {}, **how)


@pytest.mark.parametrize("own", [False, True])
def test_log_probs_are_of_the_tokens_that_were_sampled_or_of_the_text(
    tmp_path: Path, own: bool
) -> None:
    """What wrote the answers has given its own log-probs; those without are asked for."""
    first = [
        answer("b", BIRD, token_ids=[5, 6], logprobs=[-0.25, -0.5]),
        answer("a", FRUIT),
        answer("empty", FRUIT, token_ids=[]),
    ]
    second = [
        answer("c", FRUIT, token_ids=[8], logprobs=[-4.0]),
        answer("f", BIRD, finish_reason="failed", token_ids=[9], logprobs=[-9.0]),
        answer("d", BIRD, token_ids=[3, 4, 5]),
    ]
    given = {
        "a": ScoreResult("a", {}, None, [-1.0, -2.0, -4.0], 7),
        "b": ScoreResult("b", {}, None, [-8.0, -16.0], 7),
        "d": ScoreResult("d", {}, None, [], 7, "does not fit"),
    }
    planned = Planned(
        "h",
        "logprobs",
        "e.logprobs",
        7,
        3,
        EvaluateStep(),
        {"completions/0": "one", "completions/1": "two"},
        {"by": WRITER},
        options={"own": own},
    )
    engine = Recorder(given, "w7")
    records = {"completions/0": first, "completions/1": second}
    step = context(tmp_path, planned, {"writer": engine}, records)
    step.folder.append("logprobs", [{"completion_id": "c", "logprob": -3.0, "tokens": 1}])
    assert logprobs.run(step) == {"counts": {"scored": 4}}
    rows = {r["completion_id"]: (r["logprob"], r["tokens"]) for r in step.folder.rows("logprobs")}
    assert rows == {
        "a": (-7.0, 3),
        "b": (-0.75, 2) if own else (-24.0, 2),
        "c": (-3.0, 1),
        "d": (None, 0),
    }
    asked = [
        ScoreRequest("a", FRUIT.messages, continuation="answer a"),
        ScoreRequest("b", BIRD.messages, continuation_ids=[5, 6]),
        ScoreRequest("c", FRUIT.messages, continuation_ids=[8]),
        ScoreRequest("d", BIRD.messages, continuation_ids=[3, 4, 5]),
    ]
    assert engine.asked == ([asked[0], asked[3]] if own else asked)
    assert step.progress.said == [  # type: ignore[attr-defined]
        ("log-probs", len(engine.asked), 0 if own else 1),
        *([(2, 3)] if own else [(2, 5), (1, 0)]),
    ]


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
