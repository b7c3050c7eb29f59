"""From messages to the exact text a model sees, the same for sampling, judging and training."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import jinja2

from rlaif.errors import EngineError
from rlaif.records import Message

SystemRole = Literal["keep", "merge", "drop"]


def with_system_role(messages: Sequence[Message], system_role: SystemRole) -> list[Message]:
    """The turns as a model takes them that has no system role, or wants roles to alternate.

    keep: as they are; drop: without system turns; merge: a system turn becomes the beginning of the
    next user turn, and neighbours of one role become one turn, with an empty line between.
    """
    if system_role == "keep":
        return list(messages)
    if system_role == "drop":
        return [message for message in messages if message["role"] != "system"]
    merged: list[Message] = []
    for message in messages:
        role = "user" if message["role"] == "system" else message["role"]
        if merged and merged[-1]["role"] == role:
            text = f"{merged[-1]['content']}\n\n{message['content']}"
            merged[-1] = {"role": role, "content": text}
        else:
            merged.append({"role": role, "content": message["content"]})
    return merged


def render_prompt(
    tokenizer: Any,
    messages: Sequence[Message],
    system_prompt: str = "keep",
    system_role: SystemRole = "keep",
) -> str:
    """The prompt's text up to where the assistant's turn begins.

    `system_prompt`: keep leaves what the chat template inserts by itself; drop takes it out; any
    other text is used as the system turn. A prompt with a system turn of its own keeps that one.
    `system_role`: see `with_system_role`. Raises EngineError for turns that the template refuses.
    """
    told = any(m["role"] == "system" for m in messages)
    given = system_prompt not in ("keep", "drop") and not told
    conversation = [_system(system_prompt), *messages] if given else list(messages)
    conversation = with_system_role(conversation, system_role)
    if system_prompt != "drop" or told:
        return _render(tokenizer, conversation, True)
    try:
        # An empty system turn stops the template from inserting its own; then that turn is cut off.
        whole = _render(tokenizer, [_system(""), *conversation], True)
        turn = _render(tokenizer, [_system("")], False)
    except EngineError:
        return _render(tokenizer, conversation, True)
    return whole[len(turn) :] if whole.startswith(turn) else whole


_QUESTION = "<the question stands here>"


def render_opening(
    tokenizer: Any,
    messages: Sequence[Message],
    system_prompt: str = "keep",
    system_role: SystemRole = "keep",
) -> str:
    """The text up to where the next user turn begins, after `messages`: what Magpie has a model
    continue (arXiv 2406.08464, section 2.1). Raises EngineError when the template hides it."""
    asked: list[Message] = [*messages, {"role": "user", "content": _QUESTION}]
    before, mark, _ = render_prompt(tokenizer, asked, system_prompt, system_role).partition(
        _QUESTION
    )
    if not mark:
        raise EngineError("this chat template changes a user's text, so no turn can be left open")
    return before


def _system(text: str) -> Message:
    return {"role": "system", "content": text}


def _render(tokenizer: Any, messages: Sequence[Message], generation: bool) -> str:
    try:
        return str(
            tokenizer.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=generation
            )
        )
    except jinja2.TemplateError as error:
        roles = ", ".join(message["role"] for message in messages)
        raise EngineError(
            f"the chat template refuses turns of the roles {roles}: {error}. Where it knows no "
            "system role, or wants user and assistant to alternate, set `system_role: merge` for "
            "this model, or `drop`."
        ) from None


def render_answer(
    tokenizer: Any,
    prompt: Sequence[Message],
    answer: Message,
    where: str = "an answer",
    system_role: SystemRole = "keep",
) -> tuple[str, list[int]]:
    """The answer as the template writes it after `prompt`, and the ids of what the template puts
    after it. Raises EngineError, naming `where`, when the template hides where an answer begins."""
    prompt = with_system_role(prompt, system_role)
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
