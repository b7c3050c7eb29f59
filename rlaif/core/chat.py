"""From messages to the exact text a model sees, the same for sampling, judging and training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import jinja2

from rlaif.core.errors import EngineError
from rlaif.core.records import Message
from rlaif.core.thinking import MARKERS, Markers

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
        # Each tool's turn answers a call of its own.
        if merged and merged[-1]["role"] == role != "tool":
            merged[-1] = _as_one(merged[-1], message)
        else:
            merged.append({**message, "role": role})
    return merged


def _as_one(first: Message, second: Message) -> Message:
    """Two turns of one role as one."""
    one: Message = {**second, **first}
    one["content"] = "\n\n".join(filter(None, (first["content"], second["content"])))
    calls = [call for m in (first, second) for call in m.get("tool_calls", ())]
    if calls:
        one["tool_calls"] = calls
    thoughts = [m["reasoning_content"] for m in (first, second) if m.get("reasoning_content")]
    if thoughts:
        one["reasoning_content"] = "\n\n".join(thoughts)
    return one


@dataclass(frozen=True, slots=True)
class ChatSettings:
    """What a model's conversations are rendered with, besides its chat template, and what tells
    thinking from answers in them.

    `system_prompt`: keep leaves what the template inserts by itself; drop takes it out; any other
    text is used as the system turn. A prompt with a system turn of its own keeps that one.
    `system_role`: see `with_system_role`. `template_kwargs` are variables of the template, such as
    {"enable_thinking": False}. `markers` and `opened`: see `rlaif.core.thinking.split`.
    """

    system_prompt: str = "keep"
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    system_role: SystemRole = "keep"
    markers: Markers = MARKERS
    opened: bool = False


KEEP = ChatSettings()
"""What the template does by itself."""


THINKING_KEYS = ("reasoning_content", "reasoning", "thinking")
"""Where templates look for a turn's thinking: Qwen3 and DeepSeek, newer ones, gpt-oss."""
LOST = ("tool_calls_lost", "tool_turns_lost", "reasoning_lost")
"""What `lost` counts."""


class TemplateRefusal(EngineError):
    """A chat template that does not take a conversation: its roles, or their order."""


def render(
    tokenizer: Any, messages: Sequence[Message], chat: ChatSettings, generation: bool
) -> str:
    """The text of a conversation, with `generation` up to where the assistant's turn begins. Raises
    TemplateRefusal."""
    told = any(m["role"] == "system" for m in messages)
    given = chat.system_prompt not in ("keep", "drop") and not told
    conversation = [_system(chat.system_prompt), *messages] if given else list(messages)
    conversation = with_system_role(conversation, chat.system_role)
    if chat.system_prompt != "drop" or told:
        return _apply(tokenizer, conversation, chat, generation)
    try:
        # An empty system turn stops the template from inserting its own; then that turn is cut off.
        whole = _apply(tokenizer, [_system(""), *conversation], chat, generation)
        turn = _apply(tokenizer, [_system("")], chat, False)
    except TemplateRefusal:
        return _apply(tokenizer, conversation, chat, generation)
    return whole[len(turn) :] if whole.startswith(turn) else whole


def render_prompt(tokenizer: Any, messages: Sequence[Message], chat: ChatSettings = KEEP) -> str:
    """The prompt's text up to where the assistant's turn begins. Raises TemplateRefusal."""
    return render(tokenizer, messages, chat, True)


_QUESTION = "<the question stands here>"


def render_opening(tokenizer: Any, messages: Sequence[Message], chat: ChatSettings = KEEP) -> str:
    """The text up to where the next user turn begins, after `messages`: what Magpie has a model
    continue (arXiv 2406.08464, section 2.1). Raises EngineError when the template hides it."""
    asked: list[Message] = [*messages, {"role": "user", "content": _QUESTION}]
    before, mark, _ = render_prompt(tokenizer, asked, chat).partition(_QUESTION)
    if not mark:
        raise EngineError("this chat template changes a user's text, so no turn can be left open")
    return before


