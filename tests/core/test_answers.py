"""Where an answer stands in its conversation: the tokens are those that the model would write."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlaif.config.models import ModelSpec, ThinkingSpec
from rlaif.core.answers import AnswerTurn, encode_after, encode_behind
from rlaif.core.chat import ChatSettings, TemplateRefusal, render_prompt
from rlaif.core.errors import EngineError
from tests.support.templates import (
    CHATML,
    GPT_OSS,
    LLAMA2,
    MISTRAL,
    MISTRAL_SYSTEM,
    QWEN3,
    R1,
    STYLES,
    tokenizer,
)

PROMPT = [{"role": "user", "content": "What do you think of a plum, in short?"}]
SHORT = ["n", "k", "think", "a"]


def said(content: str, **more: str) -> dict[str, str]:
    return {"role": "assistant", "content": content, **more}


def rendered_ids(tok, messages, generation=False, **more):
    return tok.apply_chat_template(
        messages, add_generation_prompt=generation, return_dict=False, **more
    )


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("answer", [*SHORT, "No, I think it is kind.", " a plum \n"])
def test_the_ids_are_those_of_the_whole_conversation_cut_at_the_boundary(style, answer):
    kind, template, end = STYLES[style]
    tok = tokenizer(kind, template, end)
    whole = rendered_ids(tok, [*PROMPT, said(answer)])
    turn = AnswerTurn(tok, PROMPT)
    assert turn.prompt_ids == rendered_ids(tok, PROMPT, True)
    found = turn.tokens(said(answer), "turn")
    stop = len(whole) - whole[::-1].index(tok.eos_token_id)
    assert [*turn.prompt_ids, *found.ids] == whole[:stop]
    assert not found.crossed
    bare = turn.tokens(said(answer), "none")
    assert [*turn.prompt_ids, *bare.ids] == whole[: len(turn.prompt_ids) + len(bare.ids)]
    assert tok.decode(bare.ids).strip().endswith(answer.strip())
    # A reward model reads the conversation as anyone renders it, to its last token.
    read = AnswerTurn(tok, PROMPT, whole=True)
    assert [*read.prompt_ids, *read.tokens(said(answer), "all").ids] == whole


@pytest.mark.parametrize("answer", SHORT)
def test_a_think_block_that_the_prompt_opens_is_closed_before_an_answer_without_thinking(answer):
    tok = tokenizer("byte", R1, "<|end_of_sentence|>")
    turn = AnswerTurn(tok, PROMPT)
    assert turn.prompt_ids == rendered_ids(tok, PROMPT, True)
    found = turn.tokens(said(answer), "turn").ids
    # What the template has behind its own boundary, after the block's end.
    whole = rendered_ids(tok, [*PROMPT, said(answer)])
    own = whole[whole.index(tok.convert_tokens_to_ids("<|Assistant|>")) + 1 :]
    assert found[-len(own) :] == own
    assert tok.decode(found) == f"\n</think>\n\n{answer}<|end_of_sentence|>"
    read = AnswerTurn(tok, PROMPT, whole=True)
    assert [*read.prompt_ids, *read.tokens(said(answer), "all").ids] == whole


THOUGHT = "It is a fruit."
WITH_THOUGHT = f"<think>\n{THOUGHT}\n</think>\n\nn"


@pytest.mark.parametrize(
    ("template", "end", "kept", "stripped"),
    [
        (CHATML, "<|im_end|>", WITH_THOUGHT, "n"),
        (QWEN3, "<|im_end|>", WITH_THOUGHT, "<think>\n\n</think>\n\nn"),
        (
            R1,
            "<|end_of_sentence|>",
            WITH_THOUGHT.removeprefix("<think>\n"),
            "\n</think>\n\nn",
        ),
        (
            GPT_OSS,
            "<|return|>",
            f"<|channel|>analysis<|message|>{THOUGHT}<|end|>"
            "<|start|>assistant<|channel|>final<|message|>n",
            "<|channel|>final<|message|>n",
        ),
    ],
    ids=["chatml", "qwen3", "r1", "gpt_oss"],
)
def test_thinking_is_kept_as_the_model_writes_it_or_left_out(template, end, kept, stripped):
    tok = tokenizer("byte", template, end)
    turn = AnswerTurn(tok, PROMPT)
    forms = [said(WITH_THOUGHT), said("n", reasoning_content=THOUGHT)]
    if template == R1:
        # As it was sampled: the prompt had the opening.
        forms.append(said(f"{THOUGHT}\n</think>\n\nn"))
    for answer in forms:
        assert tok.decode(turn.tokens(answer, "turn").ids) == kept + end
        assert tok.decode(turn.tokens(answer, "turn", "strip").ids) == stripped + end


OWN = ModelSpec(path="m", thinking=ThinkingSpec(markers=[("<mull>", "</mull>")]))
MULLED = f"<mull>\n{THOUGHT}\n</mull>\n\nn"
OPENS = CHATML.replace("assistant\n{% endif", "assistant\n<mull>\n{% endif")


def test_markers_of_a_model_are_those_of_the_tokens_that_are_trained():
    tok = tokenizer("byte", CHATML, "<|im_end|>")
    turn = AnswerTurn(tok, PROMPT, OWN.chat)
    for answer in (said(MULLED), said("n", reasoning_content=THOUGHT)):
        assert tok.decode(turn.tokens(answer, "turn").ids) == f"{MULLED}<|im_end|>"
        assert tok.decode(turn.tokens(answer, "turn", "strip").ids) == "n<|im_end|>"
    # So they are in each process of a training in several.
    sent = ChatSettings(**json.loads(json.dumps(asdict(OWN.chat))))
    there = AnswerTurn(tok, PROMPT, sent).tokens(said(MULLED), "turn", "strip")
    assert tok.decode(there.ids) == "n<|im_end|>"
    # The usual markers are then a part of the answer.
    for chat, text in ((OWN.chat, WITH_THOUGHT), (ChatSettings(), MULLED)):
        kept = AnswerTurn(tok, PROMPT, chat).tokens(said(text), "turn", "strip").ids
        assert tok.decode(kept) == f"{text}<|im_end|>"
    # After a prompt that opens the block, which an answer without thinking closes.
    opened = AnswerTurn(tokenizer("byte", OPENS, "<|im_end|>"), PROMPT, OWN.chat)
    for text in (MULLED, MULLED.removeprefix("<mull>\n")):
        found = opened.tokens(said(text), "turn").ids
        assert tok.decode(found) == f"{MULLED.removeprefix('<mull>')[1:]}<|im_end|>"
    assert tok.decode(opened.tokens(said("n"), "turn").ids) == "\n</mull>\n\nn<|im_end|>"
    # Sampled tokens stay, unless their thinking is left out.
    ids = tok(MULLED, add_special_tokens=False)["input_ids"]
    assert turn.tokens(said("n"), "none", sampled=ids).sampled
    assert not turn.tokens(said("n"), "none", "strip", ids).sampled


def test_a_close_without_an_opening_counts_where_the_model_is_declared_so():
    tok = tokenizer("byte", QWEN3, "<|im_end|>")
    text = WITH_THOUGHT.removeprefix("<think>\n")
    declared = ModelSpec(path="m", thinking=ThinkingSpec(opened=True))
    turn = AnswerTurn(tok, PROMPT, declared.chat)
    assert tok.decode(turn.tokens(said(text), "turn").ids) == f"{WITH_THOUGHT}<|im_end|>"
    # Nothing shows that it thought.
    assert tok.decode(turn.tokens(said("n"), "turn").ids).endswith("</think>\n\nn<|im_end|>")


def test_nothing_is_left_of_an_answer_that_was_cut_while_thinking():
    tok = tokenizer("byte", QWEN3, "<|im_end|>")
    turn = AnswerTurn(tok, PROMPT)
    cut = said(f"<think>\n{THOUGHT}")
    assert turn.tokens(cut, "turn", "strip").ids == []
    assert tok.decode(turn.tokens(cut, "turn").ids).endswith(f"{THOUGHT}<|im_end|>")


def test_variables_of_the_template_move_the_boundary():
    tok = tokenizer("byte", QWEN3, "<|im_end|>")
    turn = AnswerTurn(tok, PROMPT, ChatSettings(template_kwargs={"enable_thinking": False}))
    assert turn.given.endswith("<think>\n\n</think>\n\n")
    assert turn.prompt_ids == rendered_ids(tok, PROMPT, True, enable_thinking=False)
    assert tok.decode(turn.tokens(said("n"), "turn").ids) == "n<|im_end|>"


def test_sampled_ids_stay_with_their_thinking_unless_it_is_stripped():
    tok = tokenizer("byte", QWEN3, "<|im_end|>")
    turn = AnswerTurn(tok, PROMPT)
    # Not how this tokenizer would write it: letter by letter.
    sampled = [i for c in WITH_THOUGHT for i in tok(c, add_special_tokens=False)["input_ids"]]
    ended = [*sampled, tok.eos_token_id]
    for answer in (said(WITH_THOUGHT), said("n")):
        assert turn.tokens(answer, "turn", sampled=ended) == (ended, False, True)
        assert turn.tokens(answer, "none", sampled=ended).ids == sampled
        assert turn.tokens(answer, "turn", sampled=sampled).ids == sampled
        stripped = turn.tokens(answer, "turn", "strip", ended)
        assert not stripped.sampled
        assert tok.decode(stripped.ids) == "<think>\n\n</think>\n\nn<|im_end|>"
    assert not turn.tokens(said("k"), "turn", sampled=ended).sampled


def test_a_token_that_would_cross_the_boundary_is_not_formed():
    tok = tokenizer("byte", CHATML, "<|im_end|>")
    turn = AnswerTurn(tok, PROMPT)
    assert len(tok("\n\n", add_special_tokens=False)["input_ids"]) == 1
    found = turn.tokens(said("\nno"), "turn")
    assert found.crossed
    assert tok.decode([*turn.prompt_ids, *found.ids]) == turn.given + "\nno<|im_end|>"
    assert turn.prompt_ids == AnswerTurn(tok, PROMPT).prompt_ids


@pytest.mark.parametrize("kind", ["byte", "llama", "metaspace"])
def test_text_behind_a_boundary_has_no_blank_of_its_own(kind):
    tok = tokenizer(kind, CHATML, "</s>")
    for text in ("no", "\n\nno", "a plum"):
        ids = encode_behind(tok, text)
        assert tok.decode([*tok("x", add_special_tokens=False)["input_ids"], *ids]) == "x" + text
    assert encode_behind(tok, "") == []


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["byte", "llama", "metaspace"]),
    st.text("ab \n<>think.", max_size=12),
    st.text("ab \n<>think.", max_size=12),
)
def test_prompt_and_answer_spell_their_texts_and_the_prompt_is_never_changed(kind, first, second):
    tok = tokenizer(kind, CHATML, "</s>")
    ids = tok(first, add_special_tokens=False)["input_ids"]
    more, crossed = encode_after(tok, first, ids, second)
    together = tok(first + second, add_special_tokens=False)["input_ids"]
    assert crossed == (together[: len(ids)] != ids)
    assert crossed or [*ids, *more] == together


def test_a_template_that_drops_the_system_turn_once_an_answer_follows():
    tok = tokenizer("metaspace", MISTRAL_SYSTEM, "</s>")
    told = [{"role": "system", "content": "Be kind."}, *PROMPT]
    turn = AnswerTurn(tok, told)
    assert "Be kind." in turn.given
    assert tok.decode([*turn.prompt_ids, *turn.tokens(said("n"), "turn").ids]) == (
        tok.decode(turn.prompt_ids) + " n</s>"
    )
    read = AnswerTurn(tok, told, whole=True)
    whole = rendered_ids(tok, [*told, said("n")])
    assert [*read.prompt_ids, *read.tokens(said("n"), "all").ids] == whole


def test_templates_that_hide_the_answer_are_refused():
    for template, message in (
        (CHATML.replace("assistant\n{% endif", "robot\n{% endif"), "generation prompt"),
        (CHATML.replace("m['content']", "m['content'] | upper"), "changes the text"),
        (CHATML.replace("m['content']", "m['content'] | length"), "changes the text"),
        (CHATML.replace("<|im_end|>", "{{ m['content'] | length }}<|im_end|>"), "changes the"),
        (CHATML.replace("m['content']", "m['content'] ~ m['content']"), "changes the text"),
    ):
        tok = tokenizer("byte", template, "<|im_end|>")
        with pytest.raises(EngineError, match=message):
            AnswerTurn(tok, PROMPT).tokens(said("n"), "turn")


def test_a_refusal_of_the_template_names_the_turns_and_the_remedy():
    tok = tokenizer("metaspace", MISTRAL, "</s>")
    with pytest.raises(TemplateRefusal, match=r"What do you.*system, user.*`system_role: merge`"):
        render_prompt(tok, [{"role": "system", "content": "Be kind."}, *PROMPT])
    with pytest.raises(TemplateRefusal, match=r"user, user.*must alternate.*`system_role: merge`"):
        render_prompt(tok, [*PROMPT, *PROMPT])
    with pytest.raises(TemplateRefusal, match=r"system, user"):
        render_prompt(tok, PROMPT, ChatSettings("Be kind."))
    assert render_prompt(tok, PROMPT, ChatSettings("drop")) == render_prompt(tok, PROMPT)


def test_llama_2_writes_a_blank_before_an_answer_and_before_the_end_token():
    tok = tokenizer("llama", LLAMA2, "</s>")
    found = AnswerTurn(tok, PROMPT).tokens(said("think"), "turn").ids
    # Tokenised by itself the answer would have one blank more, or none before the end.
    assert tok.convert_ids_to_tokens(found) == ["▁think", "▁", "</s>"]
