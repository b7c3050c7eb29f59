"""From messages to the exact text a model sees, the same for sampling, judging and training."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import jinja2

from rlaif.errors import EngineError
from rlaif.records import Message


def render_prompt(tokenizer: Any, messages: Sequence[Message], system_prompt: str = "keep") -> str:
    """The prompt's text up to where the assistant's turn begins.

    `system_prompt`: keep leaves what the chat template inserts by itself; drop takes it out; any
    other text is used as the system turn. A prompt with a system turn of its own keeps that one.
    """
    conversation = list(messages)
    if system_prompt == "keep" or any(m["role"] == "system" for m in conversation):
        return _render(tokenizer, conversation, True)
    if system_prompt != "drop":
        return _render(tokenizer, [_system(system_prompt), *conversation], True)
    try:
        # An empty system turn stops the template from inserting its own; then that turn is cut off.
        whole = _render(tokenizer, [_system(""), *conversation], True)
        turn = _render(tokenizer, [_system("")], False)
    except jinja2.TemplateError:
        return _render(tokenizer, conversation, True)
    return whole[len(turn) :] if whole.startswith(turn) else whole


_QUESTION = "<the question stands here>"


def render_opening(tokenizer: Any, messages: Sequence[Message], system_prompt: str = "keep") -> str:
    """The text up to where the next user turn begins, after `messages`: what Magpie has a model
    continue (arXiv 2406.08464, section 2.1). Raises EngineError when the template hides it."""
    asked: list[Message] = [*messages, {"role": "user", "content": _QUESTION}]
    before, mark, _ = render_prompt(tokenizer, asked, system_prompt).partition(_QUESTION)
    if not mark:
        raise EngineError("this chat template changes a user's text, so no turn can be left open")
    return before


def _system(text: str) -> Message:
    return {"role": "system", "content": text}


def _render(tokenizer: Any, messages: Sequence[Message], generation: bool) -> str:
    return str(
        tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=generation
        )
    )


def render_answer(
    tokenizer: Any, prompt: Sequence[Message], answer: Message, where: str = "an answer"
) -> tuple[str, list[int]]:
    """The answer as the template writes it after `prompt`, and the ids of what the template puts
    after it. Raises EngineError, naming `where`, when the template hides where an answer begins."""
    prompt_text = _render(tokenizer, prompt, True)
    whole = _render(tokenizer, [*prompt, answer], False)
    if not whole.startswith(prompt_text):
        raise EngineError(
            f"{where}: this chat template does not write the prompt the same way once an answer "
            "follows, so what to learn cannot be told from what is given. Use a template whose "
            "generation prompt is the start of the assistant's turn."
        )
    rest = whole[len(prompt_text) :]
    content = answer["content"]
    if content not in rest:
        # Many templates trim the text.
        content = content.strip()
    start = rest.find(content)
    if start < 0:
        raise EngineError(
            f"{where}: this chat template changes the text of an answer, so its tokens cannot be "
            "found in the rendered conversation. Use a template that writes answers as they are."
        )
    stop = start + len(content)
    suffix: list[int] = tokenizer(rest[stop:], add_special_tokens=False)["input_ids"]
    return rest[:stop], suffix


def end_of_turn(tokenizer: Any, suffix: Sequence[int]) -> int | None:
    """The end token that the template writes after an answer; a base model's EOS may be another."""
    special = set(tokenizer.added_tokens_decoder) | set(tokenizer.all_special_ids)
    end: int | None = next((i for i in suffix if i in special), tokenizer.eos_token_id)
    return end


def is_unicode(texts: Iterable[str]) -> bool:
    """Whether no text has half a surrogate pair in it."""
    try:
        "".join(texts).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