def _system(text: str) -> Message:
    return {"role": "system", "content": text}


def _apply(
    tokenizer: Any, messages: Sequence[Message], chat: ChatSettings, generation: bool
) -> str:
    try:
        return str(
            tokenizer.apply_chat_template(
                [_thinking_by_every_name(message) for message in messages],
                tokenize=False,
                add_generation_prompt=generation,
                **chat.template_kwargs,
            )
        )
    except jinja2.TemplateError as error:
        raise TemplateRefusal(_refusal(messages, error)) from None


def _thinking_by_every_name(message: Message) -> Mapping[str, Any]:
    thinking = next((message[key] for key in THINKING_KEYS if message.get(key)), None)  # type: ignore[literal-required]
    return message if thinking is None else {**dict.fromkeys(THINKING_KEYS, thinking), **message}


def has_more(message: Message) -> bool:
    """Whether a turn has what a template may leave out."""
    return bool(message.get("tool_calls") or message.get("reasoning_content")) or (
        message["role"] == "tool"
    )


def lost(
    tokenizer: Any,
    messages: Sequence[Message],
    chat: ChatSettings = KEEP,
    generation: bool = True,
    first: int = 0,
) -> Counter[str]:
    """How many of the turns from number `first` on have tool calls (`tool_calls_lost`), a tool's
    answer (`tool_turns_lost`) or reasoning (`reasoning_lost`) of which the rendered conversation
    shows nothing: its text is the same when they are others. Raises TemplateRefusal."""
    found: Counter[str] = Counter()
    if not any(has_more(message) for message in messages[first:]):
        return found
    text = render(tokenizer, messages, chat, generation)
    for number, message in enumerate(messages[first:], first):
        for name, others in _others(message).items():
            whole = ([*messages[:number], other, *messages[number + 1 :]] for other in others)
            found[name] += any(_rendered(tokenizer, w, chat, generation) == text for w in whole)
    return +found


def _others(message: Message) -> dict[str, list[Message]]:
    """The turn with something else in each part that may be lost."""
    others: dict[str, list[Message]] = {}
    calls = message.get("tool_calls")
    if calls:
        kept = {key: value for key, value in message.items() if key != "tool_calls"}
        others["tool_calls_lost"] = [
            kept,  # type: ignore[list-item]
            {**message, "tool_calls": [_other_call(call) for call in calls]},
        ]
    if message["role"] == "tool" and message["content"]:
        others["tool_turns_lost"] = [{**message, "content": message["content"] + _QUESTION}]
    if message.get("reasoning_content"):
        others["reasoning_lost"] = [{**message, "reasoning_content": _QUESTION}]
    return others


def _other_call(call: dict[str, Any]) -> dict[str, Any]:
    """The call with other arguments."""
    inside = call.get("function", call)
    changed = {**inside, "arguments": {_QUESTION: _QUESTION}}
    return {**call, "function": changed} if "function" in call else changed


def _rendered(
    tokenizer: Any, messages: Sequence[Message], chat: ChatSettings, generation: bool
) -> str | None:
    """The text, or None where the template refuses the turns, which it then looks at."""
    try:
        return render(tokenizer, messages, chat, generation)
    except TemplateRefusal:
        return None


def _refusal(messages: Sequence[Message], error: jinja2.TemplateError) -> str:
    roles = [m["role"] for m in messages]
    asked = next((str(m["content"]) for m in reversed(messages) if m["role"] == "user"), "")
    said = str(error).rstrip(".")
    remedy = (
        "Where it takes no system turn, or wants user and assistant to alternate, give the model "
        "`system_role: merge`; `drop` leaves system turns out"
    )
    return (
        f"the chat template refuses the conversation about {asked[:60]!r} with the turns "
        f"{', '.join(roles)}: {said}. {remedy}."
    )


def is_unicode(texts: Iterable[str]) -> bool:
    """Whether no text has half a surrogate pair in it."""
    try:
        "".join(texts).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
