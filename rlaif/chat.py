"""From messages to the exact text a model sees, the same for sampling, judging and training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jinja2

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


def _system(text: str) -> Message:
    return {"role": "system", "content": text}


def _render(tokenizer: Any, messages: Sequence[Message], generation: bool) -> str:
    return str(
        tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=generation
        )
    )
