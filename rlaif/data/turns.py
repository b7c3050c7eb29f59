"""Conversations as files hold them: turns by several names, content in parts, tool calls and
reasoning."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rlaif.core.chat import is_unicode
from rlaif.core.errors import ConfigError
from rlaif.core.records import Message

SPEAKERS = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "tool": "tool",
    "function": "tool",
    "ipython": "tool",
    "observation": "tool",
}
"""What files call a speaker, and the role that chat templates know."""
ROLES = frozenset(SPEAKERS.values())
NAMES = (("role", "content"), ("from", "value"))
"""The keys of a turn: as chat templates have them, and in the ShareGPT form."""
REASONING = ("reasoning_content", "reasoning", "thinking")
"""What files call the reasoning before an answer; we keep it under the first name."""

MARK = re.compile(r"\n\n(Human|Assistant):")
TRANSCRIBED = {"Human": "user", "Assistant": "assistant"}
"""The speakers of HH-RLHF's transcripts, each turn `\\n\\nHuman: ` or `\\n\\nAssistant: `."""
_ASKED = re.compile(r"\n\nAssistant:\s*\Z")


def read_transcript(text: str, key: str, place: str) -> list[Message]:
    """The turns of a transcript, without the blanks around each. Raises ConfigError."""
    before, *parts = MARK.split(text)
    if before.strip() or not parts:
        raise ConfigError(f"{place}: {key} does not begin with a `\\n\\nHuman:` turn")
    return [
        {"role": TRANSCRIBED[mark], "content": content.strip()}
        for mark, content in zip(parts[::2], parts[1::2], strict=True)
    ]


def read_asked(value: Any, name: str, place: str) -> list[Message]:
    """What was asked: a text, a list of turns, or a transcript up to where an answer begins. Raises
    ConfigError."""
    if isinstance(value, str) and MARK.match(value) and _ASKED.search(value):
        return read_transcript(_ASKED.sub("", value), name, place)
    return conversation(value, "user", name, place)


def conversation(value: Any, role: str, name: str, place: str) -> list[Message]:
    """A text as one turn of `role`, or a list of turns as it is. Raises ConfigError, which names
    the turn and what is wrong with it."""
    if isinstance(value, str):
        turns: list[Message] = [{"role": role, "content": value}]
    elif isinstance(value, Sequence) and len(value) > 0:
        turns = [read_turn(item, f"{name}[{i}]", place) for i, item in enumerate(value)]
    else:
        raise ConfigError(
            f"{place}: {name} is {brief(value)}; text or a list of {{role, content}} turns was "
            "expected"
        )
    whole_text((json.dumps(t, ensure_ascii=False, default=str) for t in turns), place)
    return turns


def read_turn(value: Any, name: str, place: str) -> Message:
    """One turn, with its tool calls, name and reasoning. Raises ConfigError."""
    keys = next((k for k in NAMES if isinstance(value, Mapping) and value.get(k[0])), None)
    if keys is None:
        raise ConfigError(f"{place}: {name} is {brief(value)}; a turn {{role, content}} expected")
    said = value[keys[0]]
    role = SPEAKERS.get(said.lower()) if isinstance(said, str) else None
    if role is None:
        raise ConfigError(
            f"{place}: {name} has the role {brief(said)}; system, user, assistant or tool was "
            "expected"
        )
    calls = _read_calls(value, name, place)
    found: Message = {
        "role": role,
        "content": _read_content(value.get(keys[1]), bool(calls), f"{name}.{keys[1]}", place),
    }
    if calls:
        found["tool_calls"] = calls
    reasoning = next((value[key] for key in REASONING if value.get(key)), None)
    if isinstance(reasoning, str):
        found["reasoning_content"] = reasoning
    if role == "tool":
        if isinstance(value.get("tool_call_id"), str):
            found["tool_call_id"] = value["tool_call_id"]
        if isinstance(value.get("name"), str):
            found["name"] = value["name"]
    return found


def _read_content(value: Any, calls: bool, name: str, place: str) -> str:
    """The text of a turn; parts are joined as they follow one another."""
    if isinstance(value, str):
        return value
    if value is None and calls:
        return ""
    if isinstance(value, Sequence):
        return "".join(_read_part(part, f"{name}[{i}]", place) for i, part in enumerate(value))
    raise ConfigError(f"{place}: {name} is {brief(value)}; a text was expected")


def _read_part(part: Any, name: str, place: str) -> str:
    text = part.get("text") if isinstance(part, Mapping) else part
    kind = part.get("type", "text") if isinstance(part, Mapping) else "text"
    if kind != "text" or not isinstance(text, str):
        raise ConfigError(f"{place}: {name} is {brief(part)}; only parts of text can be read")
    return text


def _read_calls(value: Mapping[str, Any], name: str, place: str) -> list[dict[str, Any]]:
    """Tool calls as chat templates take them: their arguments a mapping where they are JSON."""
    given = value.get("tool_calls")
    if given is None or given == "":
        old = value.get("function_call")
        given = [{"type": "function", "function": old}] if isinstance(old, Mapping) else []
    given = parse_json(given)
    if not isinstance(given, Sequence) or not all(isinstance(call, Mapping) for call in given):
        raise ConfigError(f"{place}: {name}.tool_calls is {brief(given)}; a list was expected")
    return [_read_call(call) for call in given]


def _read_call(call: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: item for key, item in call.items() if item is not None}
    if isinstance(kept.get("function"), Mapping):
        inside = {key: item for key, item in kept["function"].items() if item is not None}
        kept["function"] = inside | {"arguments": parse_json(inside.get("arguments", {}))}
    elif "arguments" in kept:
        kept["arguments"] = parse_json(kept["arguments"])
    return kept


def parse_json(value: Any, kinds: tuple[type, ...] = (dict, list)) -> Any:
    """What a text holds as JSON where it is of one of `kinds`; anything else as it is."""
    if not isinstance(value, str):
        return value
    try:
        found = json.loads(value)
    except (ValueError, RecursionError):
        return value
    return found if isinstance(found, kinds) else value


def opens_conversation(turns: Sequence[Message]) -> bool:
    """Whether turns begin with what was asked, and so are more than an answer."""
    return turns[0]["role"] != "assistant"


def with_system(turns: Sequence[Message], system: str | None) -> list[Message]:
    """The turns after a system turn, where one is given and they have none of their own."""
    if not system or not system.strip() or any(t["role"] == "system" for t in turns):
        return list(turns)
    return [{"role": "system", "content": system}, *turns]


def whole_text(texts: Iterable[str], place: str) -> None:
    """Raises ConfigError where a text has half a character in it."""
    if not is_unicode(texts):
        raise ConfigError(
            f"{place}: the text has half a surrogate pair (\\ud800 to \\udfff), which no tokenizer "
            "takes: it was cut in the middle of a character. Mend or remove the row."
        )


def brief(value: Any) -> str:
    """A value in a message, cut to 60 characters."""
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."
