"""What a model is asked so that it writes prompts, and how its text is read. Pure functions."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from rlaif.config.prompts import (
    EvolveSource,
    MagpieSource,
    SelfInstructSource,
    TopicsSource,
    WrittenSource,
)
from rlaif.core.records import Message, content_hash
from rlaif.engines.base import GenerateRequest, Sampling
from rlaif.judges.templates import Template, fence_mark, inert, load_template
from rlaif.pipeline.prompt_generation.accept import listed, tidy

WANTED = 4
"""New tasks that one call of Self-Instruct asks for."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One call: its request, the tags of what it brings, and how its text becomes prompts."""

    request: GenerateRequest
    tags: tuple[str, ...]
    read: Callable[[str], list[str]]


@dataclass(frozen=True)
class Writing:
    """A source with what it reads from files: `given` are the seeds or the prompts to rewrite."""

    source: Any
    given: Sequence[str]
    template: Template | None
    seed: int

    def ask(self, number: int, made: Sequence[str]) -> Ask:
        """Call `number` of the source, when `made` is what it has brought so far."""
        rng = random.Random(content_hash("prompts", self.seed, self.source.id, number))
        messages, tags, read = _ASK[self.source.kind](self, number, made, rng)
        source: WrittenSource = self.source
        name = "w_" + content_hash(source.id, number, messages, self.seed)
        sampling = Sampling(
            source.max_new_tokens,
            source.temperature,
            source.top_p,
            seed=int(content_hash("writing", self.seed, name, length=8), 16) & 0x7FFFFFFF,
        )
        magpie = isinstance(source, MagpieSource)
        request = GenerateRequest(
            name, messages, sampling, writes="user" if magpie else "assistant"
        )
        return Ask(request, tags, read)


_Asked = tuple[list[Message], tuple[str, ...], Callable[[str], list[str]]]


def _self_instruct(w: Writing, number: int, made: Sequence[str], rng: random.Random) -> _Asked:
    source: SelfInstructSource = w.source
    own = rng.sample(list(made), min(source.own_examples, len(made)))
    count = source.seed_examples + source.own_examples - len(own)
    examples = [*rng.sample(list(w.given), min(count, len(w.given))), *own]
    rng.shuffle(examples)
    return _render_messages(w, examples=[inert(e) for e in examples], wanted=WANTED), (), listed


def _ask_magpie(w: Writing, number: int, made: Sequence[str], rng: random.Random) -> _Asked:
    text = w.source.system_prompt
    turns: list[Message] = [] if text is None else [{"role": "system", "content": text}]
    return turns, (), _read_first_prompt


def _ask_evolved(w: Writing, number: int, made: Sequence[str], rng: random.Random) -> _Asked:
    source: EvolveSource = w.source
    text = w.given[number % len(w.given)]
    operation = rng.choice(source.operations)
    fence = fence_mark(w.seed, text)
    messages = _render_messages(w, request=inert(text), operation=operation, fence=fence)
    return messages, (f"evolved-{operation}",), _read_first_prompt


def _ask_topic(w: Writing, number: int, made: Sequence[str], rng: random.Random) -> _Asked:
    source: TopicsSource = w.source
    every = list(product(source.personas or [""], source.topics or [""]))
    persona, topic = every[number % len(every)]
    messages = _render_messages(w, persona=persona, topic=topic, red_team=source.red_team)
    tags = (topic,) if topic else ()
    return messages, (*tags, "red-team") if source.red_team else tags, _read_first_prompt


def _render_messages(w: Writing, **values: Any) -> list[Message]:
    assert w.template is not None
    return w.template.messages(values)


def _read_first_prompt(text: str) -> list[str]:
    """The first paragraph, or all of it: models like to go on and answer."""
    found = tidy(text.strip().split("\n\n")[0])
    return [found] if found else []


_ASK: dict[str, Callable[[Writing, int, Sequence[str], random.Random], _Asked]] = {
    "self_instruct": _self_instruct,
    "magpie": _ask_magpie,
    "evolve": _ask_evolved,
    "topics": _ask_topic,
}
_VARIABLES = {
    "self_instruct": frozenset({"examples", "wanted"}),
    "evolve": frozenset({"request", "operation", "fence"}),
    "topics": frozenset({"persona", "topic", "red_team"}),
}


def writing(source: Any, given: Sequence[str], seed: int, beside: Path | None) -> Writing:
    """A source ready to be asked. Raises ConfigError for a template that cannot be used."""
    template = None
    if source.kind in _VARIABLES:
        template = load_template(source.template, _VARIABLES[source.kind], frozenset(), beside)
    return Writing(source, given, template, seed)
