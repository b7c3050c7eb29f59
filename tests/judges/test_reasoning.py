"""Judges that are shown answers without their thinking."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import TypeAdapter

from rlaif.config.models import THINKING, ModelSpec, ThinkingSpec, thinking_of
from rlaif.core.chat import opened_by, split, write_thinking
from rlaif.core.records import Completion, content_hash, make_prompt
from rlaif.engines.base import GenerateRequest, RewardRequest, ScoreRequest
from rlaif.judges.base import is_staged, roles_of, verdicts_of
from rlaif.judges.build import JudgeStep, build_judge
from rlaif.pipeline.prepare import prepare

PROMPT = make_prompt([{"role": "user", "content": "Name a fruit."}])
ANALYSIS = "<|channel|>analysis<|message|>"
THOUGHT = "A long thought that says a great many things about fruit."


def judge_of(thinking: ThinkingSpec = THINKING, **keys: Any) -> Any:
    spec = TypeAdapter(JudgeStep).validate_python(keys)
    return build_judge(spec, None, None, thinking)


def answer(text: str, index: int = 0) -> Completion:
    messages: Any = [{"role": "assistant", "content": text}]
    name = "x_" + content_hash(text)
    return Completion(name, PROMPT.prompt_id, index, messages, "m", "w", {}, "stop")


def shown(judge: Any, texts: list[str]) -> str:
    """All that a judge's calls would show a model."""
    found = []
    for call in judge.calls(PROMPT, [answer(t, i) for i, t in enumerate(texts)], 0):
        request = call.request
        if isinstance(request, RewardRequest):
            found.append(request.answer["content"])
        elif isinstance(request, GenerateRequest | ScoreRequest):
            found.append("".join(m["content"] for m in request.messages))
            found.append(getattr(request, "continuation", None) or "")
    return "\n".join(found)


@pytest.mark.parametrize(
    "keys",
    [
        {"kind": "reward_model", "by": "m"},
        {"kind": "implicit_reward", "by": "m", "reference": "n"},
        {"kind": "pairwise", "by": "m"},
        {"kind": "rating", "by": "m"},
        {"kind": "perplexity", "by": "m"},
    ],
    ids=lambda keys: keys["kind"],
)
@pytest.mark.parametrize("opening", ["<think>", ""])
def test_thinking_is_left_out_of_what_a_judge_sees(keys, opening):
    texts = [f"{opening}{THOUGHT}</think>\n\nplum", "fig"]
    plain, strict = judge_of(**keys), judge_of(**keys, reasoning="strip")
    assert THOUGHT in shown(plain, texts) and THOUGHT not in shown(strict, texts)
    assert "plum" in shown(strict, texts) and "fig" in shown(strict, texts)
    # The key is part of the judge's hash only where it is set.
    assert judge_of(**keys, reasoning="keep").judge_hash == plain.judge_hash
    assert strict.judge_hash != plain.judge_hash
    assert is_staged(strict) == is_staged(plain) and roles_of(strict) == roles_of(plain)


def test_verdicts_are_those_on_the_answers_alone():
    keys = {"kind": "longer"}
    texts = [f"<think>{THOUGHT}</think>a", "a longer answer"]
    found = {}
    for reasoning in ("keep", "strip"):
        judge = judge_of(**keys, reasoning=reasoning)
        calls = judge.calls(PROMPT, [answer(t, i) for i, t in enumerate(texts)], 0)
        (verdict,) = verdicts_of(judge, calls, {})
        first = verdict.shown[0] == answer(texts[0]).completion_id
        found[reasoning] = verdict.prob_first == (1.0 if first else 0.0)
    assert found == {"keep": True, "strip": False}


def test_an_answer_that_was_cut_while_thinking_is_not_judged():
    judge = judge_of(kind="reward_model", by="m", reasoning="strip")
    (call,) = judge.calls(PROMPT, [answer(f"<think>{THOUGHT}"), answer("plum", 1)], 0)
    assert call.shown[0].text == "plum"


def parts(text: str, before: str = "") -> tuple[str, str]:
    """Thinking and answer of a text that is given."""
    said = split(text, THINKING, before, unclosed="answer")
    return said.reasoning, said.answer


