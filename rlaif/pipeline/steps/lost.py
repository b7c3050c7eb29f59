"""What a model is not shown of conversations, and how a step says so."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from rlaif.core.chat import has_more
from rlaif.core.records import Message
from rlaif.engines.base import Engine, Losing

_WORDS = {
    "tool_calls_lost": "the tool calls of {}",
    "tool_turns_lost": "what tools said in {}",
    "reasoning_lost": "the reasoning in {}",
}


def lost_by(engine: Engine, conversations: Iterable[Sequence[Message]]) -> dict[str, int]:
    """How many turns have something that the model of `engine` is not shown, by what it is; turns
    of prompts that are asked several times count once."""
    found: Counter[str] = Counter()
    if isinstance(engine, Losing):
        for messages in conversations:
            if any(has_more(message) for message in messages):
                found += engine.lost(messages)
    return dict(found)


def lost_notes(step: str, counts: Mapping[str, int]) -> list[str]:
    """A sentence on what was lost, or none."""
    found = {name: counts[name] for name in _WORDS if counts.get(name)}
    parts = [_WORDS[n].format("1 turn" if k == 1 else f"{k} turns") for n, k in found.items()]
    if not parts:
        return []
    said = " and ".join(parts)
    why = "its chat template, or its server's API, has no place for them"
    return [f"{step}: the model is not shown {said}: {why}"]
