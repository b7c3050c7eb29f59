"""What steps ask engines and what they keep of the answers: each value here differs from its
default and from its neighbours, so that none can stand for another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rlaif.config.steps import EvaluateStep, SamplePrinciples, SampleStep
from rlaif.core.chat import CUT
from rlaif.core.records import Completion, Prompt, content_hash
from rlaif.data.sources import drawn
from rlaif.engines.base import (
    GenerateRequest,
    GenerateResult,
    Sampling,
    ScoreRequest,
    ScoreResult,
)
from rlaif.pipeline.plan.base import Planned
from rlaif.pipeline.steps import logprobs, sample
from tests.support.recording import BIRD, FRUIT, WRITER, Recorder, answer, context

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
