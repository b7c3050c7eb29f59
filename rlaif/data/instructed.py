"""Principles that answers are written under: a system prompt drawn for each completion, with shares
that depend on where its prompt is from (UltraFeedback, 2310.01377, section 2.2). Pure functions."""

from __future__ import annotations

import random
from dataclasses import dataclass

from rlaif.config.steps import SamplePrinciples
from rlaif.core.records import Message, Prompt, content_hash


@dataclass(frozen=True, slots=True)
class Instruction:
    """A principle's name and one of its texts."""

    principle: str
    text: str


def drawn(wanted: SamplePrinciples, prompt: Prompt, *seed: object) -> Instruction:
    """The principle and its text for one completion. The shares are those of the prompt's source,
    or of its first tag that has some, or the default ones."""
    names = [prompt.source, *prompt.tags]
    shares = next((wanted.shares[n] for n in names if n in wanted.shares), wanted.default_shares)
    rng = random.Random(content_hash("principle", *map(str, seed), prompt.prompt_id))
    ordered = sorted(shares)
    (name,) = rng.choices(ordered, [shares[key] for key in ordered])
    return Instruction(name, rng.choice(wanted.texts[name]))


def with_system(messages: list[Message], text: str) -> list[Message]:
    """The messages with `text` as their system turn, after what that turn says already."""
    if messages[0]["role"] != "system":
        return [{"role": "system", "content": text}, *messages]
    whole = f"{messages[0]['content']}\n\n{text}"
    return [{"role": "system", "content": whole}, *messages[1:]]


def chosen_members(count: int, wanted: int, prompt_id: str, *seed: object) -> list[int]:
    """Which `wanted` of `count` members of a pool answer a prompt, in their order."""
    rng = random.Random(content_hash("pool", *map(str, seed), prompt_id))
    return sorted(rng.sample(range(count), wanted))
