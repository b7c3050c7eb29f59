"""Tool calls, tools' turns and reasoning: written by the template, sent to a server, or counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlaif.config.models import ModelSpec
from rlaif.core.answers import AnswerTurn
from rlaif.core.chat import THINKING_KEYS, ChatSettings, count_lost, render, with_system_role
from rlaif.core.progress import QuietProgress
from rlaif.core.records import Message, Preference
from rlaif.engines.base import GenerateRequest, Sampling
from rlaif.engines.remote import api
from rlaif.pipeline.single_step import Request, run_step
from rlaif.train.tokenise import encode
from tests.servers.scripted import ScriptedServer
from tests.support.templates import CHATML, GPT_OSS, QWEN3, R1, STYLES, tokenizer

CALL = {
    "id": "c1",
    "type": "function",
    "function": {"name": "look", "arguments": {"at": "plum"}},
}
ASKED: list[Message] = [{"role": "user", "content": "What colour is a plum?"}]
CALLED: Message = {"role": "assistant", "content": "", "tool_calls": [CALL]}
TOLD: Message = {"role": "tool", "content": "purple", "tool_call_id": "c1", "name": "look"}
TALK: list[Message] = [*ASKED, CALLED, TOLD]
WITH_CALLS = CHATML.replace(
    "{{ m['content'] }}",
    "{{ m['content'] }}{% for c in m.tool_calls or [] %}<tool_call>"
    "{{ c.function.name }} {{ c.function.arguments | tojson }}</tool_call>{% endfor %}",
)
NAMES_ONLY = WITH_CALLS.replace(" {{ c.function.arguments | tojson }}", "")
NO_TOOLS = CHATML.replace(
    "{% for m in messages %}", "{% for m in messages if m['role'] != 'tool' %}"
)


def chatml(template: str = CHATML) -> Any:
    return tokenizer("byte", template, "<|im_end|>")


@pytest.mark.parametrize(
    ("template", "wanted"),
    [
        (WITH_CALLS, {}),
        (CHATML, {"tool_calls_lost": 1}),
        (NAMES_ONLY, {"tool_calls_lost": 1}),
        (NO_TOOLS, {"tool_calls_lost": 1, "tool_turns_lost": 1}),
    ],
    ids=["written", "not written", "names alone", "no tools' turns"],
)
def test_what_a_template_does_not_write_is_noticed(template, wanted):
    assert count_lost(chatml(template), TALK) == wanted


def test_reasoning_of_earlier_turns_is_counted_where_a_template_forgets_it():
    thought: Message = {"role": "assistant", "content": "Purple.", "reasoning_content": "A fruit."}
    talk = [*ASKED, thought, *ASKED]
    assert count_lost(chatml(QWEN3), talk) == {"reasoning_lost": 1}
    for name in THINKING_KEYS:
        kept = CHATML.replace(
            "{{ m['content'] }}", f"{{{{ m.{name} or '' }}}}{{{{ m['content'] }}}}"
        )
        assert count_lost(chatml(kept), talk) == {}, f"{name}: by whatever name it is asked for"


def preference(prompt, chosen, rejected) -> Preference:
    numbers = {"score_chosen": 1.0, "score_rejected": 0.0, "margin": 1.0, "prob": 1.0}
    return Preference(
        "r",
        "p",
        0,
        prompt,
        [chosen],
        [rejected],
        **numbers,
        weight=1.0,
        reason="",
        source="test",
        judgement_ids=[],
        chosen_id="c",
        rejected_id="d",
    )


@pytest.mark.parametrize("whole", [False, True], ids=["policy", "reward model"])
def test_training_counts_what_it_does_not_see(whole):
    said: Message = {"role": "assistant", "content": "Purple."}
    called: Message = {**CALLED, "content": "Let me look."}
    keys = {"both": True, "max_length": 500, "overlong": "skip", "train_on_eos": True}
    rows = [preference(TALK, said, called)]
    made = encode(rows, chatml(), {}, **keys, always_end=whole)
    assert made.counts["tool_calls_lost"] == 2 and made.counts["tool_turns_lost"] == 0
    made = encode(rows, chatml(WITH_CALLS), {}, **keys, always_end=whole)
    assert not any(made.counts.values())
    text = chatml().decode(made.examples[0].completions[1])
    assert '<tool_call>look {"at": "plum"}</tool_call>' in text
    prompt = chatml().decode(made.examples[0].prompt_ids)
    assert '<tool_call>look {"at": "plum"}</tool_call>' in prompt and "purple" in prompt


def test_an_answers_reasoning_is_written_even_where_the_template_forgets_it():
    thought: Message = {"role": "assistant", "content": "Purple.", "reasoning_content": "A fruit."}
    turn = AnswerTurn(chatml(), ASKED)
    assert not turn.lost(thought)
    assert "A fruit." in chatml().decode(turn.tokens(thought, "turn").ids)
    # A reward model reads what anybody's call of the template gives, and there it is lost.
    read = AnswerTurn(chatml(), ASKED, whole=True)
    assert read.lost(thought) == {"reasoning_lost": 1}
    assert not read.lost(thought, "strip")


EMPTY = ["<think>\n\n</think>\n\nn", "<think></think>n", "<think>\n</think>\nNo, it is kind.\n"]


@pytest.mark.parametrize("style", [*STYLES, "r1"])
@pytest.mark.parametrize("answer", EMPTY)
@pytest.mark.parametrize("reasoning", ["keep", "strip"])
def test_an_answer_that_begins_with_an_empty_block_trains_and_scores(style, answer, reasoning):
    kind, template, end = STYLES.get(style, ("byte", R1, "<|end_of_sentence|>"))
    tok = tokenizer(kind, template, end)
    said: Message = {"role": "assistant", "content": answer}
    off = ChatSettings(template_kwargs={"enable_thinking": False})
    for chat in (ChatSettings(), off):
        for whole in (False, True):
            turn = AnswerTurn(tok, ASKED, chat, whole)
            found = turn.tokens(said, "all" if whole else "turn", reasoning)
            text = tok.decode([*turn.prompt_ids, *found.ids])
            assert text.count("</think>") <= 1
            own = answer.rpartition("</think>")[2].strip()
            assert text.replace(end, "").strip().endswith(own)
            if whole and reasoning == "keep":
                ids = tok.apply_chat_template([*ASKED, said], return_dict=False)
                assert [*turn.prompt_ids, *found.ids] == ids


def sent(messages: list[Message], **spec: Any) -> Any:
    model = ModelSpec(path="m", engine="openai", base_url="http://here/v1", **spec)
    request = GenerateRequest("r", messages, Sampling())
    return next(iter(api.calls(model, "m", [request]))).body


def test_a_server_gets_tool_calls_as_the_api_has_them():
    first, called, told = sent(TALK)["messages"]
    assert first == ASKED[0]
    function = {"name": "look", "arguments": '{"at": "plum"}'}
    assert called == {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "c1", "type": "function", "function": function}],
    }
    assert told == TOLD
    assert api.most_usage(sent(TALK)).input > api.most_usage(sent([*ASKED, TOLD])).input
    text = sent(TALK, api="completions")["prompt"]
    assert '<tool_call>\n{"arguments":{"at":"plum"},"name":"look"}\n</tool_call>' in text


def test_ids_that_a_file_left_out_are_made_up_and_agree():
    bare = {"name": "look", "arguments": {"at": "plum"}}
    talk: list[Message] = [
        *ASKED,
        {"role": "assistant", "content": "", "tool_calls": [bare, {"function": bare}]},
        {"role": "tool", "content": "purple"},
        {"role": "tool", "content": "round"},
    ]
    _, called, *told = sent(talk)["messages"]
    assert [c["id"] for c in called["tool_calls"]] == [t["tool_call_id"] for t in told]
    assert len({t["tool_call_id"] for t in told}) == 2
    assert all(c["function"]["arguments"] == '{"at": "plum"}' for c in called["tool_calls"])
    assert api.lost([{"role": "assistant", "content": "", "reasoning_content": "Hm."}]) == {
        "reasoning_lost": 1
    }


TURN = st.sampled_from([*ASKED, CALLED, {**CALLED, "content": "Hm."}, TOLD, *TALK[::-1]])


@given(st.lists(TURN, min_size=1, max_size=6))
@settings(max_examples=60, deadline=None)
def test_merging_roles_loses_no_call_and_no_tools_turn(talk):
    merged = with_system_role(talk, "merge")
    calls = [c for m in talk for c in m.get("tool_calls", ())]
    assert [c for m in merged for c in m.get("tool_calls", ())] == calls
    assert [m for m in merged if m["role"] == "tool"] == [m for m in talk if m["role"] == "tool"]
    for message in talk:
        assert any(message["content"] in m["content"] for m in merged)
    wire = json.loads(json.dumps(api.wire_turns(merged)))
    assert sum(len(t.get("tool_calls", ())) for t in wire) == len(calls)


def test_gpt_oss_shows_the_thinking_of_a_last_turn_by_its_own_name():
    tok = tokenizer("byte", GPT_OSS, "<|return|>")
    thought: Message = {"role": "assistant", "content": "Purple.", "reasoning_content": "A fruit."}
    text = render(tok, [*ASKED, thought], ChatSettings(), False)
    assert "<|channel|>analysis<|message|>A fruit.<|end|>" in text


def sampled(folder: Path, model: dict[str, Any], talk: list[Message]) -> dict[str, Any]:
    """What a sample step says of itself, in its own words and in those of `status`."""
    folder.mkdir()
    (folder / "prompts.jsonl").write_text(json.dumps({"prompt": talk}) + "\n")
    (folder / "m.yaml").write_text(json.dumps(model))
    request = Request(
        "sample",
        folder / "out",
        ["n=2", "max_new_tokens=4"],
        prompts=folder / "prompts.jsonl",
        models={"by": str(folder / "m.yaml")},
    )
    return run_step(request, QuietProgress())


def test_a_sample_step_says_what_its_model_is_not_shown(tmp_path: Path, tiny_model: Path) -> None:
    """The embedded model's template writes the roles of all turns, and no tool calls."""
    model = {"path": str(tiny_model), "dtype": "float32"}
    made = sampled(tmp_path / "a", model, TALK)
    assert made["counts"] == {"completions": 2, "failed": 0, "tool_calls_lost": 1}
    assert "the model is not shown the tool calls of 1 turn:" in made["notes"][0]
    plain = sampled(tmp_path / "b", model, ASKED)
    assert plain["counts"] == {"completions": 2, "failed": 0} and not plain.get("notes")


def test_a_server_is_sent_the_calls_and_what_it_cannot_be_sent_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RLAIF_CACHE", str(tmp_path / "cache"))
    thought: Message = {**CALLED, "reasoning_content": "I must look."}
    with ScriptedServer() as server:
        model = {"path": "m", "engine": "openai", "base_url": server.url}
        made = sampled(tmp_path / "a", model, [*ASKED, thought, TOLD])
        (first, *_) = server.asked
    assert [set(turn) for turn in first["messages"]] == [
        {"role", "content"},
        {"role", "content", "tool_calls"},
        {"role", "content", "tool_call_id", "name"},
    ]
    assert made["counts"] == {"completions": 2, "failed": 0, "reasoning_lost": 1}