@pytest.mark.parametrize(
    ("text", "thinking", "plain"),
    [
        ("plain", "", "plain"),
        ("<think>a</think>b", "a", "b"),
        (" <think>\na\n</think>\n\nb</think>", "a", "b</think>"),
        ("<thinking>a</thinking>b", "a", "b"),
        ("[THINK]a[/THINK]b", "a", "b"),
        ("<think>never closed", "never closed", ""),
        ("b <think>a</think>", "", "b <think>a</think>"),
        ("a</think>b", "", "a</think>b"),
        (f"{ANALYSIS}a<|end|><|start|>assistant<|channel|>final<|message|>b", "a", "b"),
        ("<|channel|>final<|message|>b", "", "b"),
    ],
)
def test_thinking_begins_at_the_start_and_ends_at_the_first_close(text, thinking, plain):
    assert parts(text) == (thinking, plain)


def test_a_close_without_an_opening_counts_where_a_prompt_opened_it():
    assert parts("a\n</think>\n\nb", "<think>") == ("a", "b")
    assert parts("b", "<think>") == ("", "b")
    assert opened_by("x<think> y") is None
    for end in ("<think>", "<think>\n", "<think>\n\n", "<think> \n"):
        opened = opened_by("x" + end)
        assert opened is not None and opened.text == end
        for thought in ("", "a"):
            whole = end + write_thinking(thought, opened) + "b"
            assert parts(whole) == (thought, "b")
        if end != "<think> \n":
            assert end + write_thinking("", opened) == "<think>\n\n</think>\n\n"
    assert write_thinking("a", None) == "<think>\na\n</think>\n\n"


MULL = ModelSpec(path="m", thinking=ThinkingSpec(markers=[("<mull>", "</mull>")]))


@pytest.mark.parametrize(
    "keys",
    [
        {"kind": "pairwise", "by": "m", "reasoning": "strip"},
        {"kind": "jury", "of": [{"kind": "rating", "by": "m", "id": "r", "reasoning": "strip"}]},
    ],
    ids=lambda keys: keys["kind"],
)
@pytest.mark.parametrize("opening", ["<mull>", ""])
def test_markers_of_the_models_are_those_of_the_answers_that_are_judged(keys, opening):
    texts = [f"{opening}{THOUGHT}</mull>\n\nplum", "fig"]
    usual, own = judge_of(**keys), judge_of(thinking_of([MULL, ModelSpec(path="n")]), **keys)
    assert THOUGHT in all_shown(usual, texts)
    assert THOUGHT not in all_shown(own, texts) and "plum" in all_shown(own, texts)
    # They are a part of the hash only where they are not the usual ones.
    assert own.judge_hash != usual.judge_hash
    assert judge_of(thinking_of([ModelSpec(path="n")]), **keys).judge_hash == usual.judge_hash


def all_shown(judge: Any, texts: list[str]) -> str:
    return "".join(shown(member, texts) for member in getattr(judge, "members", [judge]))


def test_thinking_of_several_models_is_told_by_the_markers_of_all():
    assert thinking_of([]) == thinking_of([ModelSpec(path="n")]) == THINKING
    assert thinking_of([MULL]).markers == [("<mull>", "</mull>")]
    both = thinking_of([ModelSpec(path="n"), MULL])
    assert both == thinking_of([MULL, ModelSpec(path="n")])
    assert set(both.markers) == {*THINKING.markers, ("<mull>", "</mull>")}


def test_markers_in_an_experiment_reach_its_judges(tmp_path, write_experiment):
    policy = {"path": "none", "engine": "fake"}
    judges = [{"id": "len", "kind": "longer", "reasoning": "strip"}]
    text = f"{THOUGHT}</mull>plum"
    for thinking, left in (({}, text), ({"markers": [["<mull>", "</mull>"]]}, "plum")):
        models = {"policy": policy | {"thinking": thinking}}
        inputs = prepare(write_experiment(tmp_path, None, models=models, judges=judges))
        (call,) = inputs.judges["len"].calls(PROMPT, [answer(text), answer("fig", 1)], 0)
        assert left in [completion.text for completion in call.shown]
